"""The retry table, its pauses, and the budget that progress refills."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.records import Member, RankEnd, RunRecord
from orchestrator.domain.retry import BACKOFF_LONGEST_S, JITTER, backoff, decide
from orchestrator.domain.states import CONSEQUENCES, Phase, Reason, RunState, Then
from orchestrator.domain.transitions import after_attempt, after_left_attempt
from tests.unit.records import NOW, attempt, run, spec

RETRIED = {reason for reason in Reason if CONSEQUENCES[reason].then == Then.RETRY}


def test_what_is_tried_again() -> None:
    assert {
        Reason.AGENT_LOST,
        Reason.NOT_STARTED,
        Reason.PROGRAM_FAILED,
        Reason.PROGRAM_KILLED,
        Reason.HOST_MEMORY,
        Reason.STORE_FULL,
        Reason.STORE_FAILED,
        Reason.RANK_LOST,
    } == RETRIED


@pytest.mark.parametrize(
    "reason",
    [
        Reason.USER_ERROR,
        Reason.GPU_MEMORY,
        Reason.NOT_FINITE,
        Reason.TIME_LIMIT,
        Reason.DEADLINE,
        Reason.GPU_HOURS,
        Reason.ENERGY,
    ],
)
def test_what_would_end_the_same_way_is_not(reason: Reason) -> None:
    found = decide(run(), attempt(), reason, ordered=False, committed=100)
    assert (found.then, found.gave_up) == (Then.FAIL, False)


@given(
    run_id=st.text("abc123", min_size=1, max_size=8), number=st.integers(1, 10**6), used=st.integers(0, 99)
)
def test_pauses_are_repeatable_bounded_and_spread(run_id: str, number: int, used: int) -> None:
    pause = backoff(run_id, number, used)
    assert pause == backoff(run_id, number, used)
    middle = min(BACKOFF_LONGEST_S, 2.0**used)
    assert middle * (1 - JITTER) <= pause <= middle * (1 + JITTER)


def test_runs_that_failed_together_do_not_come_back_together() -> None:
    assert len({round(backoff(f"run{i}", 1, 5), 1) for i in range(100)}) > 50


def failing(run: RunRecord, number: int, first: int, committed: int | None) -> RunRecord:
    one = attempt(number=number, first_step=first, started_at=NOW)
    running = replace(run, state=RunState.RUNNING, attempt=number)
    return after_attempt(running, one, Reason.PROGRAM_KILLED, "killed", NOW, committed=committed)


def test_a_run_that_gets_on_is_tried_again_for_ever() -> None:
    current = run(spec=spec(retries=1))
    for number in range(1, 50):
        current = failing(current, number, first=100 * (number - 1), committed=100 * number)
        assert (current.state, current.retries_used) == (RunState.QUEUED, 1)


def test_a_run_that_stops_at_the_same_place_is_given_up() -> None:
    current = run(spec=spec(retries=2))
    current = failing(current, 1, first=0, committed=100)
    current = failing(current, 2, first=100, committed=None)
    assert (current.state, current.retries_used) == (RunState.QUEUED, 2)
    current = failing(current, 3, first=100, committed=100)  # the same step again is no progress
    assert current.state == RunState.FAILED
    assert "gave up after 2 retries" in current.message


@given(ends=st.lists(st.tuples(st.sampled_from(sorted(Reason)), st.booleans()), max_size=30))
def test_failures_without_progress_never_exceed_the_budget(ends: list[tuple[Reason, bool]]) -> None:
    current, failures = run(spec=spec(retries=3)), 0
    for number, (reason, progress) in enumerate(ends, 1):
        before = replace(current, state=RunState.RUNNING, attempt=number)
        one = attempt(number=number, first_step=number)
        current = after_attempt(before, one, reason, "", NOW, committed=number + 1 if progress else None)
        failures = (0 if progress else failures) + (reason in RETRIED)
        assert current.retries_used <= 3
        if CONSEQUENCES[reason].then == Then.QUEUE:
            assert current.state == RunState.QUEUED
        if current.state.final:
            given_up = reason in RETRIED and failures == 4
            assert given_up or CONSEQUENCES[reason].then not in (Then.RETRY, Then.QUEUE)
            return
        assert failures == current.retries_used


def after(before: RunRecord, node: str, reason: Reason, **values: object) -> RunRecord:
    one = attempt(node=node, phase=Phase.ENDED, reason=reason, ended_at=NOW, **values)
    return after_attempt(before, one, reason, "", NOW)


def test_a_node_that_was_too_small_is_avoided_for_good_and_a_broken_one_once() -> None:
    one = after(run(spec=spec(retries=9)), "small", Reason.HOST_MEMORY)
    one = after(one, "bad", Reason.AGENT_LOST)
    assert dict(one.avoid) == {"small": Reason.HOST_MEMORY, "bad": Reason.AGENT_LOST}
    one = after(one, "small", Reason.NOT_STARTED)
    assert dict(one.avoid) == {"small": Reason.HOST_MEMORY}
    assert after(one, "fine", Reason.MOVED).avoid == one.avoid
    assert after(run(), "fine", Reason.PROGRAM_FAILED).avoid == ()


def test_an_attempt_that_was_left_shows_late_that_its_node_is_too_small() -> None:
    one = run(state=RunState.RUNNING, attempt=2, avoid=(("bad", Reason.AGENT_LOST),))
    left = attempt(node="small", phase=Phase.ENDED, ended_at=NOW)
    assert after_left_attempt(one, left, Reason.AGENT_LOST) == one
    small = after_left_attempt(one, left, Reason.HOST_MEMORY)
    assert small == replace(one, avoid=(("bad", Reason.AGENT_LOST), ("small", Reason.HOST_MEMORY)))
    ended = replace(one, state=RunState.SUCCEEDED)
    assert after_left_attempt(ended, left, Reason.HOST_MEMORY) == ended


def test_of_a_gang_the_node_is_avoided_that_is_to_blame() -> None:
    end = RankEnd(Reason.HOST_MEMORY, NOW)
    two = (Member("ray-small", "small", end=end), Member("ray-c", "c", end=RankEnd(Reason.RANK_LOST, NOW)))
    one = after(run(), "a", Reason.HOST_MEMORY, members=two)
    assert one.avoid == (("small", Reason.HOST_MEMORY),)
