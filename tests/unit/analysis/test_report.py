"""A report says what is so, and nothing that a user has written becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.analysis.compare import compare
from orchestrator.analysis.report import Axis, Curve, Entry, Report, render
from orchestrator.analysis.report.choosing import columns, metrics, objective, titles
from orchestrator.analysis.report.curve_figures import CLEAR, FAINT_CURVES, sweep_curves, to_draw
from orchestrator.analysis.report.curves import best_of, curve, thinned, value_range
from orchestrator.analysis.report.data import ranked
from orchestrator.analysis.report.gantt import bars, gantt, lanes
from orchestrator.analysis.report.html import el, link, program
from orchestrator.analysis.report.search_figures import importance, parallel, slices
from orchestrator.analysis.report.sections import sections
from orchestrator.analysis.report.tables import failures
from orchestrator.analysis.report.verdict import verdict
from orchestrator.analysis.report.words import duration, measure, short_names
from orchestrator.domain.states import Phase, Reason
from orchestrator.messages import AttemptView, PointView
from tests.report_demo import METRIC, NIGHT, sweep_report, without_energy
from tests.unit.cli.fake import detail, handed_over

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "<!--<script>",
    "%{x} <a href='javascript:alert(1)'>x</a>",
    "\u2028\u2029\x00&lt;b&gt;",
    "{{7*7}} ${7*7} ]]>",
)


@pytest.fixture(scope="module")
def report() -> Report:
    return sweep_report()


class Tags(HTMLParser):
    """Every element of a page with its attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


