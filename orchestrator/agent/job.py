"""What an agent is told when it is launched. Holds no secret: it travels through Ray."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from orchestrator.domain.admission import GRACE_S
from orchestrator.domain.limits import describe
from orchestrator.domain.states import Reason
from orchestrator.spec.models import RunSpec, Variant


class RestoreFrom(BaseModel):
    """Where the first attempt of a run begins: another run's checkpoint, or a directory on the node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str | None = None
    step: int | None = None
    """None: the newest."""
    path: str | None = None


class AgentJob(BaseModel):
    """One attempt, as the agent on the node gets it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    attempt: int
    spec: RunSpec
    variant: Variant
    node: str
    """Name of the node that was chosen."""
    controller_url: str
    store_uri: str
    """Object store as the controller names it; the node's own settings may name its mount point instead."""
    mlflow_uri: str = ""
    mlflow_run_id: str | None = None
    restore_from: RestoreFrom | None = None
    seconds_left: float | None = None
    """How long it may run, from its start; counted on, while the machine sleeps."""
    limit: Reason = Reason.TIME_LIMIT
    """Which of the run's limits that is."""
    pause_at: int | None = None
    """Step at which it saves and ends, for its sweep to compare it with others."""
    joules_left: float | None = None
    """Energy that it may use, where that is limited; of a gang, all ranks together."""
    window_grace_s: float = GRACE_S
    """Time to save where that is the end of its hours."""
    gpu_ids: tuple[int, ...] = ()
    """GPUs that the program may see, as indices into the node's own list."""
    gpu_total: int | None = None
    """Bytes of memory of the GPU that it shares with others, where that is known."""
    rank: int = 0
    world: int = 1
    """Ranks of the attempt."""
    local_rank: int = 0
    """How many lower ranks are on the same node."""
    address: str = ""
    """The node's address, as other nodes reach it."""

    @property
    def first_limit(self) -> tuple[Reason, str]:
        """The limit, also in words."""
        return self.limit, describe(self.spec, self.limit)
