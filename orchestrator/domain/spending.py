"""What attempts and runs have used of energy, and what it has cost. Pure.

Agents say what each rank has used since it began, so to hear it twice, or not to hear it for a while, changes
nothing. What a run has used is what all of its attempts have, whatever became of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from orchestrator.domain.energy import KWH_J, Energy, joined
from orchestrator.domain.records import AttemptRecord, RunRecord


class Prices(Protocol):
    """What energy costs."""

    @property
    def currency(self) -> str:
        """Such as `EUR`."""
        ...

    def cost(self, kwh: float, begin: datetime, end: datetime) -> float:
        """Of so many kilowatt-hours that were used evenly from `begin` to `end`."""
        ...


def spend(
    run: RunRecord, attempt: AttemptRecord, heard: Mapping[int, Energy], now: datetime, prices: Prices | None
) -> tuple[RunRecord, AttemptRecord]:
    """Run and attempt once ranks have been `heard` of by `now`.

    What is new is taken for used evenly since the last time; nothing is added to the cost where there are no
    `prices`. Nothing changes where nothing is new: a rank cannot have used less than it had before.
    """
    changed = _noted(attempt, heard)
    if (changed.joules, changed.energy_source) == (attempt.joules, attempt.energy_source):
        return run, attempt
    more, since = changed.joules - attempt.joules, min(now, attempt.energy_at or attempt.created_at)
    cost = prices.cost(more / KWH_J, since, now) if prices is not None else None
    return (
        replace(
            run,
            joules_used=run.joules_used + more,
            energy_source=joined(run.energy_source, changed.energy_source),
            cost=_plus(run.cost, cost),
        ),
        replace(changed, energy_at=now, cost=_plus(attempt.cost, cost)),
    )


def _noted(attempt: AttemptRecord, heard: Mapping[int, Energy]) -> AttemptRecord:
    first = attempt.joules - sum(member.joules for member in attempt.members)
    ranks = [first, *(member.joules for member in attempt.members)]
    more = {rank: energy.joules - ranks[rank] for rank, energy in heard.items()}
    grown = {rank: joules for rank, joules in more.items() if joules > 0}
    members = tuple(
        replace(member, joules=member.joules + grown.get(rank, 0.0))
        for rank, member in enumerate(attempt.members, 1)
    )
    return replace(
        attempt,
        joules=attempt.joules + sum(grown.values()),
        members=members,
        energy_source=joined(attempt.energy_source, *(energy.source for energy in heard.values())),
    )


def _plus(before: float | None, more: float | None) -> float | None:
    return before if more is None else (before or 0.0) + more
