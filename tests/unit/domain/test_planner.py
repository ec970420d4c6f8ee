from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.board import waiting_of
from orchestrator.domain.demand import Demand, demand_of
from orchestrator.domain.fleet import GpuState, NodeInfo, NodeReport
from orchestrator.domain.planner import Desk, Limits, Takes, plan
from orchestrator.domain.queue import Queue
from orchestrator.domain.records import RunRecord
from orchestrator.domain.rivalry import evictions
from orchestrator.domain.room import CONTEXT_BYTES, Grant, rooms_of
from orchestrator.domain.states import Reason
from orchestrator.domain.why import Verdict, explain
from orchestrator.spec.models import Variant
from tests.unit.records import NOW, node, run, spec

T = NOW.timestamp()
GIB = 2**30


def desk_of(
    runs: list[RunRecord],
    nodes: list[NodeInfo],
    grants: list[Grant] | None = None,
    limits: Limits | None = None,
    now: float = T,
    takes: Takes = lambda waiting, demand: None,
) -> Desk:
    queue = Queue()
    for one in runs:
        queue.add(waiting_of(one))
    return plan(queue, rooms_of(nodes, grants or []), limits or Limits(), now, takes=takes)


def starts(desk: Desk) -> list[tuple[str, str]]:
    return [(start.waiting.run_id, start.places[0].node) for start in desk.plan.starts]


def why(desk: Desk, one: RunRecord) -> Verdict:
    return explain(waiting_of(one), desk)


def held(name: str, where: str, seq: int = 1, **values: Any) -> Grant:
    """One CPU of a node."""
    demand = values.pop("demand", Demand(0, where, values.pop("cpus", 1.0)))
    order = values.pop("order", (0, 0, seq))
    return Grant(name, name, f"ray-{where}", demand, order, **values)


def gpu_node(memory: int = 12 * GIB, foreign: int = 0, use: float = 0.0, cpus: float = 8) -> NodeInfo:
    report = NodeReport((GpuState(0, "card", memory, foreign, use),))
    return node("gpu", gpus=1, cpus=cpus, report=report)


def test_first_variant_that_fits_wins_and_the_next_is_the_fall_back() -> None:
    both = run(spec=spec(pools=("gpu", "laptop")))
    machines = [node("laptop"), node("gpu")]
    assert starts(desk_of([both], machines)) == [(both.id, "gpu")]
    full = [held("other", "gpu", cpus=2.0)]
    assert starts(desk_of([both], machines, full)) == [(both.id, "laptop")]


def test_best_waits_for_the_first_variant_for_a_while_only() -> None:
    both = run(spec=spec(pools=("gpu", "laptop"), start="best", wait=60))
    machines, full = [node("laptop"), node("gpu")], [held("other", "gpu", cpus=2.0)]
    desk = desk_of([both], machines, full, now=T + 59)
    assert starts(desk) == []
    assert "waits for pool gpu until" in why(desk, both).why
    assert starts(desk_of([both], machines, full, now=T + 60)) == [(both.id, "laptop")]


def test_priority_then_top_then_order_of_acceptance() -> None:
    early, late = run("a", 1), run("b", 2)
    urgent, top = run("c", 3, spec=spec(priority=5)), run("d", 4, front=1)
    one = node(cpus=1)
    order = []
    waiting = [late, early, urgent, top]
    while waiting:
        ((first, _),) = starts(desk_of(waiting, [one]))
        order.append(first)
        waiting = [other for other in waiting if other.id != first]
    assert order == ["c", "d", "a", "b"]


def test_users_take_turns_and_so_do_their_experiments() -> None:
    many = [run(f"a{i}", i, user="ada", spec=spec(experiment="big")) for i in range(4)]
    small = run("a9", 9, user="ada", spec=spec(experiment="small"))
    other = run("b", 10, user="bob")
    begun = [one for one, _ in starts(desk_of([*many, small, other], [node(cpus=4)]))]
    assert begun == ["a0", "b", "a9", "a1"]


def test_one_who_holds_much_waits_for_one_who_holds_little() -> None:
    grants = [held("x", "laptop", user="ada"), held("y", "laptop", user="ada")]
    first, second = run("a", 1, user="ada"), run("b", 2, user="bob")
    assert starts(desk_of([first, second], [node(cpus=3)], grants)) == [("b", "laptop")]