def figures(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return list(json.loads(found[1]))


# ------------------------------------------------------------------ what it says


def test_the_verdict_of_a_sweep(report: Report) -> None:
    best = min((e for e in report.entries if e.state == "complete"), key=lambda e: e.value or 9)
    said = verdict(report)
    assert said.startswith(f"Trial {best.number} is best: val/loss {best.value:.4f} at step ")
    assert "with learning_rate " in said
    assert re.search(r"better than the median of the \d+ that finished\.", said)
    counts = {
        state: sum(e.state == state for e in report.entries) for state in ("complete", "pruned", "failed")
    }
    assert said.endswith(
        f"Of 30 trials, {counts['complete']} finished, {counts['pruned']} pruned and 1 failed."
    )


def test_a_sweep_without_any_value_says_so(report: Report) -> None:
    empty = tuple(replace(e, value=None, curves={}, state="open", attempts=()) for e in report.entries[:2])
    bare = replace(report, entries=empty, best=None, kept=None, importance={})
    assert verdict(bare) == "No trial has a value of val/loss yet. Of 2 trials, 2 still open."
    assert [part.id for part in sections(bare)] == ["leaderboard"]
    assert "no trial" in verdict(replace(bare, entries=())).lower()
    assert render(bare)


def test_the_best_comes_first_and_broken_trials_last(report: Report) -> None:
    order = ranked(report)
    states = [report.entries[place].state for place in order]
    assert order[0] == report.best
    assert states == sorted(states, key=["complete", "pruned", "failed"].index)
    upwards = replace(report, direction="maximize", best=None)
    best = report.entries[ranked(upwards)[0]]
    assert best.value == max(e.value or 0 for e in report.entries if e.state == "complete")


def test_the_mean_of_a_point_counts_where_it_has_several_trials(report: Report) -> None:
    entries = [replace(e, state="complete", mean=float(n)) for n, e in enumerate(report.entries[:5])]
    several = replace(report, entries=tuple(entries), best=0)
    assert ranked(several) == [0, 1, 2, 3, 4]
    page = render(several)
    assert ">mean</button>" in page


def test_the_leaderboard_has_every_trial_and_marks_one(report: Report) -> None:
    tags = Tags(render(report))
    rows = [row for row in tags.all("tr") if row.get("class") == "best"]
    assert len(rows) == 1
    values = [cell for cell in tags.all("td") if cell.get("data-sort") == str(report.entries[4].value)]
    assert len(values) == 1
    assert sum("late" in (row.get("class") or "") for row in tags.all("tr")) == 10
    assert {"kWh", "cost (EUR)"} <= set(tags.text)


def test_little_energy_is_told_in_watt_hours(report: Report) -> None:
    entries = [replace(entry, energy_kwh=0.00004, cost=0.00001) for entry in report.entries]
    text = Tags(render(replace(report, entries=tuple(entries)))).text
    assert {"Wh", "0.040", "< 0.001", f"{0.04 * len(entries):.2f} Wh"} <= set(text)


def test_without_energy_there_are_no_columns_of_it(report: Report) -> None:
    text = Tags(render(without_energy(report))).text
    assert not [word for word in text if word in ("kWh", "cost (EUR)", "energy", "cost of energy")]
    assert not [word for word in text if "Energy is" in word]


def test_energy_adds_up_and_says_where_it_is_an_estimate(report: Report) -> None:
    page = render(report)
    table = page[page.index('<section id="machines">') :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    total = sum(entry.energy_kwh or 0 for entry in report.entries)
    assert [cells[0], cells[7]] == ["gaming-pc", "laptop"]
    assert float(cells[5]) + float(cells[12]) == pytest.approx(total, abs=0.02)
    assert "Energy is estimated in part." in page


def test_failures_name_the_command_that_shows_why(report: Report) -> None:
    found = failures(report)
    assert [(entry.number, one.reason) for entry, one in found] == [(7, Reason.NOT_FINITE)]
    text = Tags(render(report)).text
    assert "orch logs t0000007 --attempt 1" in text
    assert "step 1,700: the loss is nan; the last good checkpoint is step 1,500" in text


def test_the_best_checkpoint_and_how_to_go_on_from_it(report: Report) -> None:
    assert report.kept is not None
    assert report.kept.checkpoint is not None
    step, run = report.kept.checkpoint.step, report.kept.checkpoint.run
    text = Tags(render(report)).text
    assert f"orch resume {run} --at {step} --set trainer.max_steps=N" in text
    assert any("To light the window" in words for words in text)


# ------------------------------------------------------------------ curves


def points(values: list[float], attempt: int = 1, first: int = 0, begin: datetime = NIGHT) -> list[PointView]:
    at = int(begin.timestamp() * 1000)
    return [
        PointView(key=METRIC, step=first + n, time_ms=at + 1000 * n, value=value, attempt=attempt)
        for n, value in enumerate(values)
    ]


def an_attempt(number: int, start: datetime, seconds: float, **values: Any) -> AttemptView:
    plain: dict[str, Any] = {
        "number": number,
        "phase": Phase.ENDED,
        "node": "a",
        "pool": "a",
        "created_at": start,
        "started_at": start,
        "ended_at": start + timedelta(seconds=seconds),
        "reason": Reason.COMPLETED,
    }
    return AttemptView(**{**plain, **values})


def test_time_of_training_leaves_out_the_day_between_two_nights() -> None:
    later = NIGHT + timedelta(days=1)
    attempts = [an_attempt(1, NIGHT, 10), an_attempt(2, later, 10)]
    both = points([3, 2, 1]) + points([0.9, 0.8], attempt=2, first=3, begin=later)
    assert curve(both, attempts).seconds == (0, 1, 2, 10, 11)


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_machine_whose_clock_is_wrong(hours: int) -> None:
    measured = points([3, 2, 1], begin=NIGHT + timedelta(hours=hours))
    seconds = curve(measured, [an_attempt(1, NIGHT, 10)]).seconds
    assert [b - a for a, b in pairwise(seconds)] == [1, 1]
    assert 0 <= seconds[0] <= seconds[-1] <= 10


def test_points_of_an_attempt_that_is_not_known_have_a_time_too() -> None:
    assert curve(points([3, 2, 1], attempt=4), []).seconds == (0, 1, 2)


@pytest.mark.parametrize("count", [1, 2, 1999, 2000, 2001, 2003, 4001, 50_000])
def test_thinning_keeps_ends_and_extremes(count: int) -> None:
    values = [((n * 7919) % 1009) / 1009 for n in range(count)]
    values[count // 2], values[count // 3] = 5.0, -5.0 if count > 1 else 5.0
    whole = Curve(tuple(range(count)), tuple(map(float, range(count))), tuple(values))
    thin = thinned(whole, 2000)
    assert len(thin.steps) <= 2000
    assert (len(thin.steps) == count) == (count <= 2000)
    assert (thin.steps[0], thin.steps[-1]) == (0, count - 1)
    assert (max(thin.values), min(thin.values)) == (max(values), min(values))
    assert thin.steps == tuple(sorted(set(thin.steps)))
    assert all(values[step] == value for step, value in zip(thin.steps, thin.values, strict=True))


def test_the_best_point_of_a_curve() -> None:
    line = Curve((0, 1, 2), (0, 1, 2), (3.0, 1.0, 2.0))
    assert best_of(line, True) == (1, 1.0)
    assert best_of(line, False) == (0, 3.0)
    assert best_of(line, True, "last") == (2, 2.0)
    assert best_of(Curve((), (), ()), True) is None


def test_the_range_leaves_out_how_curves_begin_and_what_diverged() -> None:
    good = [
        Curve(tuple(range(50)), tuple(map(float, range(50))), (4.2, *[2 - n / 100 for n in range(49)]))
    ] * 9
    wild = Curve((0, 1, 2, 3), (0, 1, 2, 3), (4.2, 4.0, 80.0, 1e9))
    within = value_range([*good, wild], True)
    assert within is not None
    assert 1.4 < within[0] < 1.52
    assert 2.0 <= within[1] < 4
    assert value_range([wild], True) is None


def test_of_a_thousand_trials_the_best_are_drawn_and_others_of_all_ranks() -> None:
    entries = tuple(Entry(f"r{n}", f"n-{n}", "complete", number=n, value=1000.0 - n) for n in range(1000))
    many = Report("many", NIGHT, METRIC, "minimize", entries, best=999)
    drawn = to_draw(many)
    assert drawn[:3] == [999, 998, 997]
    assert len(drawn) == len(set(drawn)) == CLEAR + FAINT_CURVES
    assert min(drawn) < 10


def test_curves_of_a_sweep(report: Report) -> None:
    by_step, by_time = sweep_curves(report)
    best = report.entries[report.best or 0]
    named = [trace for trace in by_step.data if trace.get("name") == f"{best.label} (best)"]
    assert len(named) == 1
    assert named[0]["x"] == list(best.curves[METRIC].steps)
    thin = [trace for trace in by_step.data if trace.get("legendgroup") == "next" and "opacity" in trace]
    assert len(thin) == CLEAR - 1
    marks = next(trace for trace in by_step.data if trace.get("name") == "pruned here")
    assert len(marks["x"]) == sum(e.state == "pruned" for e in report.entries)
    assert by_time.layout["xaxis"]["title"]["text"] == "time of training (h)"


# ------------------------------------------------------------------ parameters


def test_slices_have_a_logarithmic_axis_where_the_search_has_one(report: Report) -> None:
    found = {figure.label: figure for figure in slices(report)}
    assert found["val/loss by learning_rate"].layout["xaxis"]["type"] == "log"
    assert found["val/loss by recipe"].layout["xaxis"]["categoryarray"] == ["nanogpt", "fast"]
    assert "type" not in found["val/loss by dropout"].layout["xaxis"]
    with_it = sum("trainer.ngrams" in e.params and e.state != "failed" for e in report.entries)
    dots = [len(trace["x"]) for trace in found["val/loss by ngrams"].data]
    assert sum(dots) == with_it


def test_parallel_coordinates_have_a_place_for_what_a_trial_does_not_have(report: Report) -> None:
    trace = parallel(report)[0].data[0]
    ngrams = next(one for one in trace["dimensions"] if one["label"] == "ngrams")
    assert ngrams["ticktext"][0] == "none"
    assert min(ngrams["values"]) == ngrams["tickvals"][0] == ngrams["range"][0] < 1
    rate = next(one for one in trace["dimensions"] if one["label"] == "learning_rate")
    assert rate["ticktext"][0] == "0.0001"
    assert rate["range"][0] <= min(rate["values"]) < max(rate["values"]) <= rate["range"][1]
    values = trace["dimensions"][-1]["values"]
    ranks = trace["line"]["color"]
    assert ranks[values.index(min(values))] == max(ranks) == trace["line"]["cmax"] == len(values) - 1


def test_importance_is_ordered_and_left_out_where_nothing_is_known(report: Report) -> None:
    bars = importance(report)[0].data[0]
    assert bars["y"][-1] == "learning_rate"
    assert bars["x"] == sorted(bars["x"])
    assert importance(replace(report, importance={})) == []


@pytest.mark.parametrize("values", [[1e-3] * 3, [0.0, 0.0], [1e-12, 1e12], [5, 5, 5]])
def test_parameters_that_hardly_vary_can_be_drawn(report: Report, values: list[float]) -> None:
    axes = (Axis("p", "p", log=True), Axis("q", "q"))
    entries = tuple(
        replace(report.entries[n], params={"p": v, "q": v}, state="complete", value=1.0)
        for n, v in enumerate(values)
    )
    same = replace(report, entries=entries, axes=axes, best=0, importance={}, kept=None)
    assert len(slices(same)) == 2
    assert len(parallel(same)[0].data[0]["dimensions"]) == 3
    assert figures(render(same))


# ------------------------------------------------------------------ machines


def test_attempts_at_the_same_time_are_beside_each_other(report: Report) -> None:
    machines = lanes(bars(report))
    assert list(machines) == ["gaming-pc", "laptop"]
    for placed in machines.values():
        for lane in {bar.lane for bar in placed}:
            row = [bar for bar in placed if bar.lane == lane]
            assert all(a.end <= b.start for a, b in pairwise(row))
    assert max(bar.lane for bar in machines["gaming-pc"]) == 1


def test_what_became_of_attempts(report: Report) -> None:
    outcomes = {bar.outcome for bar in bars(report)}
    assert outcomes == {"finished", "pruned", "failed", "saved, went on later"}
    going = replace(
        report.entries[0], state="open", attempts=(an_attempt(1, NIGHT, 5, ended_at=None, reason=None),)
    )
    assert bars(replace(report, entries=(going,)))[0].outcome == "executes"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_place_in_the_picture(report: Report, reason: Reason) -> None:
    entry = replace(report.entries[0], state="cancelled", attempts=(an_attempt(1, NIGHT, 5, reason=reason),))
    figure = gantt(replace(report, entries=(entry,)))[0]
    assert sum(len(trace["x"]) for trace in figure.data) == 1


def test_times_are_told_in_the_zone_of_the_report(report: Report) -> None:
    far = replace(report, zone=timezone(timedelta(hours=9)))
    assert min(base for trace in gantt(report)[0].data for base in trace["base"]) == "2026-03-02 22:00:00"
    assert min(base for trace in gantt(far)[0].data for base in trace["base"]) == "2026-03-03 07:00:00"
    assert "Sweep · 2026-03-03 07:00 to 2026-03-04 11:43" in Tags(render(far)).text


# ------------------------------------------------------------------ runs


def runs_report(names: tuple[str, ...] = ("laptop", "gaming-pc")) -> Report:
    details = [handed_over("aaaa0001", names[0]), detail("bbbb0002", names[1], trainer={"n_layer": 6})]
    comparison = compare(details)
    metric, direction = objective(details)
    entries = tuple(
        Entry(
            run_id=one.run.id,
            name=title,
            state=one.run.state.value,
            params={row.key: row.values[n] for row in comparison.settings},
            value=1.9 - n / 10,
            step=one.run.step,
            attempts=tuple(one.attempts),
            curves={key: Curve((0, 100), (0, 5), (4.2, 1.9 - n / 10)) for key in metrics(details, metric)},
        )
        for n, (one, title) in enumerate(zip(details, titles(details), strict=True))
    )
    return Report(
        title=" · ".join(titles(details)),
        at=NIGHT,
        metric=metric,
        direction=direction,
        entries=entries,
        best=1,
        axes=columns(comparison),
        metrics=metrics(details, metric),
        comparison=comparison,
        zone=UTC,
    )


def test_runs_side_by_side() -> None:
    report = runs_report()
    assert report.metrics == ("val/loss", "train/loss")
    assert verdict(report) == (
        "gaming-pc has the lowest val/loss: 1.8000 at step 100. Against it laptop 1.9000 (+0.1000)."
    )
    assert [part.id for part in sections(report)] == ["leaderboard", "differences", "curves", "machines"]
    page = render(report)
    assert len(figures(page)) == 5
    assert "n_layer" in Tags(page).text


def test_one_run() -> None:
    both = runs_report()
    one = replace(both, entries=both.entries[:1], best=0, comparison=None, axes=())
    assert verdict(one).startswith("laptop, succeeded: 2,000 steps in ")
    assert "on laptop and gpu" in verdict(one)
    assert "best" not in [row.get("class") for row in Tags(render(one)).all("tr")]


def test_runs_of_one_name_are_told_apart() -> None:
    assert titles([detail("aaaa0001"), detail("bbbb0002")]) == ["demo aaaa0001", "demo bbbb0002"]


# ------------------------------------------------------------------ the page


def test_every_figure_has_its_place(report: Report) -> None:
    page = render(report)
    places = {div.get("id") for div in Tags(page).all("div") if div.get("class") == "figure"}
    assert places == {figure["id"] for figure in figures(page)}
    assert len(places) == 10


def test_the_policy_names_the_scripts_and_allows_no_request(report: Report) -> None:
    page = render(report)
    policy = next(m["content"] for m in Tags(page).all("meta") if m.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    for element in ("link", "iframe", "img", "object", "embed", "base", "form"):
        assert not Tags(page).all(element)
    assert all("src" not in attributes for attributes in Tags(page).all("script"))


def hostile(report: Report, evil: str) -> Report:
    """The sweep with everything that a user can write replaced."""
    assert report.sweep is not None
    assert report.kept is not None
    assert report.kept.checkpoint is not None
    attempts = [
        tuple(
            a.model_copy(update={"node": evil, "message": evil, "device": evil, "pool": evil})
            for a in e.attempts
        )
        for e in report.entries
    ]
    entries = tuple(
        replace(e, name=evil, run_id=evil, message=evil, attempts=attempts[n], params={evil: evil})
        for n, e in enumerate(report.entries)
    )
    view = report.sweep.sweep.model_copy(update={"message": evil, "name": evil})
    found = report.kept.checkpoint.model_copy(
        update={"run": evil, "node": evil, "device": evil, "uri": evil, "metrics": {evil: 1.0}}
    )
    return replace(
        report,
        title=evil,
        metric=evil,
        entries=tuple(replace(e, curves={evil: e.curves[METRIC]}) for e in entries),
        axes=(Axis(evil, evil, choices=(evil, f"{evil}2")),),
        importance={evil: 1.0},
        links={evil: f"javascript:alert(1)//{evil}", "run": f"http://h/?q={evil}"},
        currency=evil,
        kept=replace(report.kept, checkpoint=found, sample=evil),
        sweep=report.sweep.model_copy(update={"sweep": view}),
    )  # fmt: skip


@pytest.mark.parametrize("evil", HOSTILE)
def test_nothing_of_a_user_is_markup(report: Report, evil: str) -> None:
    clean, dirty = Tags(render(report)), Tags(render(hostile(report, evil)))
    assert {tag for tag, _ in dirty.tags} <= {tag for tag, _ in clean.tags}
    assert len(dirty.all("script")) == len(clean.all("script")) == 3
    names = {name for _, attributes in dirty.tags for name in attributes}
    assert names <= {name for _, attributes in clean.tags for name in attributes}
    for anchor in dirty.all("a"):
        assert (anchor["href"] or "").startswith(("#", "http://"))
    data = figures(render(hostile(report, evil)))
    assert [strings for strings in map(_strings, data) if any("<" in one for one in strings)] == [
        strings
        for strings in map(_strings, data)
        if any(re.search("<(br|extra|/extra)>", s) for s in strings)
    ]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [one for item in value.values() for one in _strings(item)]
    return [one for item in value for one in _strings(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("evil", HOSTILE)
def test_figures_take_no_markup_but_ours(report: Report, evil: str) -> None:
    allowed = re.compile(r"<br>|<extra>|</extra>")
    for one in _strings(figures(render(hostile(report, evil)))):
        assert "<" not in allowed.sub("", one)


def test_elements_escape_what_they_are_given() -> None:
    assert el("p", "<b>", title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;</p>'
    assert el("td", el("b", "a"), None, class_=None, hidden=True) == "<td hidden><b>a</b></td>"
    assert link("javascript:alert(1)", "x") == "x"
    assert link("http://[", "x") == "x"
    assert 'href="https://a/?b=1&amp;c=2"' in link("https://a/?b=1&c=2", "x")
    with pytest.raises(ValueError, match="end tag"):
        program("a = '</SCRIPT >'")


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0, "0 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (18240, "5 h 04 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_measures_line_up() -> None:
    assert [measure(v) for v in (1.5, 0.0, 123.456789, 1e-7, 1e9, None)] == [
        "1.5000", "0.0000", "123.4568", "1e-07", "1e+09", "–",
    ]  # fmt: skip


def test_paths_are_shortened_where_they_stay_apart() -> None:
    assert short_names(["trainer.lr", "trainer.a.width", "trainer.b.width"]) == {
        "trainer.lr": "lr",
        "trainer.a.width": "trainer.a.width",
        "trainer.b.width": "trainer.b.width",
    }
