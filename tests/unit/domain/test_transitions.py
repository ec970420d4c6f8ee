from datetime import timedelta

import pytest

from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import CONSEQUENCES, Reason, RunState, Then
from orchestrator.domain.transitions import after_attempt, cancel, move, shut_down
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
    assert pauses == [1.0, 2.0]
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
