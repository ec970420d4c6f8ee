"""What `orch top` asks for: the whole cluster at one look."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from orchestrator.domain.energy import EnergySource
from orchestrator.domain.sweep_states import SweepState
from orchestrator.messages import Health, Message, NodeView, RunView
from orchestrator.messages_schedules import ComingView


class TopCurve(Message):
    """A metric from the first step on, as means over stretches of steps of one length; 60 at most."""

    steps: list[int] = Field(default_factory=list)
    """Where each stretch begins."""
    values: list[float] = Field(default_factory=list)


class TopRun(Message):
    """A run that executes."""

    run: RunView
    step_s: float | None = None
    """Seconds per step over the last minute at most; None before that is known."""
    watts: float | None = None
    """What all its ranks have used of late; None where none has said."""
    curves: dict[str, TopCurve] = Field(default_factory=dict)
    """By metric."""


class TopWaiting(Message):
    """A run that waits."""

    id: str
    name: str
    user: str
    priority: int
    since: datetime
    why: str
    """In words; empty where it starts in a moment."""
    held: bool = False
    opens: datetime | None = None
    """When its hours begin; None where it is within them."""
    free: datetime | None = None
    """The first time at which there is room for it where it may run, as far as that is known. Others may go
    before it."""
    estimated: bool = False
    """Whether `free` is told from how fast runs go; else it is the latest that limits allow."""


class TopNode(Message):
    """A machine."""

    node: NodeView
    watts: float | None = None
    """What runs have used there of late; None where none has said."""


class TopBudget(Message):
    """One limit of a sweep."""

    kind: Literal["duration", "gpu_hours", "kwh"]
    used: float
    """Seconds, hours or kilowatt-hours."""
    most: float


class TopSweep(Message):
    """A sweep that has not ended, or did so in the last hour."""

    id: str
    name: str
    state: SweepState
    message: str = ""
    metric: str
    done: int
    """Trials that have ended."""
    open: int
    """Trials whose runs wait or execute."""
    total: int | None = None
    """Trials that there will be, where that is known."""
    best_trial: int | None = None
    best_value: float | None = None
    budgets: list[TopBudget] = Field(default_factory=list)


class TopEnergy(Message):
    """What all attempts have used since an instant."""

    since: datetime
    kwh: float
    source: EnergySource | None = None
    """None where nothing was used, or nobody has said."""
    cost: float | None = None
    """As far as there was a tariff."""
    currency: str | None = None
    watts: float | None = None
    """What runs have used of late, all together; None where none has said."""


class TopView(Message):
    """Everything at one moment."""

    at: datetime
    health: Health
    draining: bool = False
    """The cluster is being taken down."""
    running: list[TopRun]
    """The first 60, by when they began."""
    running_total: int
    waiting: list[TopWaiting]
    """The first 30, in the order in which they are looked at."""
    waiting_total: int
    nodes: list[TopNode]
    """By name."""
    sweeps: list[TopSweep]
    """Newest first; those that have ended last."""
    fires: list[ComingView]
    """The next due time of each schedule, in their order; 12 at most."""
    energy: TopEnergy
