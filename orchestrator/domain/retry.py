"""What follows for a run from how its attempts have ended: again or not, when, and where not. Pure.

:data:`~orchestrator.domain.states.CONSEQUENCES` says which ends are tried again. A retry is paid from the
spec's `retries`. Progress refills them: an attempt that committed a step beyond the one it began from shows
that the run gets on, and failures before it count no more. So a run that crashes once a day trains to its
end, and one that crashes at the same place ends after `retries` tries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import CONSEQUENCES, Reason, Then

BACKOFF_FIRST_S = 1.0
BACKOFF_LONGEST_S = 60.0
JITTER = 0.25
"""A pause is shortened or lengthened by up to this share, so that runs which failed together do not come back
together."""
UNORDERED_PAUSE_S = 5.0
"""Before the next attempt where one saved and ended although nobody had ordered it: costs no retry, but must
not become a tight circle."""

_UNORDERED = frozenset({Reason.SHUTDOWN, Reason.ACTOR_LOST, Reason.FENCED})
NODE_TOO_SMALL = frozenset({Reason.HOST_MEMORY})
"""Ends that would most likely be repeated on the same node."""
_NODE_BROKEN = frozenset({Reason.NOT_STARTED, Reason.AGENT_LOST})


@dataclass(frozen=True)
class Decision:
    """What becomes of a run whose attempt has ended."""

    then: Then
    """Never RETRY: a retry that may still be made is QUEUE, another FAIL."""
    retries_used: int
    pause_s: float = 0.0
    """Before the next attempt."""
    gave_up: bool = False
    """It failed because no retry is left."""


def decide(
    run: RunRecord, attempt: AttemptRecord, reason: Reason, *, ordered: bool, committed: int | None
) -> Decision:
    """What follows from an attempt that ended for `reason`.

    `ordered`: whether it had been told to stop. `committed`: the highest step that it has committed, None for
    none or unknown.
    """
    then = CONSEQUENCES[reason].then
    used = 0 if progressed(attempt, committed) else run.retries_used
    if then != Then.RETRY:
        pause = UNORDERED_PAUSE_S if then == Then.QUEUE and reason in _UNORDERED and not ordered else 0.0
        return Decision(then, used, pause)
    if used >= run.spec.retries:
        return Decision(Then.FAIL, used, gave_up=True)
    return Decision(Then.QUEUE, used + 1, backoff(run.id, attempt.number, used))


def progressed(attempt: AttemptRecord, committed: int | None) -> bool:
    """Whether an attempt has committed a step beyond the one it began from."""
    return committed is not None and committed > (attempt.first_step or 0)


def backoff(run_id: str, number: int, used: int) -> float:
    """Seconds before retry number `used` + 1, the same whenever it is asked for one attempt."""
    longest = min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2.0 ** min(used, 16))
    digest = hashlib.sha256(f"{run_id}/{number}".encode()).digest()
    spread = int.from_bytes(digest[:8], "big") / 2**64
    return longest * (1 - JITTER + 2 * JITTER * spread)


def avoided(run: RunRecord, attempt: AttemptRecord, reason: Reason) -> tuple[tuple[str, Reason], ...]:
    """The nodes that a run avoids after an attempt that ended for `reason`, each with how it ended there.

    A node on which memory ran out is avoided for good, one that could not start it or lost its agent in the
    last attempt only. Of a gang it is the node of the rank that ended so, else rank 0's. What avoiding means
    is :mod:`orchestrator.domain.planner`'s to say.
    """
    kept = {node: end for node, end in run.avoid if end in NODE_TOO_SMALL}
    others = [(member.node, member.end.reason) for member in attempt.members if member.end]
    blamed = [(node, end) for node, end in others if end in NODE_TOO_SMALL | _NODE_BROKEN]
    for node, end in blamed or [(attempt.node, reason)]:
        if end in NODE_TOO_SMALL:
            kept[node] = end
        elif end in _NODE_BROKEN:
            kept.setdefault(node, end)
    return tuple(sorted(kept.items()))