def test_says_what_is_in_the_way() -> None:
    wide = run(spec=spec(placement=[Variant(pool="laptop", cpus=8)]))
    assert "it has 2 CPUs, 8 wanted" in why(desk_of([wide], [node()]), wide).why
    busy = desk_of([run()], [node()], [held("night-run", "laptop", cpus=2.0)])
    assert "0 of 2 CPUs free, 1 wanted, in use by night-run" in why(busy, run()).why
    nowhere = run(spec=spec(pools=("gpu",)))
    text = why(desk_of([nowhere], [node()]), nowhere).why
    assert "no node of pool gpu" in text
    assert "laptop" in text


def test_says_when_it_ends_where_that_is_known() -> None:
    one = run()
    busy = desk_of([one], [node()], [held("x", "laptop", cpus=2.0, ends=T + 600)])
    (variant,) = why(busy, one).variants
    assert variant.nodes[0].until == NOW + timedelta(seconds=600)


def test_where_memory_ran_out_it_goes_only_where_no_other_node_is_large_enough() -> None:
    small, large = node("a", pool="laptop", cpus=2), node("b", pool="laptop", cpus=4)
    one = run(avoid=(("a", Reason.HOST_MEMORY),), seq=1)
    other = run("other", 2)
    assert starts(desk_of([one], [small, large])) == [(one.id, "b")]
    in_use = [held("long", "b", cpus=4.0)]
    desk = desk_of([one, other], [small, large], in_use)
    assert starts(desk) == [("other", "a")], "others use the node, though they are of the same spec"
    assert "a: its memory ran out there, and another node is large enough" in why(desk, one).why
    assert "b: 0 of 4 CPUs free" in why(desk, one).why
    for alone in ([small], [small, replace(large, draining=True)]):
        assert starts(desk_of([one], alone)) == [(one.id, "a")]
    wide = run(avoid=one.avoid, spec=spec(placement=[Variant(pool="laptop", cpus=2)]))
    assert starts(desk_of([wide], [small, node("b", pool="laptop", cpus=1)])) == [(wide.id, "a")]


def test_nodes_that_are_too_few_for_a_gang_are_no_reason_to_stay_away() -> None:
    placement = [Variant(pool="laptop", cpus=1), Variant(pool="lab", cpus=1, ranks=3)]
    one = run(avoid=(("a", Reason.HOST_MEMORY),), spec=spec(placement=placement))
    laptop, lab = node("a", pool="laptop", cpus=2), node("b", pool="lab", cpus=2)
    assert starts(desk_of([one], [laptop, lab])) == [(one.id, "a")]
    assert starts(desk_of([one], [laptop, lab, replace(lab, ray_id="ray-c", name="c")])) == [(one.id, "b")]


def test_nobody_makes_room_or_keeps_a_node_where_memory_ran_out() -> None:
    small, large = node("a", pool="laptop", cpus=2), node("b", pool="laptop", cpus=2)
    one = run(avoid=(("a", Reason.HOST_MEMORY),), spec=spec(priority=5))
    grants = [held("x", "a", cpus=2.0, saved=T), held("y", "b", cpus=2.0, saved=T - 500)]
    desk = desk_of([one], [small, large], grants)
    assert [found.victim.run_id for found in evictions(desk)] == ["y"]
    assert set(desk.plan.reservations["laptop"].at) == {"ray-b"}


def test_where_it_could_not_be_started_it_goes_last() -> None:
    machines = [node("a", pool="laptop", cpus=1), node("b", pool="laptop", cpus=4), node("gpu")]
    one = run(avoid=(("a", Reason.NOT_STARTED),), spec=spec(pools=("laptop", "gpu")))
    assert starts(desk_of([one], machines)) == [(one.id, "b")], "though the fuller node is filled first"
    assert starts(desk_of([one], [machines[0], machines[2]])) == [(one.id, "gpu")]
    desk = desk_of([one], machines, [held("x", "b", cpus=4.0), held("y", "gpu", cpus=2.0)])
    assert starts(desk) == [(one.id, "a")]


