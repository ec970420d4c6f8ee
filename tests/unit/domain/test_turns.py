"""Whose turn it is while others make room: nobody goes for nothing, and a promised place is kept."""

from __future__ import annotations

from typing import Any

from orchestrator.control.board import waiting_of
from orchestrator.domain.demand import Demand
from orchestrator.domain.exchange import still_promised
from orchestrator.domain.planner import Desk, Limits, plan
from orchestrator.domain.queue import Queue
from orchestrator.domain.records import RunRecord
from orchestrator.domain.rivalry import evictions
from orchestrator.domain.room import Grant, rooms_of
from orchestrator.domain.why import explain
from orchestrator.spec.models import Variant
from tests.unit.records import NOW, node, run, spec

T = NOW.timestamp()


def waits(run_id: str, seq: int, user: str, cpus: int, priority: int = 0) -> RunRecord:
    placement = [Variant(pool="laptop", cpus=cpus)]
    return run(run_id, seq, user=user, spec=spec(run_id, placement=placement, priority=priority))


def held(name: str, user: str, cpus: float, seq: int, priority: int = 0, **values: Any) -> Grant:
    demand = Demand(0, "laptop", cpus)
    return Grant(name, name, "ray-laptop", demand, (-priority, 0, seq), user=user, **values)


def desk(cpus: int, runs: list[RunRecord], grants: list[Grant], first: tuple[str, ...] = ()) -> Desk:
    queue = Queue()
    for one in runs:
        queue.add(waiting_of(one))
    return plan(queue, rooms_of([node(cpus=cpus)], grants), Limits(), T, first=first)


def test_nobody_goes_where_it_would_be_the_turn_of_somebody_who_does_not_fit() -> None:
    """With the victim eve holds most, so it is bob's turn; without it, it would be that of her wide run."""
    stays, small = held("stays", "x", 2.0, 1), held("small", "eve", 1.0, 9, priority=-3)
    wide, other = waits("wide", 2, "eve", 3), waits("other", 3, "bob", 1)
    now = desk(3, [wide, other], [stays, small])
    assert now.plan.blocked[0].run_id == "other"
    assert evictions(now) == []
    then = desk(3, [wide, other], [stays])
    assert [start.waiting.run_id for start in then.plan.starts] == [], "the place is kept for the wide one"


def test_one_who_is_above_the_victims_is_reason_enough() -> None:
    """Without the victim it is the turn of another run of eve, which fits and is as important."""
    stays, small = held("stays", "x", 2.0, 1), held("small", "eve", 1.0, 9, priority=-3)
    hers, other = waits("hers", 2, "eve", 1), waits("other", 3, "bob", 1)
    (eviction,) = evictions(desk(3, [hers, other], [stays, small]))
    assert (eviction.victim.run_id, eviction.goes_first.run_id) == ("small", "hers")


def test_the_place_is_kept_until_the_last_victim_has_gone() -> None:
    going = held("going", "x", 1.0, 8, stopping=True)
    wide, small = waits("wide", 3, "bob", 2), waits("small", 2, "ada", 1)
    assert [start.waiting.run_id for start in desk(2, [wide, small], [going]).plan.starts] == ["small"]
    promised = still_promised({"going": "wide", "gone": "wide"}, [going])
    assert promised == {"going": "wide"}
    assert desk(2, [wide, small], [going], first=("wide",)).plan.starts == []
    assert [start.waiting.run_id for start in desk(2, [wide, small], [], ("wide",)).plan.starts] == ["wide"]


def test_a_promise_is_nothing_to_who_does_not_wait() -> None:
    runs = [waits("small", 2, "ada", 1)]
    assert [start.waiting.run_id for start in desk(2, runs, [], ("else",)).plan.starts] == ["small"]


def test_a_promised_place_is_kept_where_the_node_is_kept_for_another_run() -> None:
    """A run for the GPU goes first and leaves room beside it; there others make room for the wide one."""
    gpu = Demand(0, "laptop", 1.0, gpus=1)
    holder = Grant("holder", "holder", "ray-laptop", gpu, (-5, 0, 1), (0,))
    going = held("going", "x", 1.0, 8, stopping=True)
    placement = [Variant(pool="laptop", cpus=1, gpus=1)]
    urgent = run("urgent", 2, user="y", spec=spec("urgent", placement=placement, priority=5))
    wide, small = waits("wide", 3, "bob", 2, priority=1), waits("small", 4, "ada", 1)
    rooms = [node(cpus=3, gpus=1)]
    for grants, starts in (([holder, going], []), ([holder], ["wide"])):
        queue = Queue()
        for one in (urgent, wide, small):
            queue.add(waiting_of(one))
        found = plan(queue, rooms_of(rooms, grants), Limits(), T, first=("wide",))
        assert [start.waiting.run_id for start in found.plan.starts] == starts
        assert found.plan.blocked[0].run_id == "urgent"
        if going in grants:
            assert "kept for wide, which goes first" in explain(waiting_of(small), found).why
