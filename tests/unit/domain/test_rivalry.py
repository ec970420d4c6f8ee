from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.demand import Demand, Shape
from orchestrator.domain.rivalry import REST_S, Running, evictions, upgrades
from orchestrator.domain.room import Grant
from tests.unit.domain.test_planner import T, desk_of, held, wide
from tests.unit.records import node, run, spec

GPU, LAPTOP = Demand(0, "gpu", 1.0, gpus=1), Demand(1, "laptop", 1.0)


def evicted(runs: list[Any], grants: list[Grant], cpus: int = 2) -> list[str]:
    return [one.victim.run_id for one in evictions(desk_of(runs, [node(cpus=cpus)], grants))]


def urgent(run_id: str = "u", cpus: int = 1) -> Any:
    return run(run_id, 9, spec=spec(run_id, priority=5, placement=wide("x", 1, cpus).spec.placement))


def test_the_victim_is_the_least_important_and_then_the_one_that_loses_least() -> None:
    low = held("low", "laptop", order=(3, 0, 1), saved=T - 900)
    lately = held("lately", "laptop", order=(0, 0, 2), saved=T - 10)
    long_ago = held("long-ago", "laptop", order=(0, 0, 3), saved=T - 500)
    assert evicted([urgent()], [lately, long_ago]) == ["lately"]
    assert evicted([urgent()], [low, lately]) == ["low"]


def test_equals_do_not_make_room_and_nobody_goes_twice() -> None:
    equal = held("equal", "laptop", order=(-5, 0, 1), cpus=2.0)
    assert evicted([urgent()], [equal]) == []
    going = held("going", "laptop", cpus=2.0, stopping=True)
    assert evicted([urgent()], [going]) == []


def test_nobody_goes_where_that_is_not_enough_or_not_needed() -> None:
    low, equal = held("low", "laptop"), held("equal", "laptop", order=(-5, 0, 1))
    assert evicted([urgent(cpus=2)], [low, equal]) == []
    both = [held("a", "laptop", saved=T), held("b", "laptop", saved=T - 100)]
    assert evicted([urgent()], both) == ["a"]
    assert sorted(evicted([urgent(cpus=2)], both)) == ["a", "b"]


def test_backfill_makes_room_for_the_run_that_the_node_is_kept_for() -> None:
    early = held("early", "laptop", order=(0, 0, 7), backfill=True)
    assert evicted([wide("first", 1, 2)], [early]) == ["early"]
    assert evicted([wide("first", 1, 2)], [replace(early, backfill=False)]) == []
    assert evicted([wide("later", 9, 2)], [early]) == []


def running(remaining: float | None = 1000.0, attempt_s: float = 100.0, demand: Demand = LAPTOP) -> Running:
    grant = held("r", demand.pool, demand=demand)
    return Running(grant, Shape((GPU, LAPTOP)), attempt_s, remaining, moves=True)


def moved(one: Running, speedup: float | None = None, *, gpus: int = 1) -> list[str]:
    desk = desk_of([], [node("gpu", gpus=gpus), node("laptop")], [one.grant])
    return [upgrade.node for upgrade in upgrades([one], desk, lambda _, demand: speedup, 15.0)]


def test_a_run_moves_up_when_it_pays() -> None:
    assert moved(running()) == ["gpu"]
    assert moved(running(), 2.0) == ["gpu"]
    assert moved(running(remaining=None)) == ["gpu"]


@pytest.mark.parametrize(
    ("one", "speedup"),
    [
        (running(), 1.2),
        (running(remaining=20.0), 10.0),
        (running(remaining=70.0), None),
        (running(attempt_s=REST_S - 1), 10.0),
        (replace(running(), moves=False), 10.0),
        (running(demand=GPU), 10.0),
    ],
)
def test_it_stays_where_it_is_otherwise(one: Running, speedup: float | None) -> None:
    assert moved(one, speedup) == []


def test_it_does_not_move_where_there_is_no_room_or_somebody_waits() -> None:
    assert moved(running(), gpus=0) == []
    one = running()
    waiting = run("w", 1, spec=spec("w", placement=[wide("x", 1, 2).spec.placement[0]]))
    desk = desk_of([waiting], [node("laptop", cpus=1), node("gpu", gpus=1)], [one.grant])
    assert [upgrade.node for upgrade in upgrades([one], desk, lambda _, demand: 9.0, 15.0)] == ["gpu"]


def test_the_order_of_the_spec_alone_is_no_reason_to_leave_a_gpu() -> None:
    laptop_first = Shape((replace(LAPTOP, index=0), replace(GPU, index=1)))
    grant = held("r", "gpu", demand=laptop_first.demands[1], gpu_ids=(0,))
    one = Running(grant, laptop_first, 100.0, 1000.0, moves=True)
    assert moved(one) == []
    assert moved(one, 3.0) == ["laptop"]
