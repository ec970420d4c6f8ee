"""What agents and nodes say, and what they are answered."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from orchestrator.domain.energy import EnergySource
from orchestrator.domain.states import Phase, Reason
from orchestrator.messages import GpuView, Message, Transfer


class Order(StrEnum):
    """What the controller wants of an attempt."""

    CONTINUE = "continue"
    STOP = "stop"


class Point(Message):
    """One measurement as it travels from the agent; the time was frozen when it was measured."""

    key: str
    step: int
    time_ms: int
    value: float


class LogChunk(Message):
    """Bytes of the program's output, from this offset of the attempt's log."""

    offset: int
    data: bytes


class CheckpointNote(Message):
    """A checkpoint that the agent has committed. The run log in the store is the truth; this is the news."""

    step: int
    at: datetime
    size: int
    seconds: float
    """Time from the finished directory to the commit."""
    metrics: dict[str, float] = Field(default_factory=dict)
    uri: str = ""
    sha256: str = ""


class NodeNote(Message):
    """What a node says of itself every few seconds."""

    gpus: list[GpuView] = Field(default_factory=list, max_length=64)
    busy: str = Field(default="", max_length=500)
    """Why its owner needs it now, in words; empty where it is free."""
    yields: bool = False
    """Whether what runs there has to save and go, too."""
    agents: list[str] | None = Field(default=None, max_length=10_000)
    """Attempts whose agents live there, each as `RUN-aN`; None where it does not say."""
    boot_id: str = Field(default="", max_length=100)
    """Changes whenever the machine starts."""


class Outcome(Message):
    """How an attempt ended, or one rank of it."""

    reason: Reason
    message: str = ""
    exit_code: int | None = None
    last_step: int | None = None


class Rendezvous(Message):
    """Where the ranks of a gang meet, and the checkpoint that all of them go on from. Rank 0 says it."""

    host: str
    port: int = Field(ge=1, le=65535)
    run: str | None = None
    """Whose checkpoint; None where they begin with none of the store."""
    step: int | None = None
    checkpoint: str = ""
    """Its id in the run log."""
    path: bool = False
    """They begin from the plain directory that the job names."""


class EnergyNote(Message):
    """What one rank of an attempt has used since it began."""

    joules: float = Field(ge=0, allow_inf_nan=False)
    source: EnergySource


class Beat(Message):
    """What an agent says about once a second. Repeating one changes nothing."""

    phase: Phase
    rank: int = Field(default=0, ge=0)
    """Who speaks. Only rank 0 reports the run's state, points and checkpoints."""
    pid: int
    boot_id: str = ""
    device: str | None = None
    device_name: str | None = None
    first_step: int | None = None
    """Step that this attempt began from."""
    step: int | None = None
    points: list[Point] = Field(default_factory=list)
    log: LogChunk | None = None
    checkpoints: list[CheckpointNote] = Field(default_factory=list)
    events: list[str] = Field(default_factory=list)
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds of each part of the start, by name."""
    transfer: Transfer | None = None
    energy: EnergyNote | None = None
    """None before it is known."""
    rendezvous: Rendezvous | None = None
    """Of rank 0 of a gang, once it has claimed the run and restored."""
    outcome: Outcome | None = None
    outcome_age_s: float = Field(default=0.0, ge=0)
    """Seconds since the program ended, when this was sent. No two clocks need agree for it."""


class BeatReply(Message):
    """What the controller answers."""

    order: Order = Order.CONTINUE
    reason: Reason | None = None
    """Why to stop."""
    grace_s: float = 60.0
    """Time to save before the program is killed."""
    log_offset: int = 0
    """Bytes of this attempt's log that the controller has."""
    mlflow_run_id: str | None = None
    rendezvous: Rendezvous | None = None
    """Given once every rank of a gang is there."""
