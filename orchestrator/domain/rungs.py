"""Which trials go on at a rung and which are ended: asynchronous successive halving, and Hyperband. Pure.

A rung is a number of steps at which trials save, wait and are compared. Of those that have reached it, one of
`factor` goes on from its checkpoint to the next, which has `factor` times the steps; the last rung is the
end of the run. A trial goes on as soon as it is among the best so far, so no trial waits for others that
are slow (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2).
Hyperband has several such races, its brackets; those of bracket `b` are first compared at rung `b`
(Li et al., Hyperband, JMLR 18, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.spec.sweep import Pruner, SweepSpec

_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_OUT: Final = (TrialState.FAILED, TrialState.CANCELLED)


@dataclass(frozen=True)
class Promotion:
    """A trial that goes on from the rung where it waits."""

    trial_number: int
    rung: int
    """The rung to go to."""


@dataclass(frozen=True)
class Verdict:
    """What happens to trials that wait at a rung. Who is in neither waits on."""

    promote: tuple[Promotion, ...] = ()
    """In order of urgency: what is furthest first, then by value."""
    prune: tuple[int, ...] = ()
    """Numbers of trials that can never go on."""


def rungs(pruner: Pruner, max_steps: int) -> tuple[int, ...]:
    """The step of each rung; the last one is the end of the run. Only the end where nothing is compared."""
    if pruner.kind not in ("asha", "hyperband") or pruner.first_steps is None:
        return (max_steps,)
    steps: list[int] = []
    step = pruner.first_steps
    while step < max_steps:
        steps.append(step)
        step *= pruner.factor
    return (*steps, max_steps)


def pool_at(pruner: Pruner, rung: int) -> str | None:
    """The pool in which trials run towards this rung; None for any placement of the base."""
    return pruner.pools[min(rung, len(pruner.pools) - 1)] if pruner.pools else None


def bracket_of(number: int, pruner: Pruner, max_steps: int) -> int:
    """The bracket of a trial, which is also the first rung that it is on its way to.

    Every bracket gets about the same number of steps: bracket b of n begins with a share of trials in
    proportion to `factor ** (n - 1 - b) / (n - b)`. The shares hold over every run of numbers, not only at
    the end, because the multiples of the golden ratio are spread evenly.
    """
    count = len(rungs(pruner, max_steps))
    if pruner.kind != "hyperband" or count == 1:
        return 0
    shares = [pruner.factor ** -float(bracket) / (count - bracket) for bracket in range(count)]
    place = number * _GOLDEN % 1.0 * sum(shares)
    for bracket, share in enumerate(shares):
        if place < share:
            return bracket
        place -= share
    return count - 1


def decide(
    trials: Sequence[TrialRecord], spec: SweepSpec, max_steps: int, more_to_come: bool, slots: int
) -> Verdict:
    """Who goes on and who is ended, of all the trials of a sweep; the same answer for the same trials.

    A trial goes on while it is among the best `n / factor` of the n that have reached its rung in its
    bracket. Once nobody can come to the rung any more, at least its best goes on, and who is not among
    those is ended. Failed and cancelled trials never count. Ties go to the lower number.

    Args:
        trials: every trial of the sweep, in any order.
        spec: the sweep's spec.
        max_steps: steps of a whole run.
        more_to_come: whether new trials may still be sampled.
        slots: at most so many go on now.
    """
    last = len(rungs(spec.pruner, max_steps)) - 1
    counted = [trial for trial in trials if trial.state not in _OUT]
    found: list[tuple[tuple[float, ...], Promotion]] = []
    pruned: list[int] = []
    for bracket in sorted({trial.bracket for trial in counted}):
        race = [trial for trial in counted if trial.bracket == bracket]
        for rung in range(bracket, last):
            ranking = _ranking(race, rung, spec.objective.direction)
            closed = not more_to_come and not _on_the_way(race, rung, pruned)
            allowed = max(len(ranking) // spec.pruner.factor, 1 if closed else 0)
            for place, (order, trial) in enumerate(ranking):
                if trial.state is not TrialState.RUNG or trial.rung != rung:
                    continue
                if place < allowed:
                    found.append(((-rung, *order), Promotion(trial.number, rung + 1)))
                elif closed:
                    pruned.append(trial.number)
    found.sort(key=lambda one: one[0])
    promoted = [promotion for _, promotion in found[: max(slots, 0)]]
    return Verdict(tuple(promoted), tuple(sorted(pruned)))


def _ranking(
    race: Iterable[TrialRecord], rung: int, direction: str
) -> list[tuple[tuple[float, float], TrialRecord]]:
    """Those that have reached a rung, best first, each with what it is ordered by.

    A trial that ended by itself before the rung, because it was good enough or learned nothing more,
    counts with its final value. Values that are missing or not finite are worse than all others.
    """
    sign = -1.0 if direction == "maximize" else 1.0
    ranking: list[tuple[tuple[float, float], TrialRecord]] = []
    for trial in race:
        value = trial.values.get(rung)
        if value is None and trial.state is TrialState.COMPLETE:
            value = trial.value
        if value is None and trial.state is TrialState.RUNG and trial.rung == rung:
            value = math.nan
        if value is not None:
            worth = sign * value if math.isfinite(value) else math.inf
            ranking.append(((worth, float(trial.number)), trial))
    return sorted(ranking, key=lambda one: one[0])


def _on_the_way(race: Iterable[TrialRecord], rung: int, pruned: Sequence[int]) -> bool:
    """Whether anybody may still come to a rung."""
    return any(
        (trial.state is TrialState.OPEN and trial.rung <= rung)
        or (trial.state is TrialState.RUNG and trial.rung < rung and trial.number not in pruned)
        for trial in race
    )
