"""Several ranks are one attempt: what each sees, who is to blame, when all stop."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.domain import gang
from orchestrator.domain.records import AttemptRecord, Member, RankEnd
from orchestrator.domain.states import Reason
from tests.unit.records import NOW, attempt

A, B = "ray-a", "ray-b"


def ranks(*where: tuple[str, tuple[int, ...]]) -> AttemptRecord:
    first, *others = [Member(ray_id, ray_id[-1], gpus) for ray_id, gpus in where]
    return attempt(ray_id=first.ray_id, node=first.node, gpu_ids=first.gpu_ids, members=tuple(others))


def ended(*ends: RankEnd | None) -> AttemptRecord:
    record = ranks(*[(A, ())] * len(ends))
    for rank, end in enumerate(ends):
        record = gang.noted(record, rank, end) if end else record
    return record


def end(reason: Reason, at: float = 0.0, code: int | None = 1, message: str = "") -> RankEnd:
    return RankEnd(reason, NOW + timedelta(seconds=at), message, code)


def test_local_ranks_count_on_each_node() -> None:
    record = ranks((A, ()), (B, ()), (A, ()), (A, ()), (B, ()))
    assert [gang.local_rank(record, rank) for rank in range(5)] == [0, 0, 1, 2, 1]
    assert gang.local_rank(attempt(), 0) == 0


@pytest.mark.parametrize(
    ("where", "seen"),
    [
        ([(A, (1,)), (B, (0,)), (A, (0,))], [(1, 0), (0,), (1, 0)]),
        ([(A, (0, 1)), (A, (2, 3))], [(0, 1), (2, 3)]),
        ([(A, (1,)), (A, (1,))], [(1,), (1,)]),
        ([(A, ()), (A, ())], [(), ()]),
    ],
)
def test_local_rank_finds_its_gpu_and_no_other_gang_is_seen(
    where: list[tuple[str, tuple[int, ...]]], seen: list[tuple[int, ...]]
) -> None:
    record = ranks(*where)
    assert [gang.visible_gpus(record, rank) for rank in range(len(where))] == seen


def test_a_rank_ends_once() -> None:
    record = ended(None, end(Reason.PROGRAM_KILLED))
    assert gang.noted(record, 1, end(Reason.AGENT_LOST)) == record
    assert not gang.over(record)
    assert not record.ended
    record = gang.noted(record, 0, end(Reason.RANK_LOST))
    assert gang.over(record)
    assert gang.noted(record, 0, end(Reason.AGENT_LOST)) == record


DONE, SAVED = end(Reason.COMPLETED, code=0), end(Reason.SHUTDOWN, code=75)


@pytest.mark.parametrize(
    ("ends", "later", "grace"),
    [
        ((None, None), 0, None),
        ((None, DONE), 1000, None),
        ((None, end(Reason.PROGRAM_KILLED)), 0, gang.FAILED_GRACE_S),
        ((end(Reason.NODE_LOST, code=None), None), 0, gang.FAILED_GRACE_S),
        ((None, SAVED), 0, gang.SAVED_GRACE_S),
        ((None, SAVED, end(Reason.PROGRAM_FAILED)), 0, gang.FAILED_GRACE_S),
        ((DONE, None), 1, None),
        ((DONE, None), gang.LINGER_S + 1, gang.FAILED_GRACE_S),
    ],
)
def test_when_the_others_have_to_stop(
    ends: tuple[RankEnd | None, ...], later: float, grace: float | None
) -> None:
    assert gang.stop_grace(ended(*ends), NOW + timedelta(seconds=later)) == grace


MOVED = end(Reason.MOVED, 2, code=75)


@pytest.mark.parametrize(
    ("ends", "reason", "rank"),
    [
        ((DONE, DONE), Reason.COMPLETED, 0),
        ((DONE, end(Reason.PROGRAM_KILLED)), Reason.COMPLETED, 0),
        ((end(Reason.PROGRAM_FAILED, 2), end(Reason.PROGRAM_KILLED, 1)), Reason.PROGRAM_KILLED, 1),
        ((end(Reason.PROGRAM_FAILED, 1), end(Reason.PROGRAM_KILLED, 2)), Reason.PROGRAM_FAILED, 0),
        ((end(Reason.RANK_LOST, 1), end(Reason.USER_ERROR, 2, 78)), Reason.USER_ERROR, 1),
        ((end(Reason.RANK_LOST, 1), end(Reason.RANK_LOST, 2)), Reason.RANK_LOST, 0),
        ((end(Reason.RANK_LOST, 1), DONE), Reason.RANK_LOST, 0),
        ((MOVED, end(Reason.SHUTDOWN, 1, 75)), Reason.MOVED, 0),
        ((end(Reason.SHUTDOWN, 1, 75), end(Reason.ACTOR_LOST, 2, 75)), Reason.ACTOR_LOST, 1),
        ((end(Reason.RANK_LOST, 1, 75), end(Reason.SHUTDOWN, 2, 75)), Reason.SHUTDOWN, 1),
        ((end(Reason.PROGRAM_FAILED, 1), end(Reason.FENCED, 2)), Reason.FENCED, 1),
    ],
)
def test_who_is_to_blame(ends: tuple[RankEnd, ...], reason: Reason, rank: int) -> None:
    named = [replace(one, message=f"m{number}") for number, one in enumerate(ends)]
    found = gang.judged(ended(*named))
    assert found.reason is reason
    assert found.message.endswith(f"m{rank}")


def test_a_failure_names_its_rank_and_an_order_does_not() -> None:
    killed = end(Reason.PROGRAM_KILLED, 0, -9, "killed")
    assert gang.judged(ended(end(Reason.RANK_LOST, 1), killed)).message == "rank 1 on a: killed"
    late = replace(MOVED, at=NOW + timedelta(seconds=9), exit_code=75)
    early = replace(MOVED, at=NOW, exit_code=-15)
    assert gang.judged(ended(late, early)) == late, "rank 0 speaks for all where they say the same"