def test_backoff_and_hold_are_kept() -> None:
    waiting = run(not_before=NOW + timedelta(seconds=5))
    assert starts(desk_of([waiting], [node()])) == []
    assert why(desk_of([waiting], [node()]), waiting).why == "tries again in 5 s"
    assert starts(desk_of([waiting], [node()], now=T + 5)) == [(waiting.id, "laptop")]
    back = run(held=True)
    assert starts(desk_of([back], [node()])) == []
    queue = Queue()
    queue.add(waiting_of(waiting))
    queue.add(waiting_of(replace(waiting, held=True)))
    queue.due(T + 5)
    assert queue.levels() == [], "held while it was paused"
    queue.add(waiting_of(waiting))
    queue.due(T + 5)
    assert len(queue.levels()) == 1
    assert "held back" in why(desk_of([back], [node()]), back).why


def test_a_moved_run_stays_in_its_pool() -> None:
    moved = run(spec=spec(pools=("gpu", "laptop")), pin_pool="laptop")
    assert starts(desk_of([moved], [node("laptop"), node("gpu")])) == [(moved.id, "laptop")]


def test_closed_nodes_get_nothing_and_say_why() -> None:
    one = run()
    for machine, text in (
        (node(alive=False), "it is away"),
        (node(draining=True), "it is being drained"),
        (node(excluded="3 runs failed there"), "3 runs failed there"),
        (node(report=NodeReport(busy="a game runs")), "its owner uses it: a game runs"),
    ):
        desk = desk_of([one], [machine])
        assert starts(desk) == []
        assert text in why(desk, one).why


def test_limits_of_pools_and_experiments() -> None:
    runs = [run("a", 1, spec=spec(experiment="x")), run("b", 2, spec=spec(experiment="x")), run("c", 3)]
    desk = desk_of(runs, [node(cpus=9)], limits=Limits(experiments={"x": 1}))
    assert [one for one, _ in starts(desk)] == ["a", "c"]
    assert why(desk, runs[1]).why == "experiment x is at its limit of 1"
    desk = desk_of(runs, [node(cpus=9)], limits=Limits(pools={"laptop": 2}))
    assert len(starts(desk)) == 2
    assert "pool laptop is at its limit of 2" in why(desk, runs[2]).why


def shared(run_id: str, seq: int, gib: int) -> RunRecord:
    variant = Variant(pool="gpu", gpus=1, gpu_memory=gib * GIB)
    return run(run_id, seq, spec=spec(run_id, placement=[variant]))


def test_runs_share_a_gpu_by_memory_and_why_names_the_missing() -> None:
    runs = [shared("a", 1, 5), shared("b", 2, 5), shared("c", 3, 5)]
    desk = desk_of(runs, [gpu_node()])
    assert [one for one, _ in starts(desk)] == ["a", "b"]
    missing = 3 * (5 * GIB + CONTEXT_BYTES) - 12 * GIB
    assert f"GPU 0: {missing // 2**20} MiB missing" in why(desk, runs[2]).why
    desk = desk_of(runs[:2], [gpu_node(foreign=6 * GIB)])
    assert [one for one, _ in starts(desk)] == ["a"]
    assert "6144 MiB used by others" in why(desk, runs[1]).why


def test_a_whole_gpu_is_not_shared_nor_taken_from_others() -> None:
    whole = run("w", 1, spec=spec(placement=[Variant(pool="gpu", gpus=1)]))
    assert starts(desk_of([whole], [gpu_node()])) == [("w", "gpu")]
    assert starts(desk_of([whole], [gpu_node(foreign=7 * GIB)])) == []
    assert "used by others" in why(desk_of([whole], [gpu_node(use=0.9)]), whole).why
    both = desk_of([whole, shared("s", 2, 1)], [gpu_node()])
    assert starts(both) == [("w", "gpu")]
    unknown = node("gpu", gpus=1)
    assert starts(desk_of([whole], [unknown])) == [("w", "gpu")]
    assert "memory is not known" in why(desk_of([shared("s", 2, 1)], [unknown]), shared("s", 2, 1)).why


