"""Where runs are shown: what the shipper needs of it, and how it says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from orchestrator.errors import OrchError, UnavailableError
from orchestrator.store.outbox import AnyTask, CreateRun
from orchestrator.store.spool_schema import StoredPoint


class SinkUnavailableError(UnavailableError):
    """It did not work now and may work later.

    `whole_server` is True where no other request would have fared better (refused, timed out, wrong
    credentials); False where the server answered this request with a failure of its own.
    """

    def __init__(self, message: str, *, whole_server: bool) -> None:
        super().__init__(message, remedy="Points are kept and sent once MLflow answers again.")
        self.whole_server = whole_server


class SinkRefusedError(OrchError):
    """The request itself is wrong: it will never work."""

    kind = "refused"


class TargetState(StrEnum):
    """What became of a run in the sink."""

    ACTIVE = "active"
    DELETED = "deleted"
    """Somebody moved it to the trash; it can be restored."""
    MISSING = "missing"
    """The sink does not know it (any more): its database is another one."""


@dataclass(frozen=True)
class Target:
    """A run and where it is in the sink."""

    run_id: str
    experiment_id: str
    mlflow_run_id: str


class Sink(Protocol):
    """Every method may be repeated without changing anything, and raises the two errors above."""

    def create(self, run_id: str, task: CreateRun) -> Target:
        """Create the run, or find the one that was created for `run_id` before.

        Its parameters follow when the same task is applied, so that a bad one cannot keep the run away.
        """
        ...

    def log_points(self, target: Target, points: Sequence[StoredPoint]) -> None:
        """Store points, at most :data:`MAX_POINTS`, exactly as given."""
        ...

    def apply(self, target: Target, task: AnyTask, points: Sequence[StoredPoint] = ()) -> None:
        """Carry out any task; `points` are the measurements that belong to a checkpoint."""
        ...

    def state(self, target: Target) -> TargetState:
        """Whether the run can still be written to."""
        ...


MAX_POINTS = 1000
"""Points per request (MLflow's own limit)."""
