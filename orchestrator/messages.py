"""What travels between the client, the API and the agents."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.domain.energy import EnergySource
from orchestrator.domain.notice import USUAL, NoticeKind
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.spec.models import RunSpec, Variant
from orchestrator.spec.tariff import TariffSpec


class Message(BaseModel):
    """Frozen; knows all of its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


# ------------------------------------------------------------------ client -> api


class SubmitRequest(Message):
    """Accept a spec as a run. The same key with the same spec is the same run."""

    spec: RunSpec
    key: str = Field(min_length=1, max_length=200)
    source: str = ""
    """The spec file's text as the user wrote it, kept as an artifact."""
    user: str = ""


class MoveRequest(Message):
    """Save the run and go on in another pool."""

    pool: str


class Submitted(Message):
    """Answer to a submit."""

    run_id: str
    name: str
    created: bool
    """False where the key had been used before with the same spec."""


# ------------------------------------------------------------------ api -> client


class Transfer(Message):
    """A checkpoint on its way between a node and the store."""

    direction: Literal["up", "down"]
    """`up` to the store, `down` from it."""
    step: int | None = None
    done: int = 0
    """Bytes that have moved."""
    total: int | None = None
    """Bytes of the whole checkpoint, where that is known."""


class RunView(Message):
    """A run as a list shows it."""

    id: str
    name: str
    experiment: str
    state: RunState
    reason: Reason | None = None
    message: str = ""
    """Why it waits, or why it ended, in words."""
    priority: int = 0
    pool: str | None = None
    """Pool of the current or last attempt."""
    node: str | None = None
    attempt: int = 0
    step: int | None = None
    target_steps: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    """Seconds that it still has to train; for one that waits, once it has a place like those of before."""
    transfer: Transfer | None = None
    """A checkpoint that has been under way for more than a moment."""
    energy_kwh: float | None = None
    """What all attempts have used so far; None where none has said."""
    energy_source: EnergySource | None = None
    cost: float | None = None
    """Of that energy, as far as there was a tariff."""
    currency: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    user: str = ""


class AttemptView(Message):
    """One launch of a run."""

    number: int
    phase: Phase
    reason: Reason | None = None
    message: str = ""
    node: str
    pool: str
    device: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    exit_code: int | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    timings: dict[str, float] = Field(default_factory=dict)
    energy_kwh: float | None = None
    """What all ranks have used so far."""
    energy_source: EnergySource | None = None
    cost: float | None = None


class EventView(Message):
    """Something that happened to a run."""

    at: datetime
    kind: str
    text: str


class RunDetail(Message):
    """Everything about one run."""

    run: RunView
    spec: RunSpec
    attempts: list[AttemptView]
    events: list[EventView]
    metrics: dict[str, float] = Field(default_factory=dict)
    """Last value of every metric."""
    links: dict[str, str] = Field(default_factory=dict)
    """Name -> address of pages about this run."""


class ParentView(Message):
    """The checkpoint that another one went on from."""

    run: str
    step: int


class CheckpointView(Message):
    """One committed checkpoint."""

    run: str
    step: int
    attempt: int
    node: str
    device: str
    at: datetime
    size: int
    """Bytes."""
    metrics: dict[str, float] = Field(default_factory=dict)
    uri: str
    kept: bool = True
    """False where retention has removed the data."""
    tags: list[str] = Field(default_factory=list)
    """Names that people have given it; retention leaves it alone."""
    parent: ParentView | None = None
    """The checkpoint that its attempt went on from; None where it began anew."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Name -> version of the software that wrote it."""
    sent: int = 0
    """Bytes that were stored for it; the rest of its files an earlier one has as well."""


class TagRequest(Message):
    """Which checkpoint gets a name."""

    step: int = Field(ge=0)


class GarbageRequest(Message):
    """Whether to delete, or only to tell."""

    dry_run: bool = False


class GarbageView(Message):
    """What was collected, or would be."""

    run: str
    """Empty for unfinished writes and compiled steps, which belong to no run."""
    name: str = ""
    """Empty where the ledger does not know the run, and for unfinished writes."""
    objects: int = 0
    size: int = 0
    """Bytes."""
    problem: str = ""
    """Why nothing could be done."""


class GpuView(Message):
    """One GPU of a node."""

    index: int = Field(ge=0)
    """Its place among the GPUs that the node offers, from 0."""
    name: str = Field(max_length=200)
    memory: int = Field(ge=0)
    """Bytes."""
    foreign_memory: int = Field(default=0, ge=0)
    """Bytes that processes which are not ours have taken."""
    foreign_use: float = Field(default=0.0, ge=0, le=1)
    """Share of the time in which such processes keep it busy."""


