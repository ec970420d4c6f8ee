"use strict";
// Draws the figures, sorts tables, unfolds long ones. Nothing here reads or sends anything outside the page.
(function () {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = {responsive: true, displayModeBar: false, displaylogo: false, showTips: false};

  // Colours of the style by name, for every key that speaks of colours.
  function themed(value, style, colors) {
    if (typeof value === "string") {
      const name = colors && /^var\((--\w+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => themed(item, style, colors));
    if (value === null || typeof value !== "object") return value;
    const found = {};
    for (const key of Object.keys(value)) found[key] = themed(value[key], style, /color/.test(key));
    return found;
  }

  async function draw() {
    const style = getComputedStyle(root);
    let drawn = 0;
    for (const figure of figures) {
      const place = document.getElementById(figure.id);
      try {
        await Plotly.react(place, themed(figure.data, style), themed(figure.layout, style), config);
        drawn += 1;
      } catch (error) {
        place.textContent = "This figure could not be drawn: " + error.message;
        place.className = "failed";
        console.error(error);
      }
    }
    root.dataset.drawn = String(drawn);
  }

  function compare(a, b) {
    const first = a.dataset.sort, second = b.dataset.sort;
    if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
    const difference = Number(first) - Number(second);
    return Number.isNaN(difference) ? first.localeCompare(second, undefined, {numeric: true}) : difference;
  }

  function sort(button) {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const column = Array.from(head.parentElement.children).indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    const rows = Array.from(body.rows);
    const absent = (row) => row.cells[column].dataset.sort === undefined;
    rows.sort(function (a, b) {
      const order = compare(a.cells[column], b.cells[column]);
      return absent(a) || absent(b) || up ? order : -order;
    });
    const late = rows.filter((row) => row.classList.contains("late")).length;
    rows.forEach((row, place) => row.classList.toggle("late", place >= rows.length - late));
    body.append(...rows);
    for (const other of head.parentElement.children) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sort(button));
  }
  for (const button of document.querySelectorAll("button.more")) {
    const table = button.closest(".table");
    table.classList.add("folded");
    button.addEventListener("click", function () {
      table.classList.remove("folded");
      button.remove();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