def test_gangs_start_all_or_none_on_several_nodes() -> None:
    gang = run("g", 1, spec=spec(placement=[Variant(pool="lab", cpus=2, ranks=3)]))
    lab = [node(f"lab{i}", pool="lab") for i in range(3)]
    (start,) = desk_of([gang], lab).plan.starts
    assert {place.node for place in start.places} == {"lab0", "lab1", "lab2"}
    assert desk_of([gang], lab[:2]).plan.starts == []
    desk = desk_of([gang], lab, [held("x", "lab1")])
    assert desk.plan.starts == []
    assert "no room for 3 ranks" in why(desk, gang).why


def wide(run_id: str, seq: int, cpus: int = 4, **values: Any) -> RunRecord:
    return run(run_id, seq, spec=spec(run_id, placement=[Variant(pool="laptop", cpus=cpus)], **values))


def test_backfill_does_not_delay_the_first_in_line() -> None:
    machine = node(cpus=4)
    grants = [held("x", "laptop", cpus=2.0, ends=T + 100)]
    big, long, short = wide("big", 1), wide("long", 2, 1), wide("short", 3, 1, max_duration=90.0)
    assert starts(desk_of([big, long], [machine], grants)) == []
    desk = desk_of([big, short], [machine], grants)
    assert starts(desk) == [("short", "laptop")]
    assert desk.plan.starts[0].backfill
    assert "kept for big, which goes first" in why(desk_of([big, long], [machine], grants), long).why


def test_what_is_expected_to_end_in_time_may_go_before() -> None:
    machine = node(cpus=4)
    grants = [held("x", "laptop", cpus=2.0, ends=T + 100, estimated=True)]
    big, other = wide("big", 1), wide("other", 2, 1)
    desk = desk_of([big, other], [machine], grants, takes=lambda waiting, demand: 90.0)
    assert starts(desk) == [("other", "laptop")]
    assert desk.plan.starts[0].backfill
    desk = desk_of([big, other], [machine], grants, takes=lambda waiting, demand: 110.0)
    assert starts(desk) == []
    text = why(desk, other).why
    assert "kept for big, which goes first; this one takes about 110 s (estimate) until about" in text
    shorter = wide("shorter", 2, 1, max_duration=90.0)
    desk = desk_of([big, shorter], [machine], grants, takes=lambda waiting, demand: 110.0)
    assert starts(desk) == [("shorter", "laptop")], "its limit ends it in time, whatever is expected"


def test_nothing_goes_before_where_all_that_is_in_the_way_was_ordered_to_go() -> None:
    big, short = wide("big", 1), wide("short", 2, 1, max_duration=5.0)
    going = held("going", "laptop", cpus=2.0, ends=T + 100, stopping=True)
    assert starts(desk_of([big, short], [node(cpus=4)], [going])) == [], "it would be ordered to go, too"
    overdue = held("overdue", "laptop", cpus=3.0, ends=T - 100)
    assert starts(desk_of([big, short], [node(cpus=7)], [overdue, going])) == [], "nothing is left of it"
    stays = held("stays", "laptop", cpus=1.0, ends=T + 100)
    assert starts(desk_of([big, short], [node(cpus=4)], [going, stays])) == [("short", "laptop")]


def test_a_shorter_run_of_the_same_shape_may_go_before_though_longer_ones_may_not() -> None:
    machine = node(cpus=4)
    grants = [held("x", "laptop", cpus=2.0, ends=T + 100)]
    runs = [wide("big", 1), *(wide(f"long{i}", 2 + i, 1) for i in range(20)), wide("short", 30, 1)]
    length = {"short": 50.0, "long2": 60.0}
    desk = desk_of(runs, [machine], grants, takes=lambda one, demand: length.get(one.run_id, 500.0))
    assert starts(desk) == [("long2", "laptop")]
    assert "older runs like it do not end before big can start" in why(desk, runs[-1]).why
    assert [one.run_id for one in desk.plan.blocked] == ["big", "long0"], "one of each shape"


def test_why_tells_estimates_from_limits() -> None:
    one, at = wide("one", 1), T + 6000
    limited = why(desk_of([one], [node(cpus=4)], [held("x", "laptop", cpus=2.0, ends=at)]), one)
    assert "at the latest" in limited.why
    grants = [held("x", "laptop", cpus=2.0, ends=at, estimated=True), held("y", "laptop", ends=T + 10)]
    guessed = why(desk_of([one], [node(cpus=4)], grants), one)
    assert "until about" in guessed.why
    assert "(estimate)" in guessed.why
    assert (limited.variants[0].nodes[0].estimated, guessed.variants[0].nodes[0].estimated) == (False, True)