class NodeView(Message):
    """One machine of the cluster."""

    name: str
    pool: str
    state: str
    """`ready`, or `lost` where Ray has declared it dead."""
    address: str = ""
    cpus: float = 0
    cpus_used: float = 0
    gpus: float = 0
    gpus_used: float = 0
    memory: int = 0
    """Bytes that the node offers to runs."""
    runs: list[str] = Field(default_factory=list)
    gpu_states: list[GpuView] = Field(default_factory=list)
    """As the node said last; empty where it has not said anything for a while."""
    closed: str = ""
    """Why nothing new starts there, in words; empty where it may."""
    draining: bool = False
    drained: bool = False
    """It is being drained, and nothing runs there any more."""
    excluded: str = ""
    """Why it is passed over for a while: runs have failed there."""
    away_since: datetime | None = None
    """Since when nothing is heard of it, though Ray has not given it up: asleep perhaps, or off the network;
    None where it is heard."""
    busy: str = ""
    """What its owner uses it for, in words; empty where it is free."""
    yields: bool = False
    """Whether what runs there goes while its owner uses it."""
    silent_s: float | None = None
    """Seconds since it last spoke of itself; None where it never has since the controller started."""


class PlanLine(Message):
    """What one variant would meet now."""

    variant: Variant
    node: str | None
    """Where it would start now; None where it would wait."""
    why: str


class PlanView(Message):
    """What would happen to a spec."""

    lines: list[PlanLine]
    resolved: RunSpec
    ahead: int = 0
    """Runs that go first."""
    restore: str | None = None
    """Checkpoint that it would begin from."""


class WhyNode(Message):
    """What one node says to one variant."""

    node: str
    why: str
    """Empty where it fits."""
    until: datetime | None = None
    """When that is expected to end, where it is known."""
    estimated: bool = False
    """Whether `until` is told from how fast runs go; else it is the latest that limits allow."""


class WhyVariant(Message):
    """What one variant meets."""

    variant: Variant
    node: str | None
    """Where it would start now."""
    why: str
    nodes: list[WhyNode] = Field(default_factory=list)


class WhyView(Message):
    """Why a run waits; without variants where it does not."""

    run: RunView
    first: str = ""
    """What stands in the way of all variants."""
    variants: list[WhyVariant] = Field(default_factory=list)


class LimitRequest(Message):
    """Most attempts at a time in a pool or of an experiment; None takes the limit away."""

    kind: Literal["pool", "experiment"]
    name: str = Field(min_length=1, max_length=63)
    most: int | None = Field(default=None, ge=0)


class LimitsView(Message):
    """Limits that are set, by name."""

    pools: dict[str, int] = Field(default_factory=dict)
    experiments: dict[str, int] = Field(default_factory=dict)


class TariffRequest(Message):
    """The tariff to set; None takes it away."""

    tariff: TariffSpec | None = None


class TariffView(Message):
    """What electricity costs."""

    tariff: TariffSpec | None = None
    price: float | None = None
    """Of a kWh now."""
    until: datetime | None = None
    """When that changes, where it does so within a week."""


class NotifyRequest(Message):
    """Tell somebody of what happens. The address is a secret."""

    name: str = Field(default="", max_length=63)
    """Empty: after the service."""
    url: str | None = Field(default=None, max_length=4000, repr=False)
    """As Apprise writes it; this or `url_env`."""
    url_env: str | None = Field(default=None, max_length=200)
    """Variable of the controller's environment that has it."""
    on: list[NoticeKind] = Field(default_factory=lambda: list(USUAL), min_length=1)
    runs: list[str] = Field(default_factory=list)
    """Only runs with such names, as in `lr-*`."""
    experiments: list[str] = Field(default_factory=list)


class NotifyView(Message):
    """One target of notifications."""

    name: str
    shown: str
    """Its address without what is secret about it."""
    on: list[NoticeKind]
    runs: list[str] = Field(default_factory=list)
    experiments: list[str] = Field(default_factory=list)
    waiting: int = 0
    """Notifications that have not arrived yet."""
    error: str = ""
    """Why not."""


class NotifyTest(Message):
    """Which targets to try; all where none is named."""

    names: list[str] = Field(default_factory=list)


class NotifySent(Message):
    """What came of trying a target."""

    name: str
    shown: str
    arrived: bool
    text: str = ""
    """Why it did not arrive."""
    seconds: float


class PointView(Message):
    """One measurement."""

    key: str
    step: int
    time_ms: int
    value: float
    attempt: int = 0


class LogPage(Message):
    """A piece of one attempt's output."""

    attempt: int
    offset: int
    """Where `data` begins in the attempt's output."""
    data: bytes
    next_offset: int
    ended: bool
    """True where the attempt is over and nothing follows `next_offset`."""
    last_attempt: int
    """Number of the run's newest attempt; 0 before the first."""


class Health(Message):
    """Who answers."""

    version: str
    cluster_id: str
    ray_version: str = ""
    python_version: str = ""
    store_uri: str = ""
    store_id: str = ""
    """Identity of the object store, so that a joining node can tell that it sees the same one."""
    mlflow_url: str = ""
    ray_address: str = ""
    ray_connected: bool = False
    mlflow_connected: bool | None = None
    """None where there is no MLflow."""
    mlflow_pending: int = 0
    """Points that MLflow does not have yet."""
    mlflow_error: str = ""


class Problem(Message):
    """Body of every error answer."""

    kind: str
    message: str
    remedy: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
