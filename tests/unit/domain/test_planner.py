from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.planner import NodeLoad, loads, plan
from orchestrator.domain.states import Phase
from orchestrator.spec.models import Variant
from tests.unit.records import NOW, attempt, node, run, spec


def test_first_variant_that_fits_wins() -> None:
    both = run(spec=spec(pools=("gpu", "laptop")))
    (verdict,) = plan([both], [NodeLoad(node("laptop")), NodeLoad(node("gpu"))], NOW)
    assert verdict.chosen is not None
    assert verdict.chosen.variant.pool == "gpu"


def test_falls_back_to_the_next_variant() -> None:
    both = run(spec=spec(pools=("gpu", "laptop")))
    full = NodeLoad(node("gpu"), cpus_used=2, runs=("other",))
    (verdict,) = plan([both], [NodeLoad(node("laptop")), full], NOW)
    assert verdict.chosen is not None
    assert verdict.chosen.node is not None
    assert verdict.chosen.node.name == "laptop"


def test_priority_then_order_of_acceptance() -> None:
    early, late = run("a", 1), run("b", 2)
    urgent = run("c", 3, spec=spec(priority=5))
    verdicts = plan([late, early, urgent], [NodeLoad(node())], NOW)
    assert [v.run_id for v in verdicts] == ["c", "a", "b"]
    assert [v.chosen is not None for v in verdicts] == [True, True, False]


def test_says_what_is_in_the_way() -> None:
    wide = run(spec=spec(placement=[Variant(pool="laptop", cpus=8)]))
    (verdict,) = plan([wide], [NodeLoad(node())], NOW)
    assert "it has 2 CPUs, 8 wanted" in verdict.why
    busy = NodeLoad(node(), cpus_used=2, runs=("night-run",))
    (verdict,) = plan([run()], [busy], NOW)
    assert "0 of 2 CPUs free, 1 wanted, in use by night-run" in verdict.why
    (verdict,) = plan([run(spec=spec(pools=("gpu",)))], [NodeLoad(node())], NOW)
    assert "no node of pool gpu" in verdict.why
    assert "laptop" in verdict.why


def test_backoff_is_kept() -> None:
    waiting = run(not_before=NOW + timedelta(seconds=5))
    assert plan([waiting], [NodeLoad(node())], NOW)[0].chosen is None
    assert plan([waiting], [NodeLoad(node())], NOW + timedelta(seconds=5))[0].chosen is not None


def test_a_moved_run_stays_in_its_pool() -> None:
    moved = run(spec=spec(pools=("gpu", "laptop")), pin_pool="laptop")
    (verdict,) = plan([moved], [NodeLoad(node("laptop")), NodeLoad(node("gpu"))], NOW)
    assert verdict.chosen is not None
    assert verdict.chosen.variant.pool == "laptop"


def test_resources_count_until_the_attempt_has_ended() -> None:
    busy, over = attempt("a"), replace(attempt("b"), phase=Phase.ENDED)
    (load,) = loads([node(), node("lost", alive=False)], [busy, over], {"a": "first"})
    assert (load.cpus_used, load.runs) == (1, ("first",))


@given(
    demands=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(-2, 2)), max_size=12),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=4),
)
def test_never_grants_more_than_there_is_and_never_passes_over_priority(
    demands: list[tuple[int, int, int]], sizes: list[tuple[int, int]]
) -> None:
    fleet = [NodeLoad(node(f"n{i}", pool="p", cpus=c, gpus=g)) for i, (c, g) in enumerate(sizes)]
    queue = [
        run(f"r{i}", i, spec=spec(placement=[Variant(pool="p", cpus=c, gpus=g)], priority=priority))
        for i, (c, g, priority) in enumerate(demands)
    ]
    verdicts = plan(queue, fleet, NOW)
    free = {load.node.ray_id: [load.node.cpus, load.node.gpus] for load in fleet}
    order = [(-next(r for r in queue if r.id == v.run_id).spec.priority) for v in verdicts]
    assert order == sorted(order)
    for verdict in verdicts:
        wanted = next(r for r in queue if r.id == verdict.run_id).spec.placement[0]
        if verdict.chosen is None:
            assert not any(c >= wanted.cpus and g >= wanted.gpus for c, g in free.values())
            assert verdict.why
        else:
            assert verdict.chosen.node is not None
            left = free[verdict.chosen.node.ray_id]
            left[0] -= wanted.cpus
            left[1] -= wanted.gpus
            assert min(left) >= 0
