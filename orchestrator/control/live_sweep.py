"""A sweep while it runs, and what its rounds need of others: who chooses points, and who hears of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.domain.records import RunRecord
from orchestrator.domain.sweeps import SweepRecord, TrialRecord


class Suggested(Protocol):
    """A point that a sampler chose."""

    @property
    def params(self) -> dict[str, Any]:
        """Value of each parameter, by its path in the spec."""
        ...

    @property
    def attrs(self) -> dict[str, Any]:
        """What the sampler wants to find again."""
        ...


class Searching(Protocol):
    """Chooses points; what it knows comes from the trials."""

    def ask(self, history: Sequence[TrialRecord], point: int) -> Suggested | None:
        """The next point; None where all have been tried."""
        ...


class Told(Protocol):
    """Who hears of sweeps. Repeating a word changes nothing."""

    def created(self, sweep: SweepRecord) -> None:
        """It was accepted."""
        ...

    def again(self, live: LiveSweep) -> None:
        """The controller has begun anew: what was to be said before may not have been."""
        ...

    def changed(self, sweep: SweepRecord) -> None:
        """It was paused, resumed or extended."""
        ...

    def trial_begun(self, sweep: SweepRecord, trial: TrialRecord, run: RunRecord) -> None:
        """A trial and its run were recorded."""
        ...

    def trials_ended(self, live: LiveSweep, ended: Sequence[TrialRecord]) -> None:
        """Trials have come to their ends."""
        ...

    def runs_ended(self, runs: Iterable[RunRecord]) -> None:
        """Runs were ended while they waited."""
        ...

    def ended(self, sweep: SweepRecord) -> None:
        """It has come to its end."""
        ...


@dataclass
class LiveSweep:
    """A sweep and its trials as the ledger has them, and what is known of their runs."""

    sweep: SweepRecord
    search: Searching
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    """Runs of trials that have not ended."""
    exhausted: bool = False
    """The sampler has no more points."""
    stale: bool = False
    """It may differ from the ledger."""

    @property
    def open(self) -> list[TrialRecord]:
        """Trials that have not ended, by number."""
        return [trial for trial in self.trials.values() if not trial.state.final]

    @property
    def history(self) -> list[TrialRecord]:
        """All trials by number."""
        return list(self.trials.values())

    @property
    def settled(self) -> bool:
        """Whether nothing can happen to it any more by itself."""
        return self.sweep.state.final and not self.runs

    @property
    def must_be_watched(self) -> bool:
        """Whether what runs do meanwhile can end it or its trials."""
        budget, spec = self.sweep.spec.budget, self.sweep.spec
        timed = (budget.duration, budget.gpu_hours, budget.kwh)
        return bool(self.runs) and (any(timed) or spec.pruner.kind == "median")

    @property
    def points(self) -> int:
        """Points that were tried."""
        return 1 + max((trial.point for trial in self.trials.values()), default=-1)

    @property
    def max_steps(self) -> int | None:
        """Steps of a whole trial, where that is known."""
        return self.sweep.spec.max_steps
