"""A node on which several runs fail is left alone for a while, and let in again."""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.exclusions import with_exclusions
from orchestrator.domain.exclusion import FIRST_S, RUNS, UNEXPLAINED, WINDOW_S, exclusions
from orchestrator.domain.records import AttemptRecord
from orchestrator.domain.states import Phase, Reason
from tests.unit.records import NOW, attempt, node


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def ended(
    run_id: str, seconds: float, reason: Reason = Reason.PROGRAM_FAILED, on: str = "bad", **values: object
) -> AttemptRecord:
    defaults = {"phase": Phase.ENDED, "created_at": at(seconds - 1), "started_at": at(seconds - 1)}
    return attempt(run_id, **{**defaults, "node": on, "reason": reason, "ended_at": at(seconds), **values})


THREE = [ended("a", 10), ended("b", 20), ended("c", 30)]


def test_three_different_runs_exclude_a_node_and_it_is_let_in_again() -> None:
    assert exclusions(THREE[:2], at(31)) == {}
    found = exclusions(THREE, at(31))["bad"]
    assert (found.since, found.until) == (at(30), at(30 + FIRST_S))
    assert "3 different runs have failed there (a, b, c)" in found.why
    assert exclusions(THREE, at(30 + FIRST_S)) == {}


def test_one_run_counts_once() -> None:
    assert exclusions([ended("a", 10 * i, number=i) for i in range(1, 20)], at(200)) == {}


def test_a_run_that_fails_on_another_node_too_is_at_fault_itself() -> None:
    assert exclusions([*THREE, ended("b", 40, on="other")], at(41)) == {}


def test_failures_far_apart_prove_nothing() -> None:
    apart = [ended("a", 0), ended("b", WINDOW_S / 2), ended("c", WINDOW_S + 1)]
    assert exclusions(apart, at(WINDOW_S + 2)) == {}


def test_a_run_that_gets_on_clears_the_node() -> None:
    saved = ended("x", 25, Reason.MOVED, first_step=0, last_step=10)
    assert exclusions([*THREE, saved], at(31)) == {}
    idle = ended("x", 25, Reason.MOVED, first_step=10, last_step=10)
    assert set(exclusions([*THREE, idle], at(31))) == {"bad"}


def test_explained_ends_do_not_count() -> None:
    for reason in set(Reason) - UNEXPLAINED:
        assert exclusions([ended(x, 10 + i, reason) for i, x in enumerate("abcdef")], at(20)) == {}


def test_it_is_excluded_for_longer_when_the_next_run_fails_too() -> None:
    again = 30 + FIRST_S + 60
    once_more = [*THREE, ended("d", again)]
    found = exclusions(once_more, at(again + 1))["bad"]
    assert found.until == at(again + 2 * FIRST_S)
    assert "another run has failed there (d)" in found.why
    # A run that got on in between makes it as good as any other.
    fine = ended("e", again - 10, Reason.COMPLETED)
    assert exclusions([*once_more, fine], at(again + 1)) == {}


def test_what_began_before_the_node_was_excluded_is_no_news() -> None:
    late = ended("d", 40, created_at=at(5))
    assert exclusions([*THREE, late], at(41))["bad"].until == at(30 + FIRST_S)


def test_the_planner_sees_it_in_words() -> None:
    bad, good = with_exclusions([node("bad"), node("good")], THREE, at(31))
    assert bad.closed.startswith("excluded until 22:05 UTC")
    assert good.closed == ""


ATTEMPTS = st.builds(
    lambda run, seconds, reason, on, steps: ended(run, seconds, reason, on, first_step=0, last_step=steps),
    st.sampled_from("abcdefgh"),
    st.integers(0, 20_000),
    st.sampled_from([Reason.PROGRAM_FAILED, Reason.AGENT_LOST, Reason.MOVED, Reason.COMPLETED]),
    st.sampled_from(["one", "two"]),
    st.integers(0, 2),
)


@given(attempts=st.lists(ATTEMPTS, max_size=40), now=st.integers(0, 30_000), data=st.data())
def test_the_order_in_which_ends_are_told_does_not_matter(
    attempts: list[AttemptRecord], now: int, data: st.DataObject
) -> None:
    unique = list({(a.run_id, a.ended_at, a.node): a for a in attempts}.values())
    found = exclusions(unique, at(now))
    assert exclusions(data.draw(st.permutations(unique)), at(now)) == found
    for name, one in found.items():
        failed = {a.run_id for a in unique if a.node == name and a.reason in UNEXPLAINED}
        assert len(failed) >= RUNS
        assert one.since <= at(now) < one.until
