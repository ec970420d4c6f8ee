"""What a run and an attempt can be, why attempts end, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    """The life of a run. The last three never change again."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True where the run can never change again."""
        return self in _FINAL


_FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


class Phase(StrEnum):
    """What an attempt is doing, in order."""

    LAUNCHING = "launching"
    CLAIMING = "claiming"
    RESTORING = "restoring"
    RUNNING = "running"
    SAVING = "saving"
    ENDED = "ended"


class Reason(StrEnum):
    """Why an attempt ended. :data:`CONSEQUENCES` says what follows from each."""

    COMPLETED = "completed"
    MOVED = "moved"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    NODE_LOST = "node-lost"
    AGENT_LOST = "agent-lost"
    ACTOR_LOST = "actor-lost"
    NOT_STARTED = "not-started"
    FENCED = "fenced"
    RANK_LOST = "rank-lost"
    PROGRAM_FAILED = "program-failed"
    PROGRAM_KILLED = "program-killed"
    USER_ERROR = "user-error"
    TIME_LIMIT = "time-limit"
    STORE_FULL = "store-full"
    STORE_FAILED = "store-failed"


class Then(StrEnum):
    """What becomes of the run when its attempt has ended."""

    QUEUE = "queue"
    RETRY = "retry"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Consequence:
    """What a reason means for the run. Only :attr:`Then.RETRY` costs one of the spec's retries."""

    then: Then
    text: str


CONSEQUENCES: dict[Reason, Consequence] = {
    Reason.COMPLETED: Consequence(Then.SUCCEED, "the program finished"),
    Reason.MOVED: Consequence(Then.QUEUE, "saved, to go on elsewhere"),
    Reason.CANCELLED: Consequence(Then.CANCEL, "cancelled by its user"),
    Reason.SHUTDOWN: Consequence(Then.QUEUE, "saved, because the machine was taken down"),
    Reason.NODE_LOST: Consequence(Then.QUEUE, "its machine was lost"),
    Reason.AGENT_LOST: Consequence(Then.RETRY, "the agent that watched it was lost"),
    Reason.ACTOR_LOST: Consequence(Then.QUEUE, "saved, because Ray lost its actor"),
    Reason.NOT_STARTED: Consequence(Then.RETRY, "it could not be started"),
    Reason.FENCED: Consequence(Then.QUEUE, "a newer attempt owns the run"),
    Reason.RANK_LOST: Consequence(Then.RETRY, "another rank of it ended or could not be reached"),
    Reason.PROGRAM_FAILED: Consequence(Then.RETRY, "the program failed"),
    Reason.PROGRAM_KILLED: Consequence(Then.RETRY, "the program was killed"),
    Reason.USER_ERROR: Consequence(Then.FAIL, "the configuration or data is wrong"),
    Reason.TIME_LIMIT: Consequence(Then.FAIL, "it reached its longest duration"),
    Reason.STORE_FULL: Consequence(Then.RETRY, "the checkpoint store is full"),
    Reason.STORE_FAILED: Consequence(Then.RETRY, "the checkpoint store failed"),
}
