"""What the figures of a report are made of."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.analysis.report import Axis, Curve, Entry, Report, render
from orchestrator.analysis.report.curve_figures import CLEAR, FAINT_CURVES, sweep_curves, to_draw
from orchestrator.analysis.report.curves import best_of, curve, thinned, value_range
from orchestrator.analysis.report.gantt import bars, gantt, lanes
from orchestrator.analysis.report.search_figures import importance, parallel, slices
from orchestrator.domain.states import Phase, Reason
from orchestrator.messages import AttemptView, PointView
from tests.report_demo import METRIC, NIGHT
from tests.unit.analysis.pages import Tags, figures

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
