"""What follows for a run from how its attempts have ended: again or not, when, and where not. Pure.

:data:`~orchestrator.domain.states.CONSEQUENCES` says which ends are tried again. A retry is paid from the
spec's `retries`. Progress refills them: an attempt that committed a step beyond the one it began from shows
that the run gets on, and failures before it count no more. So a run that crashes once a day trains to its
end, and one that crashes at the same place ends after `retries` tries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
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
_NODE_TOO_SMALL = frozenset({Reason.HOST_MEMORY})
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


def avoided(attempts: Iterable[AttemptRecord]) -> dict[str, str]:
    """Nodes on which a run had better not start again as long as another one would do, and why, in words.

    `attempts` are the run's, oldest first. A node that was too small once is avoided for good, one that could
    not start it or lost its agent in the last attempt only.
    """
    ended = [attempt for attempt in attempts if attempt.ended and attempt.reason is not None]
    found = {a.node: "it ran out of memory there" for a in ended if a.reason in _NODE_TOO_SMALL}
    if ended and ended[-1].reason in _NODE_BROKEN:
        found.setdefault(ended[-1].node, f"its last attempt there failed: {_text(ended[-1])}")
    return found


def _text(attempt: AttemptRecord) -> str:
    return CONSEQUENCES[attempt.reason].text if attempt.reason else ""
