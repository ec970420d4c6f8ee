"""What a run and an attempt can be, why attempts end, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    """The life of a run. The last three never change again."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    UNREACHABLE = "unreachable"
    """Its agent is not heard of, and nothing says that it has ended: asleep perhaps, or off the network."""
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True where the run can never change again."""
        return self in _FINAL


_FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})

OPEN_STATES = tuple(state for state in RunState if state not in _FINAL)
"""The states in which something can still happen to a run."""
EXECUTING = frozenset({RunState.STARTING, RunState.RUNNING, RunState.UNREACHABLE, RunState.STOPPING})
"""The states in which its newest attempt owns the run."""


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
    PRUNED = "pruned"
    SWEEP_ENDED = "sweep-ended"
    RUNG = "rung"
    SHUTDOWN = "shutdown"
    DRAINED = "drained"
    OWNER = "owner"
    PREEMPTED = "preempted"
    UPGRADED = "upgraded"
    NODE_LOST = "node-lost"
    AWAY = "away"
    AGENT_LOST = "agent-lost"
    ACTOR_LOST = "actor-lost"
    NOT_STARTED = "not-started"
    FENCED = "fenced"
    RANK_LOST = "rank-lost"
    PROGRAM_FAILED = "program-failed"
    PROGRAM_KILLED = "program-killed"
    HOST_MEMORY = "host-memory"
    GPU_MEMORY = "gpu-memory"
    NOT_FINITE = "not-finite"
    USER_ERROR = "user-error"
    TIME_LIMIT = "time-limit"
    DEADLINE = "deadline"
    GPU_HOURS = "gpu-hours"
    ENERGY = "energy"
    WINDOW = "window"
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
    """What a reason means for the run. Only :attr:`Then.RETRY` costs one of the spec's retries: see
    :mod:`orchestrator.domain.retry`."""

    then: Then
    text: str


CONSEQUENCES: dict[Reason, Consequence] = {
    Reason.COMPLETED: Consequence(Then.SUCCEED, "the program finished"),
    Reason.MOVED: Consequence(Then.QUEUE, "saved, to go on elsewhere"),
    Reason.CANCELLED: Consequence(Then.CANCEL, "cancelled by its user"),
    Reason.PRUNED: Consequence(Then.CANCEL, "ended early by its sweep, because others do better"),
    Reason.SWEEP_ENDED: Consequence(Then.CANCEL, "ended early, because its sweep has ended"),
    Reason.RUNG: Consequence(Then.QUEUE, "saved, at a step where its sweep compares it with others"),
    Reason.SHUTDOWN: Consequence(Then.QUEUE, "saved, because the machine was taken down"),
    Reason.DRAINED: Consequence(Then.QUEUE, "saved, because its machine is being drained"),
    Reason.OWNER: Consequence(Then.QUEUE, "saved, because its machine's owner needs it"),
    Reason.PREEMPTED: Consequence(Then.QUEUE, "saved, to make room for a run that goes first"),
    Reason.UPGRADED: Consequence(Then.QUEUE, "saved, to go on in a better place"),
    Reason.NODE_LOST: Consequence(Then.QUEUE, "its machine was lost"),
    Reason.AWAY: Consequence(Then.QUEUE, "its machine was not heard of for too long"),
    Reason.AGENT_LOST: Consequence(Then.RETRY, "the agent that watched it was lost"),
    Reason.ACTOR_LOST: Consequence(Then.QUEUE, "saved, because Ray lost its actor"),
    Reason.NOT_STARTED: Consequence(Then.RETRY, "it could not be started"),
    Reason.FENCED: Consequence(Then.QUEUE, "a newer attempt owns the run"),
    Reason.RANK_LOST: Consequence(Then.RETRY, "another rank of it ended or could not be reached"),
    Reason.PROGRAM_FAILED: Consequence(Then.RETRY, "the program failed"),
    Reason.PROGRAM_KILLED: Consequence(Then.RETRY, "the program was killed"),
    Reason.HOST_MEMORY: Consequence(Then.RETRY, "the machine ran out of memory"),
    Reason.GPU_MEMORY: Consequence(Then.FAIL, "the GPU's memory is too small for it"),
    Reason.NOT_FINITE: Consequence(Then.FAIL, "its numbers are not finite any more"),
    Reason.USER_ERROR: Consequence(Then.FAIL, "the configuration or data is wrong"),
    Reason.TIME_LIMIT: Consequence(Then.FAIL, "it reached its longest duration"),
    Reason.DEADLINE: Consequence(Then.FAIL, "its deadline has passed"),
    Reason.GPU_HOURS: Consequence(Then.FAIL, "it has used up its GPU-hours"),
    Reason.ENERGY: Consequence(Then.FAIL, "it has used up its energy"),
    Reason.WINDOW: Consequence(Then.QUEUE, "saved, because the hours in which it may run end"),
    Reason.STORE_FULL: Consequence(Then.RETRY, "the checkpoint store is full"),
    Reason.STORE_FAILED: Consequence(Then.RETRY, "the checkpoint store failed"),
}

ENDING = frozenset(reason for reason, consequence in CONSEQUENCES.items() if consequence.then == Then.CANCEL)
"""Orders to end a run for good. They win over every other end but completion."""
