"""What becomes of a run when something happens to it. Pure; the loop applies the answers."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.domain.limits import gpu_rate, seconds
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.retry import NODE_TOO_SMALL, avoided, decide
from orchestrator.domain.states import CONSEQUENCES, ENDING, EXECUTING, Reason, RunState, Then

_FINAL_STATE = {Then.SUCCEED: RunState.SUCCEEDED, Then.FAIL: RunState.FAILED, Then.CANCEL: RunState.CANCELLED}


def after_attempt(
    run: RunRecord,
    attempt: AttemptRecord,
    reason: Reason,
    message: str,
    now: datetime,
    *,
    committed: int | None = None,
    share: float = 1.0,
) -> RunRecord:
    """The run once its newest attempt has ended for `reason`.

    A cancel that was ordered wins over every other end except completion. `committed` is the highest step
    that the attempt has committed, where known: see :func:`orchestrator.domain.retry.decide`; `share` the
    part of a GPU that it used.
    """
    ordered = run.stop is not None
    if run.stop in ENDING and CONSEQUENCES[reason].then != Then.SUCCEED:
        reason = run.stop
    decision = decide(run, attempt, reason, ordered=ordered, committed=committed)
    if decision.gave_up and decision.retries_used:
        message = f"{message} (gave up after {decision.retries_used} retries)"
    run = charge(run, attempt, now, share)
    avoid = avoided(run, attempt, reason)
    run = replace(
        run, reason=reason, message=message, stop=None, retries_used=decision.retries_used, avoid=avoid
    )
    if decision.then in _FINAL_STATE:
        return _finish(run, _FINAL_STATE[decision.then], now)
    not_before = now + timedelta(seconds=decision.pause_s) if decision.pause_s else None
    held = run.held or reason == Reason.RUNG
    return replace(run, state=RunState.QUEUED, not_before=not_before, held=held)


def after_left_attempt(run: RunRecord, attempt: AttemptRecord, reason: Reason) -> RunRecord:
    """The run once an attempt that it had left has ended: it keeps away from where memory ran out."""
    if run.state.final:
        return run
    small = {node: end for node, end in avoided(run, attempt, reason) if end in NODE_TOO_SMALL}
    return replace(run, avoid=tuple(sorted({**dict(run.avoid), **small}.items())))


def charge(run: RunRecord, attempt: AttemptRecord, until: datetime, share: float = 1.0) -> RunRecord:
    """The run with the time and the GPU time of an attempt added to what it has used."""
    spent = seconds(attempt, until)
    gpu = spent * gpu_rate(attempt.variant, share)
    return replace(run, seconds_used=run.seconds_used + spent, gpu_seconds_used=run.gpu_seconds_used + gpu)


# ---- machines that come and go


def lose_sight(run: RunRecord, message: str) -> RunRecord:
    """The run whose agent is not heard of; an order to stop stands, and one to cancel comes true later."""
    if run.state not in EXECUTING or (run.state, run.message) == (RunState.UNREACHABLE, message):
        return run
    return replace(run, state=RunState.UNREACHABLE, message=message)


def reach(run: RunRecord, attempt: AttemptRecord, share: float = 1.0) -> tuple[RunRecord, AttemptRecord]:
    """Run and attempt once the agent of the run's newest attempt is heard again: it goes on, and nothing has
    been lost. Also where it had been given up, as long as no other attempt was started."""
    assert run.attempt == attempt.number
    assert not run.state.final
    if attempt.abandoned:
        assert attempt.ended_at is not None
        run = _refund(run, attempt, attempt.ended_at, share)
        attempt = replace(attempt, reason=None, message="", ended_at=None)
    elif run.state != RunState.UNREACHABLE:
        return run, attempt
    state = RunState.RUNNING if attempt.started_at else RunState.STARTING
    state = RunState.STOPPING if run.stop else state
    return replace(run, state=state, message="", reason=None, not_before=None), attempt


def abandon(
    run: RunRecord, attempt: AttemptRecord, now: datetime, message: str, share: float = 1.0
) -> tuple[RunRecord, AttemptRecord]:
    """Run and attempt once the run waits for no word of its agent any longer and may start elsewhere.

    The attempt has not ended, for nobody knows: what it was granted stays granted. The next attempt fences
    it. Costs no retry. A run that was to be cancelled is cancelled.
    """
    run = charge(run, attempt, now, share)
    attempt = replace(attempt, reason=Reason.AWAY, message=message, ended_at=now)
    if run.stop in ENDING:
        run = replace(run, reason=run.stop, message=f"cancelled; {message}")
        return _finish(run, RunState.CANCELLED, now), attempt
    run = replace(run, state=RunState.QUEUED, reason=Reason.AWAY, message=message, stop=None, not_before=None)
    return run, attempt


def expire(run: RunRecord, reason: Reason, message: str, now: datetime) -> RunRecord:
    """The waiting run that has met a limit."""
    assert run.state == RunState.QUEUED
    return _finish(replace(run, reason=reason, message=message), RunState.FAILED, now)


# ---- orders


def cancel(run: RunRecord, now: datetime, reason: Reason = Reason.CANCELLED, message: str = "") -> RunRecord:
    """The run after its user, or its sweep, cancelled it: ended at once where nothing executes that could be
    told, else ordered to stop. `reason` is one of :data:`~orchestrator.domain.states.ENDING`."""
    assert reason in ENDING
    if run.state.final or (run.stop in ENDING and run.state != RunState.UNREACHABLE):
        return run
    if run.state in (RunState.QUEUED, RunState.UNREACHABLE):
        where = "while it waited" if run.state == RunState.QUEUED else "while its machine was unreachable"
        message = message or f"cancelled {where}"
        return _finish(replace(run, reason=reason, message=message), RunState.CANCELLED, now)
    return replace(run, state=RunState.STOPPING, stop=reason)


def move(run: RunRecord, pool: str) -> RunRecord:
    """The run bound for another pool; what executes is ordered to save and stop."""
    if run.state == RunState.QUEUED:
        return replace(run, pin_pool=pool)
    if run.stop in ENDING:
        return run
    return replace(run, pin_pool=pool, state=_ordered(run), stop=Reason.MOVED)


def shut_down(run: RunRecord) -> RunRecord:
    """The run ordered to save and stop because its machines are taken down; an earlier order stands."""
    return make_room(run, Reason.SHUTDOWN)


def _ordered(run: RunRecord) -> RunState:
    return RunState.UNREACHABLE if run.state == RunState.UNREACHABLE else RunState.STOPPING


def make_room(run: RunRecord, reason: Reason) -> RunRecord:
    """The run ordered to save and go, and to wait in its old place; an earlier order stands.

    Nothing changes where nothing executes: nobody would hear the order.
    """
    if run.stop or run.state not in EXECUTING:
        return run
    return replace(run, state=_ordered(run), stop=reason)


def _finish(run: RunRecord, state: RunState, now: datetime) -> RunRecord:
    return replace(run, state=state, ended_at=now, not_before=None, stop=None)


def _refund(run: RunRecord, attempt: AttemptRecord, until: datetime, share: float) -> RunRecord:
    spent = seconds(attempt, until)
    gpu = spent * gpu_rate(attempt.variant, share)
    return replace(
        run,
        seconds_used=max(0.0, run.seconds_used - spent),
        gpu_seconds_used=max(0.0, run.gpu_seconds_used - gpu),
    )
