"""Curves as a picture needs them: by time of training, few enough points, a range that shows something."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from orchestrator.analysis.report.data import Curve
from orchestrator.messages import AttemptView, PointView

MOST_POINTS = 2000
"""Points of one curve that are drawn."""


def curve(points: Sequence[PointView], attempts: Sequence[AttemptView], most: int = MOST_POINTS) -> Curve:
    """The points of one metric in the order of their steps, thinned to `most`."""
    ordered = sorted(points, key=lambda point: point.step)
    begun = _begun(ordered, attempts)

    def seconds(point: PointView) -> float:
        start, before = begun[point.attempt]
        return before + point.time_ms / 1000 - start

    whole = Curve(
        tuple(point.step for point in ordered),
        tuple(map(seconds, ordered)),
        tuple(point.value for point in ordered),
    )
    return thinned(whole, most)


def _begun(points: Sequence[PointView], attempts: Sequence[AttemptView]) -> dict[int, tuple[float, float]]:
    """Number of each attempt -> (Unix time of its start by its node's clock, seconds trained before it)."""
    spans: dict[int, tuple[float, float]] = {}
    for point in points:
        at = point.time_ms / 1000
        first, last = spans.get(point.attempt, (at, at))
        spans[point.attempt] = min(first, at), max(last, at)
    found: dict[int, tuple[float, float]] = {}
    before = 0.0
    for attempt in attempts:
        if attempt.number in spans:
            found[attempt.number] = (_start(attempt, *spans[attempt.number]), before)
        if attempt.started_at is not None and attempt.ended_at is not None:
            before += max(0.0, (attempt.ended_at - attempt.started_at).total_seconds())
    return {number: found.get(number, (first, 0.0)) for number, (first, _) in spans.items()}


def _start(attempt: AttemptView, first: float, last: float) -> float:
    """When it began, by the clock that its points were measured with: another machine's, which may be wrong.

    By ours where no point then is from before its start or after its end.
    """
    if attempt.started_at is None or first < attempt.started_at.timestamp():
        return first
    late = max(0.0, last - attempt.ended_at.timestamp()) if attempt.ended_at is not None else 0.0
    return min(first, attempt.started_at.timestamp() + late)


def thinned(curve: Curve, most: int) -> Curve:
    """At most `most` (4 or more) of its points: the first and the last, and of each stretch between them the
    smallest and the largest, so that no peak is lost."""
    count = len(curve.steps)
    if count <= most:
        return curve
    stretches = (most - 2) // 2
    chosen = {0, count - 1}
    for n in range(stretches):
        stretch = range(1 + n * (count - 2) // stretches, 1 + (n + 1) * (count - 2) // stretches)
        chosen.add(min(stretch, key=curve.values.__getitem__))
        chosen.add(max(stretch, key=curve.values.__getitem__))
    places = sorted(chosen)
    return Curve(
        tuple(curve.steps[i] for i in places),
        tuple(curve.seconds[i] for i in places),
        tuple(curve.values[i] for i in places),
    )


def best_of(curve: Curve, minimize: bool, how: Literal["best", "last"] = "best") -> tuple[int, float] | None:
    """(step, value) of its best point, or of its last; None without points."""
    if not curve.steps:
        return None
    place = len(curve.steps) - 1
    if how == "best":
        place = (min if minimize else max)(range(len(curve.values)), key=curve.values.__getitem__)
    return curve.steps[place], curve.values[place]


def value_range(curves: Iterable[Curve], minimize: bool) -> tuple[float, float] | None:
    """The range in which curves tell something: without how they began, and without a few that went astray.

    None where everything may as well be shown.
    """
    shown = [curve for curve in curves if len(curve.values) > 2]
    later = sorted(value for curve in shown for value in curve.values[max(1, len(curve.values) // 20) :])
    if len(later) < 10:
        return None
    low, high = (later[0], quantile(later, 0.98)) if minimize else (quantile(later, 0.02), later[-1])
    margin = (high - low) * 0.06
    return (low - margin, high + margin) if margin > 0 and math.isfinite(margin) else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values, the one that this share of them does not exceed, between neighbours by their
    distance."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def trained(attempts: Sequence[AttemptView], now: datetime) -> float:
    """Seconds that these attempts have trained until `now`."""
    return sum(
        max(0.0, ((one.ended_at or now) - one.started_at).total_seconds())
        for one in attempts
        if one.started_at is not None
    )
