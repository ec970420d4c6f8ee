"""What a sweep tells of its parameters: importance, parallel coordinates, the objective by each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.report.curves import quantile
from orchestrator.analysis.report.data import BROKEN, Axis, Entry, Report
from orchestrator.analysis.report.figure import (
    BEST,
    EARLY,
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    Figure,
    Trace,
    axis,
    layout,
    shown,
)
from orchestrator.analysis.report.words import measure, rounded, setting

MOST_SLICES = 12
"""Parameters with a picture of their own, the most important first."""
MOST_AXES = 10
"""Parameters in the parallel coordinates."""


def importance(report: Report) -> list[Figure]:
    """Bars, the most important parameter on top."""
    shares = {one.name: report.importance[one.path] for one in report.axes if one.path in report.importance}
    ordered = sorted(shares.items(), key=lambda item: item[1])[-MOST_SLICES:]
    if not ordered or not any(share > 0 for _, share in ordered):
        return []
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [shown(name) for name, _ in ordered],
        "x": [rounded(share) for _, share in ordered],
        "marker": {"color": MUTED},
        "width": 0.55,
        "text": [f"{share:.0%}" for _, share in ordered],
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"color": INK},
        "hoverinfo": "skip",
    }
    x = axis("share of the objective's variation", tickformat=".0%", rangemode="tozero", nticks=5)
    y = axis(type="category", showgrid=False, ticklabelstandoff=6)
    label = "importance of the parameters"
    plot = layout(x, y, margin={"l": 8, "r": 48, "t": 8, "b": 44})
    return [Figure("importance", label, [bars], plot, 74 + 34 * len(ordered))]


def by_importance(report: Report) -> list[Axis]:
    """The parameters, the most important first; in their own order where that is not known."""
    return sorted(report.axes, key=lambda one: -report.importance.get(one.path, 0.0))


# ------------------------------------------------------------------ slices


def slices(report: Report) -> list[Figure]:
    """The objective by each parameter."""
    entries = [entry for entry in report.entries if entry.value is not None and entry.state not in BROKEN]
    values = [entry.value for entry in entries if entry.value is not None]
    within = (_robust(values, report.minimize) or _padded(min(values), max(values))) if values else (0, 1)
    return [
        _slice(report, one, entries, within, number)
        for number, one in enumerate(by_importance(report)[:MOST_SLICES])
        if any(one.path in entry.params for entry in entries)
    ]


def _slice(
    report: Report, one: Axis, entries: Sequence[Entry], within: tuple[float, float], number: int
) -> Figure:
    having = [entry for entry in entries if one.path in entry.params]
    best = report.entries[report.best] if report.best is not None else None
    early = [entry for entry in having if entry.state == "pruned" and entry is not best]
    full = [entry for entry in having if entry.state != "pruned" and entry is not best]
    traces = [
        _dots("pruned", early, one, {"color": PAPER, "size": 6.5, "line": {"color": EARLY, "width": 1.5}}),
        _dots("whole", full, one, {"color": MUTED, "size": 7, "opacity": 0.75}),
    ]
    if best is not None and best in having:
        mark = {"color": BEST, "size": 11, "line": {"color": PAPER, "width": 1.5}}
        traces.append(_dots("best", [best], one, mark))
    x = axis(one.name, **_scale(one, having))
    y = axis(report.metric, range=list(within))
    plot = layout(x, y, showlegend=False, margin={"l": 56, "r": 10, "t": 8, "b": 44})
    return Figure(f"slice-{number}", f"{report.metric} by {one.name}", traces, plot, 240)


def _dots(name: str, entries: Sequence[Entry], one: Axis, marker: dict[str, Any]) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_place(one, entry.params[one.path]) for entry in entries],
        "y": [rounded(entry.value or 0.0) for entry in entries],
        "text": [shown(f"{setting(entry.params[one.path])}: {measure(entry.value)}") for entry in entries],
        "hovertemplate": [f"%{{text}}<extra>{shown(entry.label)}</extra>" for entry in entries],
        "marker": marker,
    }


def _place(one: Axis, value: Any) -> float | str:
    return rounded(float(value)) if one.choices is None else shown(setting(value))


def _scale(one: Axis, entries: Sequence[Entry]) -> dict[str, Any]:
    if one.choices is not None:
        names = [shown(setting(choice)) for choice in one.choices]
        return {"type": "category", "categoryorder": "array", "categoryarray": names}
    values = [float(entry.params[one.path]) for entry in entries]
    if not one.log or min(values) <= 0:
        return {"nticks": 6}
    ticks = _log_ticks(min(values), max(values), most=6)
    return {"type": "log", "tickvals": ticks, "ticktext": [setting(tick) for tick in ticks]}


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def _robust(values: Sequence[float], minimize: bool) -> tuple[float, float] | None:
    """The range without the worst tenth, where that would squeeze the others; None where it would not."""
    ordered = sorted(values)
    if len(ordered) < 10:
        return None
    low, high = quantile(ordered, 0.0 if minimize else 0.1), quantile(ordered, 0.9 if minimize else 1.0)
    span, whole = high - low, ordered[-1] - ordered[0]
    return (low - 0.08 * span, high + 0.08 * span) if 0 < span < whole / 3 else None


# ------------------------------------------------------------------ parallel coordinates


@dataclass(frozen=True)
class _Dimension:
    """One axis of the parallel coordinates: numbers, and what is written at some of them."""

    name: str
    values: list[float]
    span: tuple[float, float]
    ticks: Sequence[float]
    texts: Sequence[str]


def parallel(report: Report) -> list[Figure]:
    """Every trial with a value as a line across its parameters and its value."""
    entries = [entry for entry in report.entries if entry.value is not None and entry.state not in BROKEN]
    if len(entries) < 2 or not report.axes:
        return []
    values = [entry.value for entry in entries if entry.value is not None]
    low, high = _robust(values, report.minimize) or (min(values), max(values))
    clipped = [min(max(value, low), high) for value in values]
    dimensions = [_dimension(one, entries) for one in by_importance(report)[:MOST_AXES]]
    dimensions.append(_linear(report.metric, clipped, _wide(low, high)))
    # By rank: the fainter the worse they are; the best in its colour and, as the highest, above all others.
    order = sorted(range(len(entries)), key=lambda n: -values[n] if report.minimize else values[n])
    rank = {n: place for place, n in enumerate(order)}
    last = 1 - 0.5 / len(entries)
    colors = [(0.0, FAINT), (last, MUTED), (last, BEST), (1.0, BEST)]
    trace = {
        "type": "parcoords",
        "line": {
            "color": [rank[n] for n in range(len(entries))],
            "colorscale": colors,
            "cmin": 0,
            "cmax": len(entries) - 1,
        },
        "dimensions": [
            {
                "label": shown(one.name),
                "values": [rounded(value) for value in one.values],
                "range": [rounded(end) for end in one.span],
                "tickvals": [rounded(tick) for tick in one.ticks],
                "ticktext": [shown(written) for written in one.texts],
            }
            for one in dimensions
        ],
        "labelfont": {"size": 12, "color": INK},
        "tickfont": {"size": 11, "color": MUTED},
        "rangefont": {"size": 1, "color": "rgba(0,0,0,0)"},
        "unselected": {"line": {"color": GRID, "opacity": 0.25}},
    }
    plot = layout({}, {}, margin={"l": 64, "r": 64, "t": 44, "b": 24})
    return [Figure("parallel", "trials across their parameters", [trace], plot, 360)]


def _dimension(one: Axis, entries: Sequence[Entry]) -> _Dimension:
    raw = [entry.params.get(one.path) for entry in entries]
    if one.choices is not None:
        return _choices(one, raw)
    numbers = [float(value) for value in raw if value is not None]
    if not numbers:
        return _with_absent(_Dimension(one.name, [], (0.0, 1.0), [], []), raw, [])
    if one.log and min(numbers) > 0:
        logs = [math.log10(value) for value in numbers]
        ticks = _log_ticks(min(numbers), max(numbers))
        span = _wide(min(logs), max(logs))
        known = _Dimension(one.name, [], span, [math.log10(t) for t in ticks], [setting(t) for t in ticks])
        return _with_absent(known, raw, logs)
    return _with_absent(_linear(one.name, numbers, _wide(min(numbers), max(numbers))), raw, numbers)


def _linear(name: str, values: list[float], span: tuple[float, float]) -> _Dimension:
    ticks = _ticks(*span, whole=all(value == int(value) for value in values))
    return _Dimension(name, values, (ticks[0], ticks[-1]), ticks, [f"{tick:.6g}" for tick in ticks])


def _ticks(low: float, high: float, *, whole: bool) -> list[float]:
    """About four to ten round numbers, the first at or below `low` and the last at or above `high`."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * n for n in (5, 2, 1) if power * n <= rough), power)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [rounded(n * step) for n in range(first, last + 1)]


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that is one, with ends that differ in what :func:`rounded` leaves of them."""
    most = max(abs(low), abs(high))
    return (low, high) if high - low > 1e-4 * most else (low - 0.1 * (most or 1), high + 0.1 * (most or 1))


def _choices(one: Axis, raw: Sequence[Any]) -> _Dimension:
    names = [setting(choice) for choice in one.choices or ()]
    places = {name: float(place) for place, name in enumerate(names)}
    known = _Dimension(one.name, [], (0.0, max(1.0, len(names) - 1.0)), list(places.values()), names)
    return _with_absent(known, raw, [places.get(setting(v), 0.0) for v in raw if v is not None])


def _with_absent(known: _Dimension, raw: Sequence[Any], present: Sequence[float]) -> _Dimension:
    """With a place below all others for trials that do not have the parameter."""
    low, high = known.span
    absent = low - (high - low) * 0.15
    rest = iter(present)
    values = [absent if value is None else next(rest) for value in raw]
    if None not in raw:
        return _Dimension(known.name, values, known.span, known.ticks, known.texts)
    ticks, texts = [absent, *known.ticks], ["none", *known.texts]
    return _Dimension(known.name, values, (absent, high), ticks, texts)


def _log_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most`: 1, 2 and 5 of each power of ten, or fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        found = [rounded(tick) for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(found) <= most:
            break
    return found or [rounded(low)]