def test_backfill_takes_what_will_be_left_over_and_other_nodes() -> None:
    grants = [held("x", "laptop", cpus=4.0)]
    big, small, more = wide("big", 1), wide("s", 2, 1), wide("t", 3, 1)
    desk = desk_of([big, small, more], [node(cpus=5)], grants)
    assert starts(desk) == [("s", "laptop")]
    assert desk.plan.starts[0].backfill
    other = node("second", pool="laptop", cpus=2)
    desk = desk_of([big, small, more], [node(cpus=4), other], grants)
    assert starts(desk) == [("s", "second"), ("t", "second")]


def test_backfill_takes_the_gpu_that_will_be_left_over() -> None:
    cards = NodeReport(tuple(GpuState(index, "card", 12 * GIB) for index in range(2)))
    machine = node("gpu", gpus=2, cpus=4, report=cards)
    share = Demand(0, "gpu", 1.0, 1, 3 * GIB)
    grants = [
        held("going", "gpu", demand=share, gpu_ids=(0,), stopping=True),
        held("stays", "gpu", demand=share, gpu_ids=(1,)),
    ]
    first = run("first", 1, spec=spec(placement=[Variant(pool="gpu", cpus=1, gpus=1)]))
    (start,) = desk_of([first, shared("small", 2, 3)], [machine], grants).plan.starts
    assert (start.waiting.run_id, start.places[0].gpu_ids) == ("small", (1,))


def test_all_ranks_of_a_gang_keep_to_what_will_be_left_over() -> None:
    pair = [Variant(pool="laptop", cpus=1, ranks=2)]
    gang, big = run("pair", 2, spec=spec(placement=pair)), wide("big", 1)
    grants = [held("x", "laptop", cpus=3.0)]
    assert starts(desk_of([big, gang], [node(cpus=5)], grants)) == []
    assert starts(desk_of([big, gang], [node(cpus=6)], grants)) == [("pair", "laptop")]


def test_an_older_run_of_another_pool_is_in_nobodys_way() -> None:
    desk = desk_of([wide("big", 1), run("g", 2, spec=spec(pools=("gpu",)))], [node(), node("gpu")])
    assert starts(desk) == [("g", "gpu")]
    assert not desk.plan.starts[0].backfill


def test_at_most_so_many_start_at_once() -> None:
    runs = [run(f"r{i}", i) for i in range(50)]
    desk = desk_of(runs, [node(cpus=50)])
    assert len(desk.plan.starts) == 32
    assert desk.plan.more


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(-1, 1), st.integers(0, 1)), max_size=14))
def test_grants_never_exceed_a_node_and_who_waits_does_not_fit(wanted: list[tuple[int, int, int]]) -> None:
    runs = [
        run(
            f"r{i}",
            i,
            spec=spec(f"r{i}", priority=priority, placement=[Variant(pool="gpu", cpus=cpus, gpus=gpus)]),
        )
        for i, (cpus, priority, gpus) in enumerate(wanted)
    ]
    desk = desk_of(runs, [gpu_node(cpus=7)])
    started = {start.waiting.run_id: start for start in desk.plan.starts}
    assert sum(start.demand.cpus for start in started.values()) <= 7
    assert sum(start.demand.gpus for start in started.values()) <= 1
    room = desk.rooms["ray-gpu"]
    waiting = [one for one in runs if one.id not in started]
    highest = max((one.spec.priority for one in waiting), default=None)
    for one in waiting:
        if one.spec.priority == highest and not any(start.backfill for start in started.values()):
            assert not room.fits(demand_of(0, one.spec.placement[0])) or desk.plan.reservations
        assert why(desk, one).why


def test_why_is_empty_exactly_where_it_would_start() -> None:
    one = run()
    free = explain(waiting_of(one), plan(Queue(), rooms_of([node()], []), Limits(), T))
    assert free.node == "laptop"
    assert free.why == ""
