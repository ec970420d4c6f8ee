"""Points of a beat, with the attempt that measured them."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.messages_agent import Point

OWN_METRICS = "orch/"
"""Metrics of this name and below are the orchestrator's own."""
ATTEMPT_KEY = f"{OWN_METRICS}attempt"
"""Series that says which attempt, so which node and device, each step ran on."""


def with_attempt(points: Sequence[Point], number: int) -> list[Point]:
    """The points and, for each of their steps, one that names the attempt."""
    times = {point.step: point.time_ms for point in reversed(points)}
    marks = [Point(key=ATTEMPT_KEY, step=s, time_ms=t, value=float(number)) for s, t in times.items()]
    return [*points, *marks]
