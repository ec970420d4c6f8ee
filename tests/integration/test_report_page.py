"""A report in a real browser: everything is drawn, nothing complains, and no request leaves the page."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.report import Curve, Report, render
from orchestrator.analysis.report.curve_figures import CLEAR, to_draw
from orchestrator.analysis.report.curves import MOST_POINTS
from tests.browser import CHROMIUM, Page, page, recording_proxy
from tests.report_demo import METRIC, sweep_report
from tests.unit.analysis.test_report import HOSTILE, figures, hostile, runs_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

DRAWN = "document.documentElement.dataset.drawn !== undefined"
BROWSERS_OWN = r"https?://[a-z0-9.-]+\.(google|googleapis|gstatic)\.com/"
"""What Chromium asks for by itself. Nothing in a report names these."""
CURVES = "document.querySelectorAll('#{id} .scatterlayer .trace').length"
BARS = "document.querySelectorAll('#{id} .barlayer .point path').length"
LINES = """(() => {{
  let inked = 0;
  for (const canvas of document.querySelectorAll('#{id} canvas')) {{
    const copy = document.createElement('canvas');
    [copy.width, copy.height] = [canvas.width, canvas.height];
    const context = copy.getContext('2d');
    context.drawImage(canvas, 0, 0);
    const pixels = context.getImageData(0, 0, copy.width, copy.height).data;
    for (let at = 3; at < pixels.length; at += 4) inked += pixels[at] > 0;
  }}
  return inked;
}})()"""


def written(folder: Path, report: Report) -> Path:
    file = folder / "report.html"
    file.write_text(render(report), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with page(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def tab(browser: Page) -> Page:
    browser.renew()
    browser.look(1280, 900)
    return browser


def show(tab: Page, folder: Path, report: Report) -> list[dict[str, Any]]:
    """Open a report; what its figures are made of."""
    file = written(folder, report)
    tab.open(file.as_uri(), DRAWN)
    return figures(file.read_text(encoding="utf-8"))


def drawn(tab: Page, figure: dict[str, Any]) -> int:
    """How many marks of a figure are in the page; of parallel coordinates, how many pixels."""
    kinds = {"scatter": CURVES, "bar": BARS, "parcoords": LINES}
    return int(tab.value(kinds[figure["data"][0]["type"]].format(id=figure["id"])))


def expected(figure: dict[str, Any]) -> int:
    kind = figure["data"][0]["type"]
    if kind == "parcoords":
        return 1000
    return len(figure["data"]) if kind == "scatter" else sum(len(trace["x"]) for trace in figure["data"])


def check_drawn(tab: Page, found: list[dict[str, Any]]) -> None:
    assert tab.value("document.documentElement.dataset.drawn") == str(len(found)), tab.complaints()
    for figure in found:
        count = drawn(tab, figure)
        if figure["data"][0]["type"] == "parcoords":
            assert count > expected(figure), figure["id"]
        else:
            assert count == expected(figure), figure["id"]
    paths = "document.querySelectorAll('.scatterlayer .js-line[d]:not([d=\"\"])').length"
    assert tab.value(paths) >= 2


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_figure_is_drawn(tab: Page, tmp_path: Path, dark: bool) -> None:
    tab.look(1280, 900, dark=dark)
    check_drawn(tab, show(tab, tmp_path, sweep_report()))
    assert tab.complaints() == []


def test_runs_side_by_side_are_drawn(tab: Page, tmp_path: Path) -> None:
    check_drawn(tab, show(tab, tmp_path, runs_report()))
    assert tab.complaints() == []


def test_no_request_leaves_the_page(tmp_path: Path) -> None:
    with recording_proxy() as (port, heard), page(tmp_path, proxy=port) as tab:
        tab.look(1280, 900)
        show(tab, tmp_path, sweep_report())
        tab.value("document.querySelector('button.more').click()")
        tab.value("document.querySelectorAll('th button').forEach((one) => one.click())")
        tab.look(800, 900, dark=True)
        time.sleep(1)
        assert [url for url in tab.requests() if not url.startswith(("file:", "data:", "blob:"))] == []
        assert tab.complaints() == []
        assert heard == []
        # It may not even if something in it wanted to.
        refused = tab.value("fetch('http://example.invalid/x').then(() => 'sent', (error) => error.name)")
        assert (refused, heard) == ("TypeError", [])
        assert any("Content Security Policy" in one for one in tab.complaints())
        # And these witnesses do see what another page asks for.
        tab.open("about:blank", "true")
        tab.value("fetch('http://example.invalid/witness', {mode: 'no-cors'}).catch(() => 0)")
        assert b"/witness" in b"".join(heard)
    log = (tmp_path / "net.json").read_text(encoding="utf-8")
    asked = set(re.findall(r'"url":"((?:https?|wss?):[^"]*)"', log))
    assert {url for url in asked if not re.match(BROWSERS_OWN, url)} == {"http://example.invalid/witness"}


def test_it_fits_a_narrow_window(tab: Page, tmp_path: Path) -> None:
    tab.look(800, 900)
    show(tab, tmp_path, sweep_report())
    assert tab.value("document.documentElement.scrollWidth") <= 800
    right = "(svg) => svg.getBoundingClientRect().right"
    widths = f"Math.max(...[...document.querySelectorAll('.figure svg')].map({right}))"
    assert tab.value(widths) <= 800


def test_tables_are_sorted_and_unfolded(tab: Page, tmp_path: Path) -> None:
    show(tab, tmp_path, sweep_report())
    rows = "[...document.querySelector('#leaderboard tbody').rows]"
    shown = f"{rows}.filter((row) => row.offsetHeight > 0).length"
    trials = f"{rows}.map((row) => parseInt(row.cells[1].textContent))"
    trial = "document.querySelectorAll('#leaderboard th button')[1]"
    assert tab.value(shown) == 20
    tab.value(f"{trial}.click()")
    assert tab.value(trials) == list(range(30))
    assert tab.value(shown) == 20
    assert tab.value(f"{trial}.parentElement.getAttribute('aria-sort')") == "ascending"
    tab.value(f"{trial}.click()")
    assert tab.value(trials) == list(range(29, -1, -1))
    # A trial without the parameter stays at the end, whichever way it is sorted.
    ngrams = (
        "[...document.querySelectorAll('#leaderboard th button')].find((b) => b.textContent === 'ngrams')"
    )
    for _ in range(2):
        tab.value(f"{ngrams}.click()")
        values = tab.value(f"{rows}.map((row) => row.cells[6].textContent)")
        assert "–" not in values[: values.index("–")]
        assert set(values[values.index("–") :]) == {"–"}
    tab.value("document.querySelector('#leaderboard button.more').click()")
    assert tab.value(shown) == 30
    assert tab.complaints() == []


def test_colours_follow_what_the_reader_prefers(tab: Page, tmp_path: Path) -> None:
    show(tab, tmp_path, sweep_report())
    color = "getComputedStyle(document.querySelector('#importance .xtick text')).fill"
    light = tab.value(color)
    tab.value("delete document.documentElement.dataset.drawn")
    tab.look(1280, 900, dark=True)
    end = time.monotonic() + 30
    while not tab.value(DRAWN):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert tab.value(color) != light
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert tab.complaints() == []


@pytest.mark.parametrize("evil", HOSTILE[:4])
def test_hostile_words_stay_words(tab: Page, tmp_path: Path, evil: str) -> None:
    found = show(tab, tmp_path, hostile(sweep_report(), evil))
    assert tab.value("document.documentElement.dataset.drawn") == str(len(found))
    assert tab.value("document.querySelector('h1').textContent") == evil
    assert tab.value("document.scripts.length") == 3
    assert tab.value("document.querySelectorAll('img, iframe, [onload], [onerror]').length") == 0
    assert [event for event in tab.events if event["method"] == "Page.javascriptDialogOpening"] == []
    assert tab.complaints() == []


def large() -> Report:
    """1,000 trials; of those that are drawn each for itself, curves of as many points as are ever drawn."""
    report = sweep_report(1000, points=100)
    drawn, entries = to_draw(report), list(report.entries)
    steps = tuple(range(1, 3 * MOST_POINTS, 3))
    for place in drawn[:CLEAR]:
        values = tuple(1.5 + 3 / math.sqrt(step) + place / 1e4 for step in steps)
        line = Curve(steps, tuple(step * 0.9 for step in steps), values)
        entries[place] = replace(entries[place], curves={METRIC: line})
    bare = set(range(len(entries))) - set(drawn)
    return replace(
        report, entries=tuple(replace(e, curves={}) if n in bare else e for n, e in enumerate(entries))
    )


@pytest.mark.slow
def test_a_thousand_trials_are_quick(tab: Page, tmp_path: Path) -> None:
    report = large()
    begun = time.monotonic()
    render(report)
    made = time.monotonic() - begun
    found = show(tab, tmp_path, report)
    size, seconds = (tmp_path / "report.html").stat().st_size, tab.value("performance.now()") / 1000
    print(json.dumps({"MB": size / 1e6, "made s": made, "drawn s": seconds}))
    assert size < 15e6
    assert made < 30
    assert seconds < 60
    check_drawn(tab, found)
    assert tab.complaints() == []
