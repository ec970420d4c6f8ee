"""What becomes of a run when something happens to it. Pure; the loop applies the answers."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import CONSEQUENCES, Reason, RunState, Then

BACKOFF_FIRST_S = 1.0
BACKOFF_LONGEST_S = 60.0
UNORDERED_PAUSE_S = 5.0
"""Before the next attempt where one saved and ended although nobody had ordered it: costs no retry, but must
not become a tight circle."""
_UNORDERED = frozenset({Reason.SHUTDOWN, Reason.ACTOR_LOST, Reason.FENCED})

_FINAL_STATE = {Then.SUCCEED: RunState.SUCCEEDED, Then.FAIL: RunState.FAILED, Then.CANCEL: RunState.CANCELLED}


def after_attempt(
    run: RunRecord, attempt: AttemptRecord, reason: Reason, message: str, now: datetime
) -> RunRecord:
    """The run once its newest attempt has ended for `reason`.

    A cancel that was ordered wins over every other end except completion. Only reasons that
    :data:`CONSEQUENCES` maps to a retry use up one of the spec's retries.
    """
    then, ordered = CONSEQUENCES[reason].then, run.stop is not None
    if run.stop == Reason.CANCELLED and then != Then.SUCCEED:
        then, reason = Then.CANCEL, Reason.CANCELLED
    used = run.seconds_used + _seconds(attempt, now)
    run = replace(run, seconds_used=used, reason=reason, message=message, stop=None)
    if then == Then.RETRY and run.retries_used >= run.spec.retries:
        text = f"{message} (gave up after {run.retries_used} retries)" if run.retries_used else message
        return _finish(replace(run, message=text), RunState.FAILED, now)
    if then in _FINAL_STATE:
        return _finish(run, _FINAL_STATE[then], now)
    if then == Then.RETRY:
        pause = min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2**run.retries_used)
        return replace(
            run,
            state=RunState.QUEUED,
            retries_used=run.retries_used + 1,
            not_before=now + timedelta(seconds=pause),
        )
    pause_s = UNORDERED_PAUSE_S if reason in _UNORDERED and not ordered else 0.0
    return replace(
        run, state=RunState.QUEUED, not_before=now + timedelta(seconds=pause_s) if pause_s else None
    )


def cancel(run: RunRecord, now: datetime) -> RunRecord:
    """The run after its user cancelled it: ended at once where nothing executes, else ordered to stop."""
    if run.state.final:
        return run
    if run.state == RunState.QUEUED:
        return _finish(
            replace(run, reason=Reason.CANCELLED, message="cancelled while it waited"),
            RunState.CANCELLED,
            now,
        )
    return replace(run, state=RunState.STOPPING, stop=Reason.CANCELLED)


def move(run: RunRecord, pool: str) -> RunRecord:
    """The run bound for another pool; what executes is ordered to save and stop."""
    if run.state == RunState.QUEUED:
        return replace(run, pin_pool=pool)
    if run.stop == Reason.CANCELLED:
        return run
    return replace(run, pin_pool=pool, state=RunState.STOPPING, stop=Reason.MOVED)


def shut_down(run: RunRecord) -> RunRecord:
    """The run ordered to save and stop because its machines are taken down; an earlier order stands."""
    return run if run.stop else replace(run, state=RunState.STOPPING, stop=Reason.SHUTDOWN)


def make_room(run: RunRecord, reason: Reason) -> RunRecord:
    """The run ordered to save and go, and to wait in its old place; an earlier order stands."""
    return run if run.stop else replace(run, state=RunState.STOPPING, stop=reason)


def _finish(run: RunRecord, state: RunState, now: datetime) -> RunRecord:
    return replace(run, state=state, ended_at=now, not_before=None, stop=None)


def _seconds(attempt: AttemptRecord, now: datetime) -> float:
    return max(0.0, (now - attempt.started_at).total_seconds()) if attempt.started_at else 0.0
