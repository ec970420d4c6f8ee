"""The ranks of one attempt: where each runs, how each ended, and what follows for all. Pure.

A gang ends as one. Once a rank has ended for any reason but success, the others are ordered to stop; when all
have ended, the attempt has, with the reason of the rank that is to blame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.contract import EXIT_SAVED
from orchestrator.domain.records import AttemptRecord, Member, RankEnd
from orchestrator.domain.states import Reason

FAILED_GRACE_S = 10.0
"""Time for the other ranks to end where one has failed: without it they can neither train nor save."""
SAVED_GRACE_S = 60.0
"""The same where it had saved: the others are about to end the same way."""
LINGER_S = 30.0
"""Time for the other ranks to finish by themselves after rank 0 has."""

_ORDERED = frozenset(
    {
        *(Reason.COMPLETED, Reason.MOVED, Reason.CANCELLED, Reason.SHUTDOWN, Reason.FENCED),
        *(Reason.PREEMPTED, Reason.UPGRADED, Reason.DRAINED, Reason.OWNER),
        *(Reason.PRUNED, Reason.SWEEP_ENDED, Reason.RUNG),
        *(Reason.TIME_LIMIT, Reason.DEADLINE, Reason.GPU_HOURS, Reason.ENERGY, Reason.WINDOW),
    }
)
"""Reasons that hold for the attempt as a whole, whichever rank says so."""


def members(attempt: AttemptRecord) -> tuple[Member, ...]:
    """All ranks in order, rank 0 first; of an attempt that is no gang, the one."""
    end = None
    if attempt.reason is not None and not attempt.abandoned:
        at = attempt.ended_at or attempt.created_at
        end = RankEnd(attempt.reason, at, attempt.message, attempt.exit_code)
    return (Member(attempt.ray_id, attempt.node, attempt.gpu_ids, end), *attempt.members)


def local_rank(attempt: AttemptRecord, rank: int) -> int:
    """How many lower ranks are on the node of this rank."""
    ranks = members(attempt)
    return sum(other.ray_id == ranks[rank].ray_id for other in ranks[:rank])


def visible_gpus(attempt: AttemptRecord, rank: int) -> tuple[int, ...]:
    """The GPUs that a rank may see, as indices of its node.

    Programs take the GPU with the number LOCAL_RANK, as torchrun has them do. So where every rank on a node
    has one GPU of its own, each sees all of them in this order. Otherwise a rank sees its own only.
    """
    ranks = members(attempt)
    here = [member.gpu_ids for member in ranks if member.ray_id == ranks[rank].ray_id]
    together = tuple(gpu for gpus in here for gpu in gpus)
    if all(len(gpus) == 1 for gpus in here) and len(set(together)) == len(together):
        return together
    return ranks[rank].gpu_ids


def noted(attempt: AttemptRecord, rank: int, end: RankEnd) -> AttemptRecord:
    """The attempt with the end of a rank; a second end of the same rank changes nothing."""
    if members(attempt)[rank].end is not None:
        return attempt
    if rank == 0:
        return replace(
            attempt, reason=end.reason, message=end.message, exit_code=end.exit_code, ended_at=end.at
        )
    ranks = list(attempt.members)
    ranks[rank - 1] = replace(ranks[rank - 1], end=end)
    return replace(attempt, members=tuple(ranks))


def over(attempt: AttemptRecord) -> bool:
    """Whether every rank has ended."""
    return all(member.end for member in members(attempt))


def stop_grace(attempt: AttemptRecord, now: datetime) -> float | None:
    """Seconds that the ranks which still run get to end, because of one that has; None: they go on."""
    first, *others = [member.end for member in members(attempt)]
    broken = [end for end in (first, *others) if end and end.reason is not Reason.COMPLETED]
    if broken:
        saved = all(end.exit_code in (0, EXIT_SAVED) for end in broken)
        return SAVED_GRACE_S if saved else FAILED_GRACE_S
    finished = first is not None and first.at + timedelta(seconds=LINGER_S) <= now
    return FAILED_GRACE_S if finished else None


def judged(attempt: AttemptRecord) -> RankEnd:
    """How an attempt of which every rank has ended, ended.

    Rank 0 finished: so did the run. Otherwise the first rank counts that did not end only because of another.
    """
    ends = [member.end for member in members(attempt)]
    assert all(ends), "every rank has ended"
    ranked = [(rank, end) for rank, end in enumerate(ends) if end]
    first = ranked[0][1]
    if first.reason is Reason.COMPLETED:
        return first
    rank, end = min(ranked, key=lambda pair: (_innocence(pair[1]), pair[1].at, pair[0]))
    if end.reason in _ORDERED:
        return first if first.reason is end.reason else end
    where = f"rank {rank} on {members(attempt)[rank].node}"
    return replace(end, message=f"{where}: {end.message}" if end.message else where)


def where(attempt: AttemptRecord) -> str:
    """The names of its nodes."""
    names: Sequence[str] = [member.node for member in members(attempt)]
    return ", ".join(dict.fromkeys(names))


def _innocence(end: RankEnd) -> int:
    """The lower, the more likely is it the cause of the others' ends."""
    if end.reason is Reason.FENCED:
        return 0
    if end.reason is Reason.COMPLETED:
        return 4
    if end.reason is Reason.RANK_LOST:
        return 3
    # Ranks agree to save, so one may have ended before its own agent heard of the order.
    return 2 if end.reason is Reason.SHUTDOWN and end.exit_code == EXIT_SAVED else 1
