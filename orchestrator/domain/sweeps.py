"""What the ledger remembers of sweeps and their trials, as frozen values that the decisions work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.domain.sweep_states import SweepState, TrialState
from orchestrator.spec.sweep import SweepSpec

__all__ = ["SweepRecord", "SweepState", "TrialRecord", "TrialState"]


@dataclass(frozen=True)
class SweepRecord:
    """One accepted sweep."""

    id: str
    seq: int
    """Order of acceptance."""
    key: str
    spec: SweepSpec
    spec_hash: str
    source: str
    user: str
    state: SweepState
    created_at: datetime
    message: str = ""
    """Why it is in its state, in words."""
    schedule_id: str | None = None
    """The schedule that created it."""
    ended_at: datetime | None = None


@dataclass(frozen=True)
class TrialRecord:
    """One sampled point, executed as one run."""

    sweep_id: str
    number: int
    """From 0, in the order of sampling."""
    run_id: str
    point: int
    """Trials of one point differ only in their seed."""
    repeat: int
    """From 0: which of the point's trials this is."""
    params: dict[str, Any]
    """Value of each parameter that the point has, by its path in the spec."""
    state: TrialState
    created_at: datetime
    attrs: dict[str, Any] = field(default_factory=dict)
    """What the sampler wants to find again."""
    bracket: int = 0
    """Hyperband's bracket; 0 elsewhere."""
    rung: int = 0
    """The rung that it is on its way to, or has reached: see :mod:`orchestrator.domain.rungs`."""
    values: dict[int, float] = field(default_factory=dict)
    """The objective at each rung that it has reached, by the rung's number."""
    value: float | None = None
    """The objective at its end."""
    step: int | None = None
    """The step at which `value` was measured."""
    message: str = ""
    ended_at: datetime | None = None
