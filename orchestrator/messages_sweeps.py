"""What travels between the client and the api about sweeps; apart, because most commands do not need it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from orchestrator.domain.energy import EnergySource
from orchestrator.domain.states import RunState
from orchestrator.domain.sweeps import SweepState, TrialState
from orchestrator.messages import Message
from orchestrator.spec.sweep import SweepSpec


class SweepRequest(Message):
    """Accept a sweep. The same key with the same spec is the same sweep."""

    spec: SweepSpec
    key: str = Field(min_length=1, max_length=200)
    source: str = ""
    """The file's text as the user wrote it, kept as an artifact."""
    user: str = ""
    schedule_id: str | None = None
    """The schedule that asks."""


class SweepSubmitted(Message):
    """Answer to a sweep's submit."""

    sweep_id: str
    name: str
    created: bool
    """False where the key had been used before with the same spec."""


class ExtendRequest(Message):
    """Let a sweep go on with a larger budget. What is None stays as it was."""

    trials: int | None = Field(default=None, ge=1, le=100_000)
    """Points in all, those that were tried included."""
    duration: float | None = Field(default=None, gt=0)
    """Seconds in all."""
    gpu_hours: float | None = Field(default=None, gt=0)
    kwh: float | None = Field(default=None, gt=0)
    parallel: int | None = Field(default=None, ge=1, le=1000)


class TrialView(Message):
    """A trial as a list shows it."""

    number: int
    point: int
    repeat: int
    run_id: str
    name: str
    params: dict[str, Any]
    state: TrialState
    run_state: RunState
    rung: int
    values: dict[int, float]
    """The objective at each rung, by the rung's number."""
    value: float | None = None
    """The objective: at the end, or so far."""
    step: int | None = None
    """The step of the run so far."""
    pool: str | None = None
    node: str | None = None
    message: str = ""
    seconds: float = 0.0
    """Time of training."""
    gpu_seconds: float = 0.0
    energy_kwh: float | None = None
    cost: float | None = None
    created_at: datetime
    ended_at: datetime | None = None


class SweepUse(Message):
    """What the trials of a sweep have used."""

    trials: int = 0
    """Points that were tried."""
    seconds: float = 0.0
    gpu_hours: float = 0.0
    kwh: float | None = None
    energy_source: EnergySource | None = None
    """How the energy is known."""
    cost: float | None = None
    currency: str | None = None


class SweepView(Message):
    """A sweep as a list shows it."""

    id: str
    name: str
    experiment: str
    state: SweepState
    message: str = ""
    metric: str
    direction: Literal["minimize", "maximize"]
    counts: dict[TrialState, int]
    """Trials by state."""
    total: int | None = None
    """Points that it will try, where that is known."""
    use: SweepUse
    best_trial: int | None = None
    best_value: float | None = None
    best_params: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime
    ended_at: datetime | None = None
    user: str = ""


class SweepDetail(Message):
    """Everything about one sweep."""

    sweep: SweepView
    spec: SweepSpec
    trials: list[TrialView]
    """By number."""
    rungs: list[int] = Field(default_factory=list)
    """Steps of the rungs, where trials are compared at rungs."""
    links: dict[str, str] = Field(default_factory=dict)
    """MLflow's pages: `run` (the sweep's), `compare` and `charts` of its trials."""
