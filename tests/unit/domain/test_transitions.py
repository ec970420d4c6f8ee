from datetime import timedelta

import pytest

from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import CONSEQUENCES, Reason, RunState, Then
from orchestrator.domain.transitions import (
    abandon,
    after_attempt,
    cancel,
    lose_sight,
    make_room,
    move,
    reach,
    shut_down,
)
from orchestrator.spec.models import Variant
from tests.unit.records import NOW, attempt, run, spec

LATER = NOW + timedelta(seconds=90)


def running(**values: object) -> RunRecord:
    return run(**{"state": RunState.RUNNING, "attempt": 1, **values})


@pytest.mark.parametrize("reason", [r for r in Reason if CONSEQUENCES[r].then == Then.QUEUE])
def test_what_is_nobodys_fault_costs_no_retry(reason: Reason) -> None:
    after = after_attempt(running(stop=Reason.MOVED), attempt(), reason, "", LATER)
    assert (after.state, after.retries_used, after.not_before) == (RunState.QUEUED, 0, None)


def test_a_program_that_saves_and_ends_by_itself_does_not_spin() -> None:
    after = after_attempt(running(), attempt(), Reason.SHUTDOWN, "", LATER)
    assert (after.state, after.retries_used) == (RunState.QUEUED, 0)
    assert after.not_before == LATER + timedelta(seconds=5)


def test_crashes_are_tried_again_with_growing_pauses_then_given_up() -> None:
    current = running(spec=spec(retries=2))
    pauses = []
    for _ in range(2):
        current = after_attempt(current, attempt(), Reason.PROGRAM_KILLED, "killed", LATER)
        assert current.state == RunState.QUEUED
        assert current.not_before is not None
        pauses.append((current.not_before - LATER).total_seconds())
    last = after_attempt(current, attempt(), Reason.PROGRAM_KILLED, "killed", LATER)
    assert pauses[0] < pauses[1]
    assert last.state == RunState.FAILED
    assert "after 2 retries" in last.message


def test_time_adds_up_over_attempts() -> None:
    once = after_attempt(running(seconds_used=10.0), attempt(), Reason.MOVED, "", LATER)
    assert once.seconds_used == 100.0


def test_cancel_ends_a_waiting_run_at_once_and_stops_a_running_one() -> None:
    assert cancel(run(), NOW).state == RunState.CANCELLED
    ordered = cancel(running(), NOW)
    assert (ordered.state, ordered.stop) == (RunState.STOPPING, Reason.CANCELLED)


@pytest.mark.parametrize("reason", [r for r in Reason if CONSEQUENCES[r].then != Then.SUCCEED])
def test_cancel_wins_over_every_other_end(reason: Reason) -> None:
    after = after_attempt(cancel(running(), NOW), attempt(), reason, "", LATER)
    assert after.state == RunState.CANCELLED


def test_a_run_that_finished_before_the_cancel_arrived_has_succeeded() -> None:
    after = after_attempt(cancel(running(), NOW), attempt(), Reason.COMPLETED, "", LATER)
    assert after.state == RunState.SUCCEEDED


def test_final_states_never_change() -> None:
    over = run(state=RunState.FAILED)
    assert cancel(over, NOW) is over


def test_move_pins_the_pool_and_keeps_a_cancel() -> None:
    assert move(run(), "gpu").pin_pool == "gpu"
    moving = move(running(), "gpu")
    assert (moving.state, moving.stop, moving.pin_pool) == (RunState.STOPPING, Reason.MOVED, "gpu")
    assert move(cancel(running(), NOW), "gpu").stop == Reason.CANCELLED
    assert shut_down(moving).stop == Reason.MOVED


def away(**values: object) -> RunRecord:
    return lose_sight(running(**values), "laptop cannot be reached")


@pytest.mark.parametrize("state", [RunState.STARTING, RunState.RUNNING, RunState.STOPPING])
def test_out_of_sight_and_back_changes_nothing(state: RunState) -> None:
    stop = Reason.MOVED if state == RunState.STOPPING else None
    before = running(state=state, stop=stop, retries_used=2)
    one = attempt(started_at=None if state == RunState.STARTING else NOW)
    lost = lose_sight(before, "quiet")
    assert (lost.state, lost.message) == (RunState.UNREACHABLE, "quiet")
    assert lose_sight(lost, "quiet") is lost
    assert reach(lost, one) == (before, one)


@pytest.mark.parametrize("state", [s for s in RunState if s.final or s == RunState.QUEUED])
def test_what_does_not_execute_cannot_get_out_of_sight(state: RunState) -> None:
    still = run(state=state)
    assert lose_sight(still, "quiet") is still
    assert shut_down(still) is still


def test_a_run_that_was_given_up_goes_on_if_its_agent_is_back_in_time() -> None:
    before = running(seconds_used=5.0, retries_used=1)
    one = attempt(variant=Variant(pool="gpu", gpus=2))
    left, silent = abandon(lose_sight(before, "quiet"), one, LATER, "left")
    assert (left.state, left.reason, left.retries_used) == (RunState.QUEUED, Reason.AWAY, 1)
    assert (left.seconds_used, left.gpu_seconds_used) == (95.0, 180.0)
    assert silent.abandoned
    assert not silent.ended  # nobody knows, so what it holds stays held
    assert reach(left, silent) == (before, one)


def test_cancel_wins_over_a_machine_that_is_away() -> None:
    assert cancel(away(), NOW).state == RunState.CANCELLED
    left, _ = abandon(away(stop=Reason.CANCELLED), attempt(), LATER, "left")
    assert (left.state, left.reason) == (RunState.CANCELLED, Reason.CANCELLED)


def test_orders_reach_a_machine_when_it_is_back() -> None:
    for ordered, reason in (
        (move(away(), "gpu"), Reason.MOVED),
        (shut_down(away()), Reason.SHUTDOWN),
        (make_room(away(), Reason.PREEMPTED), Reason.PREEMPTED),
    ):
        assert (ordered.state, ordered.stop) == (RunState.UNREACHABLE, reason)
        assert reach(ordered, attempt())[0].state == RunState.STOPPING
