"""What the supervisor knows of its services, in a file so that the next supervisor goes on with them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.agent.identity import ProcessId, boot_id
from orchestrator.cluster.program import program_digest
from orchestrator.settings import Home, write_private


class ServicePhase(StrEnum):
    """The life of a service."""

    WAITING = "waiting"
    """Not started: something it needs does not answer, or it failed a moment ago."""
    STARTING = "starting"
    READY = "ready"
    SILENT = "silent"
    """It runs but does not answer."""


class Process(BaseModel):
    """One process of this boot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    create_time: float
    """Seconds since the machine started."""

    @property
    def id(self) -> ProcessId:
        """The same, to ask whether it lives."""
        return ProcessId(self.pid, self.create_time)


class ServiceRecord(BaseModel):
    """One service as it is now."""

    model_config = ConfigDict(extra="forbid")

    name: str
    fingerprint: str = ""
    program: str = ""
    """Digest of the program that it runs; empty where that is not ours."""
    phase: ServicePhase = ServicePhase.WAITING
    leader: Process | None = None
    """What was started; its number is the session's number."""
    vital: list[Process] = []
    """The service lives as long as all of these; empty until they are known."""
    since: datetime | None = None
    """Begin of the phase."""
    start_s: float | None = None
    """How long the last start took."""
    restarts: int = 0
    """How often it was started again."""
    failures: int = 0
    """Failed starts since it was last ready."""
    message: str = ""
    """Why it waits or is silent."""

    @property
    def outdated(self) -> bool:
        """It runs our program as it was before an update."""
        return bool(self.program) and self.program != program_digest()

    @property
    def ready(self) -> bool:
        """It answered, and has not ended since; the supervisor notices an end only a moment later."""
        return self.phase is ServicePhase.READY and all(process.id.alive() for process in self.vital)


class StackState(BaseModel):
    """All services of a machine."""

    model_config = ConfigDict(extra="forbid")

    boot_id: str
    supervisor: Process | None = None
    services: dict[str, ServiceRecord] = {}

    def supervised(self) -> bool:
        """Whether the supervisor that wrote this lives."""
        return self.supervisor is not None and self.supervisor.id.alive()

    def sessions(self) -> dict[int, float]:
        """Session number -> when it began, of everything that was started."""
        leaders = [record.leader for record in self.services.values()]
        return {leader.pid: leader.create_time for leader in leaders if leader is not None}


def load_state(home: Home) -> StackState:
    """What was written last. Empty where nothing was, or where the machine has been started again since."""
    fresh = StackState(boot_id=boot_id())
    try:
        state = StackState.model_validate_json(home.state_file.read_text())
    except (FileNotFoundError, ValidationError):
        return fresh
    return state if state.boot_id == fresh.boot_id else fresh


def save_state(home: Home, state: StackState) -> None:
    """Write it, whole or not at all."""
    write_private(home.state_file, state.model_dump_json(indent=1) + "\n")
