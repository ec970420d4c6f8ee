"""Curves of metrics, by step and by time: of a sweep the best and the rest, of runs each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from orchestrator.analysis.report.curves import best_of, thinned, value_range
from orchestrator.analysis.report.data import Curve, Report, ranked
from orchestrator.analysis.report.figure import (
    BEST,
    CYCLE,
    EARLY,
    FAINT,
    MUTED,
    PAPER,
    Figure,
    Trace,
    axis,
    layout,
    shown,
)
from orchestrator.analysis.report.words import measure, rounded

CLEAR = 20
"""Curves of a sweep that are drawn each for itself, the best first."""
FAINT_CURVES, FAINT_POINTS = 300, 80
"""Most curves of the rest, and points of each of them."""

Abscissa = Callable[[Curve], Sequence[float]]
_DASHES = ("solid", "dash", "dot", "dashdot")


def sweep_curves(report: Report) -> list[Figure]:
    """The objective by step and by time: the best in colour, the next ones thin, the rest faint."""
    places = [place for place in ranked(report) if report.metric in report.entries[place].curves]
    if not places:
        return []
    best = [place for place in places if place == report.best]
    others = [place for place in places if place != report.best]
    next_ones, rest = others[: CLEAR - 1], others[CLEAR - 1 :]

    def traces(x: Abscissa) -> list[Trace]:
        return [
            *_faint(report, rest, x),
            *_thin(report, next_ones, x),
            *_pruned(report, next_ones + rest, x),
            *chain.from_iterable(_best(report, place, x) for place in best),
        ]

    curves = [report.entries[place].curves[report.metric] for place in best + next_ones + rest]
    return _pair(report.metric, "objective", curves, traces, report.minimize)


def run_curves(report: Report, metric: str, number: int) -> list[Figure]:
    """One metric of the runs by step and by time, each run in its own colour."""
    having = [(place, entry) for place, entry in enumerate(report.entries) if metric in entry.curves]
    if not having:
        return []

    def traces(x: Abscissa) -> list[Trace]:
        return [
            _line(entry.curves[metric], x, entry.label, run_color(place), 1.8, run_dash(place))
            for place, entry in reversed(having)  # the legend reads from the last
        ]

    curves = [entry.curves[metric] for _, entry in having]
    minimize = report.minimize if metric == report.metric else ("loss" in metric or None)
    return _pair(metric, f"metric-{number}", curves, traces, minimize)


def run_color(place: int) -> str:
    """The colour of a run, by its place among those side by side."""
    return CYCLE[place % len(CYCLE)]


def run_dash(place: int) -> str:
    """How its line is drawn, once there are more runs than colours."""
    return _DASHES[place // len(CYCLE) % len(_DASHES)]


def _pair(
    metric: str,
    name: str,
    curves: Sequence[Curve],
    traces: Callable[[Abscissa], list[Trace]],
    minimize: bool | None,
) -> list[Figure]:
    unit, divisor = time_unit(max((c.seconds[-1] for c in curves if c.seconds), default=0.0))
    within = None if minimize is None else value_range(curves, minimize)
    y = axis(metric, range=list(within)) if within else axis(metric)

    def hours(curve: Curve) -> list[float]:
        return [rounded(seconds / divisor) for seconds in curve.seconds]

    return [
        Figure(
            f"{name}-step",
            f"{metric} by step",
            traces(lambda c: c.steps),
            layout(axis("step", rangemode="tozero"), y),
        ),
        Figure(
            f"{name}-time",
            f"{metric} by time of training",
            traces(hours),
            layout(axis(f"time of training ({unit})", rangemode="tozero"), y),
        ),
    ]


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which durations up to this one read best, and its seconds."""
    if seconds < 180:
        return "s", 1.0
    return ("min", 60.0) if seconds < 3 * 3600 else ("h", 3600.0)


def to_draw(report: Report) -> list[int]:
    """Places of the trials whose curves are worth their room: the best ones, and others from all ranks."""
    places = ranked(report)
    clear, rest = places[:CLEAR], places[CLEAR:]
    if len(rest) > FAINT_CURVES:
        rest = [rest[n * len(rest) // FAINT_CURVES] for n in range(FAINT_CURVES)]
    return clear + rest


def _line(
    curve: Curve, x: Abscissa, name: str, color: str, width: float, dash: str = "solid", **more: object
) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines" if len(curve.steps) > 1 else "markers",
        "name": shown(name),
        "x": list(x(curve)),
        "y": [rounded(value) for value in curve.values],
        "line": {"color": color, "width": width, "dash": dash},
        "marker": {"color": color, "size": 5},
        **more,
    }


def _best(report: Report, place: int, x: Abscissa) -> list[Trace]:
    entry = report.entries[place]
    curve = entry.curves[report.metric]
    line = _line(curve, x, f"{entry.label} (best)", BEST, 2.8)
    how = report.sweep.spec.objective.value if report.sweep else "best"
    found = best_of(curve, report.minimize, how)
    if found is None:
        return [line]
    at = curve.steps.index(found[0])
    mark = {
        "type": "scatter",
        "mode": "markers",
        "x": [x(curve)[at]],
        "y": [found[1]],
        "marker": {"color": BEST, "size": 9, "line": {"color": PAPER, "width": 2}},
        "hovertemplate": f"{measure(found[1])} at step {found[0]:,}<extra>{shown(entry.label)}</extra>",
        "showlegend": False,
    }
    return [line, mark]


def _thin(report: Report, places: Sequence[int], x: Abscissa) -> list[Trace]:
    """The next ones are one group of the legend."""
    title = "next best" if len(places) > 1 else "other"
    return [
        _line(
            report.entries[place].curves[report.metric],
            x,
            report.entries[place].label,
            MUTED,
            1.1,
            opacity=0.75,
            legendgroup="next",
            showlegend=False,
        )
        for place in places
    ] + _legend(title, MUTED, "next", bool(places))


def _legend(name: str, color: str, group: str, wanted: bool) -> list[Trace]:
    """An entry of the legend for a group of traces."""
    line = {"color": color, "width": 1.5}
    entry = {"type": "scatter", "mode": "lines", "x": [None], "y": [None], "name": name, "line": line}
    return [{**entry, "legendgroup": group}] if wanted else []


def _faint(report: Report, places: Sequence[int], x: Abscissa) -> list[Trace]:
    """All of them in one trace, with gaps between."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for place in places:
        curve = thinned(report.entries[place].curves[report.metric], FAINT_POINTS)
        xs += [*x(curve), None]
        ys += [*(rounded(value) for value in curve.values), None]
    if not places:
        return []
    line = {"color": FAINT, "width": 1}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "others",
            "x": xs,
            "y": ys,
            "line": line,
            "hoverinfo": "skip",
        }
    ]


def _pruned(report: Report, places: Sequence[int], x: Abscissa) -> list[Trace]:
    """A mark where a trial was ended early."""
    ended = [report.entries[place] for place in places if report.entries[place].state == "pruned"]
    if not ended:
        return []
    curves = [entry.curves[report.metric] for entry in ended]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "pruned here",
            "x": [x(curve)[-1] for curve in curves],
            "y": [rounded(curve.values[-1]) for curve in curves],
            "text": [shown(entry.label) for entry in ended],
            "hovertemplate": "%{text}<extra>pruned</extra>",
            "marker": {"color": PAPER, "size": 7, "line": {"color": EARLY, "width": 1.8}},
        }
    ]
