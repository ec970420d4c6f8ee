"""What the ledger remembers of runs and attempts, as frozen values that the decisions work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.domain.energy import EnergySource
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.spec.models import RunSpec, Variant
from orchestrator.spec.window import WindowRule


@dataclass(frozen=True)
class RunRecord:
    """One accepted spec."""

    id: str
    seq: int
    """Order of acceptance."""
    key: str
    spec: RunSpec
    spec_hash: str
    source: str
    user: str
    state: RunState
    created_at: datetime
    reason: Reason | None = None
    message: str = ""
    retries_used: int = 0
    pin_pool: str | None = None
    """Pool that the user moved the run to; other variants are not considered."""
    stop: Reason | None = None
    """Why the current attempt was ordered to stop; durable, so that it outlives the controller."""
    attempt: int = 0
    """Number of the newest attempt; 0 before the first."""
    not_before: datetime | None = None
    """Backoff: no attempt before this instant."""
    restore_run: str | None = None
    restore_step: int | None = None
    restore_path: str | None = None
    seconds_used: float = 0.0
    """Time that ended attempts have spent."""
    gpu_seconds_used: float = 0.0
    """The same, times the GPUs that were granted; a share counts as its part of the GPU's memory."""
    joules_used: float = 0.0
    """Energy of all attempts, those that still execute as far as it was written down."""
    energy_source: EnergySource | None = None
    """None where no attempt has said what it used."""
    cost: float | None = None
    """Of that energy, as far as there was a tariff; None without one."""
    held: bool = False
    """Its user holds it back: nothing starts until it is released."""
    front: int = 0
    """Among runs of one priority a larger number goes first: `orch queue top` sets it."""
    avoid: tuple[tuple[str, Reason], ...] = ()
    """Nodes on which it had better not start again, and how it ended there."""
    pause_at: int | None = None
    """Step at which it saves, ends its attempt and is held, for its sweep to decide; None: it goes on to its
    end."""
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class QueuedRun:
    """What places a run that waits in the queue, without its whole spec: there may be very many."""

    id: str
    seq: int
    name: str
    experiment: str
    user: str
    created_at: datetime
    not_before: datetime | None
    held: bool
    front: int
    pin_pool: str | None
    avoid: tuple[tuple[str, Reason], ...]
    seconds_used: float
    priority: int
    max_duration: float | None
    start: str
    wait: float
    window: tuple[WindowRule, ...] | None
    max_price: float | None
    placement: tuple[Variant, ...]
    """Without the trainer's settings."""


@dataclass(frozen=True)
class RankEnd:
    """How one rank of a gang ended."""

    reason: Reason
    at: datetime
    """When its program ended, by the controller's clock."""
    message: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class Member:
    """Where one rank of a gang runs."""

    ray_id: str
    node: str
    gpu_ids: tuple[int, ...] = ()
    end: RankEnd | None = None
    """None while it counts as living."""
    joules: float = 0.0
    """Energy that it has used."""


@dataclass(frozen=True)
class AttemptRecord:
    """One launch of a run, with the resources that it was granted; of a gang, all ranks together.

    `ray_id`, `node` and `gpu_ids` are rank 0's. Of a gang, `reason`, `message`, `exit_code` and `ended_at`
    are rank 0's too until all ranks have ended; see :mod:`orchestrator.domain.gang`.
    """

    run_id: str
    number: int
    ray_id: str
    node: str
    variant_index: int
    variant: Variant
    phase: Phase
    created_at: datetime
    gpu_ids: tuple[int, ...] = ()
    """Indices of the node's GPUs that it may use."""
    members: tuple[Member, ...] = ()
    """The ranks from 1 on."""
    backfill: bool = False
    """Whether it started before a run that goes first and did not fit; it makes room once that one would."""
    reason: Reason | None = None
    message: str = ""
    exit_code: int | None = None
    device: str | None = None
    device_name: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    started_at: datetime | None = None
    """When the program was started."""
    ended_at: datetime | None = None
    timings: dict[str, float] = field(default_factory=dict)
    joules: float = 0.0
    """Energy that all ranks have used, by the last time that it was written down."""
    energy_source: EnergySource | None = None
    """None where none has said so."""
    energy_at: datetime | None = None
    """Until when that was counted."""
    cost: float | None = None
    """Of that energy, as far as there was a tariff; None without one."""

    @property
    def ended(self) -> bool:
        """True once its resources are free."""
        return self.phase == Phase.ENDED

    @property
    def abandoned(self) -> bool:
        """True where its run waits for it no longer, though nobody knows whether it has ended."""
        return self.reason == Reason.AWAY and not self.ended

    @property
    def name(self) -> str:
        """`RUN-aN`, as its folder on its node is called."""
        return f"{self.run_id}-a{self.number}"

    @property
    def actor_name(self) -> str:
        """Name of its Ray actor."""
        return self.rank_name(0)

    def rank_name(self, rank: int) -> str:
        """Name of the Ray actor of a rank."""
        name = f"run-{self.name}"
        return f"{name}-r{rank}" if rank else name


@dataclass(frozen=True)
class EventRecord:
    """Something that happened to a run."""

    run_id: str
    at: datetime
    kind: str
    text: str
