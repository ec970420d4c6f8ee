"""A sweep's points as its sampler sees them: trials that differ only in their seed are one. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_not
from statistics import fmean
from typing import Any

from orchestrator.domain.rungs import rungs
from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.spec.sweep import SweepSpec


@dataclass(frozen=True)
class Point:
    """One point and what came of it."""

    number: int
    params: Mapping[str, Any]
    attrs: Mapping[str, Any]
    """What the sampler has noted."""
    state: TrialState
    """Complete, pruned, failed, or open as long as any of its trials is not final."""
    value: float | None = None
    """The objective of a complete point: the mean of its complete trials."""
    steps: Mapping[int, float] = field(default_factory=dict)
    """The objective so far, by step, where it was compared with others before its end."""

    @property
    def measured(self) -> bool:
        """Whether a sampler can learn from it."""
        return self.state in (TrialState.COMPLETE, TrialState.PRUNED) or bool(self.steps)


class Points:
    """The points of a sweep. What it made of trials that have not changed since it gives out again."""

    def __init__(self, spec: SweepSpec) -> None:
        self._repeat = spec.repeat
        self._rungs = rungs(spec.pruner, spec.max_steps) if spec.max_steps else ()
        self._made: dict[int, tuple[list[TrialRecord], Point]] = {}

    def of(self, trials: Iterable[TrialRecord]) -> list[Point]:
        """The points of these trials, by number. Values that are not finite count as failures."""
        groups: dict[int, list[TrialRecord]] = {}
        for trial in trials:
            groups.setdefault(trial.point, []).append(trial)
        return [self._one(number, groups[number]) for number in sorted(groups)]

    def _one(self, number: int, trials: list[TrialRecord]) -> Point:
        known, made = self._made.get(number, ((), None))
        if made is None or len(known) != len(trials) or any(map(is_not, known, trials)):
            made = _point(trials, self._repeat, self._rungs)
            self._made[number] = trials, made
        return made


def points_of(trials: Iterable[TrialRecord], spec: SweepSpec) -> list[Point]:
    """The points of a sweep's trials, by number. Values that are not finite count as failures."""
    return Points(spec).of(trials)


def order(point: Point, direction: str) -> tuple[float, ...]:
    """Smaller is better: complete points by value, then those that came further, by their value there."""
    sign = -1.0 if direction == "maximize" else 1.0
    if point.value is not None:
        return (0.0, 0.0, sign * point.value, point.number)
    last = max(point.steps, default=0)
    return (1.0, -last, sign * point.steps.get(last, math.inf * sign), point.number)


def _point(trials: Sequence[TrialRecord], repeat: int, at: Sequence[int]) -> Point:
    first = min(trials, key=lambda trial: trial.repeat)
    values = [trial.value for trial in trials if trial.state is TrialState.COMPLETE and _finite(trial.value)]
    steps = _steps(first, at) if len(trials) == 1 else {}
    state, value = TrialState.FAILED, None
    if len(trials) < repeat or not all(trial.state.final for trial in trials):
        state = TrialState.OPEN
    elif values:
        state, value = TrialState.COMPLETE, fmean(value for value in values if value is not None)
    elif any(trial.state is TrialState.PRUNED for trial in trials):
        state = TrialState.PRUNED
    else:
        steps = {}
    return Point(first.point, first.params, first.attrs, state, value, steps)


def _steps(trial: TrialRecord, at: Sequence[int]) -> dict[int, float]:
    steps = {at[rung]: value for rung, value in trial.values.items() if rung < len(at) and _finite(value)}
    if trial.state is TrialState.PRUNED and trial.step is not None and trial.value is not None:
        steps.setdefault(trial.step, trial.value)
    return {step: value for step, value in steps.items() if _finite(value)}


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
