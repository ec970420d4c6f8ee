"""What the trials of a sweep amount to: each one's objective, the best point, what was used. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.domain.energy import KWH_J, EnergySource, joined
from orchestrator.domain.limits import HOUR_S
from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.spec.sweep import Budget, Objective, SweepSpec

HOPELESS = 5
"""So many trials, and all of them failed: the sweep is given up."""


@dataclass(frozen=True)
class Reading:
    """The objective of one run."""

    value: float
    step: int
    """Where it was measured."""


@dataclass(frozen=True)
class Standing:
    """What the trials of one point say together."""

    point: int
    value: float
    """Mean of the trials' objectives."""
    spread: float
    """Their standard deviation; 0 of a single one."""
    trials: tuple[int, ...]
    """Numbers of the trials that count."""


@dataclass(frozen=True)
class Used:
    """What all trials together have used."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    joules: float | None = None
    """None where nobody has told."""
    cost: float | None = None
    source: EnergySource | None = None
    """How the joules are known."""


def total(parts: Iterable[Used]) -> Used:
    """All of them together; what nobody has told stays untold."""
    listed = list(parts)
    joules = [part.joules for part in listed if part.joules is not None]
    costs = [part.cost for part in listed if part.cost is not None]
    return Used(
        sum(part.seconds for part in listed),
        sum(part.gpu_seconds for part in listed),
        sum(joules) if joules else None,
        sum(costs) if costs else None,
        joined(*(part.source for part in listed)),
    )


def reading(
    points: Iterable[tuple[int, float]], objective: Objective, until: int | None = None
) -> Reading | None:
    """The objective from (step, value) pairs in the order of steps, up to and with the step `until`.

    None where there is no such pair.
    """
    found: Reading | None = None
    for step, value in points:
        if until is not None and step > until:
            break
        if found is None or objective.value == "last" or is_better(value, found.value, objective):
            found = Reading(value, step)
    return found


def is_better(one: float, other: float, objective: Objective) -> bool:
    """Whether `one` is strictly better."""
    return one < other if objective.direction == "minimize" else one > other


def standings(trials: Sequence[TrialRecord], objective: Objective, repeat: int = 1) -> list[Standing]:
    """Points by how good they are, best first, equals by number.

    A point counts once all of its trials have ended with a value. Trials that were pruned do not count: they
    were not measured to their end.
    """
    points: dict[int, list[TrialRecord]] = {}
    for trial in trials:
        points.setdefault(trial.point, []).append(trial)
    found = []
    for point, members in points.items():
        done = [
            (t.number, t.value) for t in members if t.state == TrialState.COMPLETE and t.value is not None
        ]
        if len(done) < repeat:
            continue
        values = [value for _, value in done]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found.append(Standing(point, statistics.fmean(values), spread, tuple(n for n, _ in done)))
    sign = 1 if objective.direction == "minimize" else -1
    return sorted(found, key=lambda standing: (sign * standing.value, standing.point))


def total_points(spec: SweepSpec) -> int | None:
    """Points that a sweep will try, unless something else ends it; None where nothing says."""
    return spec.budget.trials


def reached(trials: Sequence[TrialRecord], budget: Budget, objective: Objective, repeat: int) -> bool:
    """Whether a point is as good as the target."""
    if budget.target is None:
        return False
    best = next(iter(standings(trials, objective, repeat)), None)
    return best is not None and (
        best.value == budget.target or is_better(best.value, budget.target, objective)
    )


def spent(used: Used, budget: Budget) -> str:
    """Which part of the budget is used up, in words; empty: none."""
    if budget.duration is not None and used.seconds >= budget.duration:
        return f"its {budget.duration / HOUR_S:.3g} hours of training are used up"
    if budget.gpu_hours is not None and used.gpu_seconds >= budget.gpu_hours * HOUR_S:
        return f"its {budget.gpu_hours:g} GPU-hours are used up"
    if budget.kwh is not None and (used.joules or 0.0) >= budget.kwh * KWH_J:
        return f"its {budget.kwh:g} kWh are used up"
    return ""


def hopeless(trials: Sequence[TrialRecord]) -> bool:
    """Whether so many trials have failed, and nothing else, that the next would fail too."""
    ended = [trial for trial in trials if trial.state.final]
    good = any(trial.values or trial.state == TrialState.COMPLETE for trial in trials)
    return not good and sum(trial.state == TrialState.FAILED for trial in ended) >= HOPELESS
