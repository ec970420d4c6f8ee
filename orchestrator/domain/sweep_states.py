"""What a sweep and a trial can be. Apart from their records, which the command line does not need."""

from __future__ import annotations

from enum import StrEnum


class SweepState(StrEnum):
    """The life of a sweep. The last three never change again, unless it is extended."""

    RUNNING = "running"
    PAUSED = "paused"
    """Its user holds it: no new trial, no promotion; what executes goes on."""
    FINISHED = "finished"
    FAILED = "failed"
    """Its trials failed one after the other, or it could not be sampled."""
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True where nothing happens to it any more by itself."""
        return self in _FINAL_SWEEP


_FINAL_SWEEP = frozenset({SweepState.FINISHED, SweepState.FAILED, SweepState.CANCELLED})


class TrialState(StrEnum):
    """The life of a trial. Its run has a life of its own: :class:`~orchestrator.domain.states.RunState`."""

    OPEN = "open"
    """Its run waits or executes."""
    RUNG = "rung"
    """Its run has saved at a rung and waits for the sweep's verdict."""
    COMPLETE = "complete"
    PRUNED = "pruned"
    """Others did better; its run was ended early."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    """By its user, or with the sweep, or because a budget was used up."""

    @property
    def final(self) -> bool:
        """True where the trial can never change again."""
        return self not in (TrialState.OPEN, TrialState.RUNG)
