"""What agents say about once a second, and what they are answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.clock import Clock
from orchestrator.control.energy import EnergyBook
from orchestrator.control.live import LiveBoard
from orchestrator.control.logs import RunFiles
from orchestrator.control.measured import with_attempt
from orchestrator.control.outcomes import Outcomes
from orchestrator.control.tracking import Tracking
from orchestrator.domain import gang
from orchestrator.domain.energy import Energy
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import ENDING, Phase, Reason, RunState
from orchestrator.domain.transitions import reach
from orchestrator.errors import NotFoundError
from orchestrator.messages_agent import Beat, BeatReply, CheckpointNote, Order
from orchestrator.store.ledger import Ledger, Transaction
from orchestrator.store.spool import Spool

GRACE_S = 60.0
"""Time that a program gets to save when it is ordered to stop."""
CANCEL_GRACE_S = 20.0


class Beats:
    """Takes beats in. Handling the same beat again changes nothing."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        files: RunFiles,
        live: LiveBoard,
        outcomes: Outcomes,
        tracking: Tracking,
        energy: EnergyBook,
        clock: Clock,
        wake: Callable[[], None],
        share: Callable[[AttemptRecord], float] = lambda attempt: 1.0,
        window_grace_s: float = GRACE_S,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._files = files
        self._live = live
        self._outcomes = outcomes
        self._tracking = tracking
        self._energy = energy
        self._clock = clock
        self._wake = wake
        self._share = share
        self._graces = {**dict.fromkeys(ENDING, CANCEL_GRACE_S), Reason.WINDOW: window_grace_s}
        self._log_lock = threading.Lock()

    def take(self, run_id: str, number: int, beat: Beat) -> BeatReply:
        """Record a beat and answer what the attempt is to do; NotFoundError for an unknown attempt."""
        log_size = self._take_log(run_id, number, beat)
        with self._ledger.read() as ledger:
            run, attempt = ledger.run(run_id), ledger.attempt(run_id, number)
        ranks = gang.members(attempt)
        if beat.rank >= len(ranks):
            raise NotFoundError(f"attempt {number} of run {run_id} has no rank {beat.rank}")
        self._live.heard(
            run_id,
            number,
            beat.step,
            beat.transfer,
            beat.boot_id,
            rank=beat.rank,
            rendezvous=beat.rendezvous,
            energy=Energy(beat.energy.joules, beat.energy.source) if beat.energy else None,
        )
        self._energy.keep(run, attempt, last=attempt.ended and beat.outcome is not None)
        if attempt.ended or number != run.attempt or run.state.final or ranks[beat.rank].end:
            return self._not_wanted(run, attempt, beat, log_size)
        if beat.rank:
            self._take_rank(attempt, beat)
            return self._answer(run, attempt, log_size)
        if attempt.abandoned or run.state == RunState.UNREACHABLE:
            run, attempt = self._reach(run_id, number)
            if number != run.attempt or run.state.final:
                return self._not_wanted(run, attempt, beat, log_size)
        if beat.points:
            self._spool.add_points(run_id, number, with_attempt(beat.points, number))
        if _has_news(attempt, beat):
            run, attempt = self._take_news(run_id, number, beat)
        if beat.checkpoints:
            self._live.committed(run_id, number, max(note.step for note in beat.checkpoints))
        for note in beat.checkpoints:
            self._tracking.checkpoint(run, attempt, note)
        if beat.outcome is not None:
            self._outcomes.end(run_id, number, beat.outcome, age_s=beat.outcome_age_s)
            self._wake()
        return self._answer(run, attempt, log_size)

    def _take_rank(self, attempt: AttemptRecord, beat: Beat) -> None:
        """Of a rank above 0 only its events and its end are news for the ledger."""
        if beat.events:
            events = [f"rank {beat.rank}: {text}" for text in beat.events]
            with self._ledger.begin() as ledger:
                _add_events(ledger, attempt, beat.model_copy(update={"events": events}), self._clock.now())
        if beat.outcome is not None:
            self._outcomes.end(attempt.run_id, attempt.number, beat.outcome, beat.rank, beat.outcome_age_s)
            self._wake()

    def _take_log(self, run_id: str, number: int, beat: Beat) -> int:
        with self._log_lock:
            if beat.log is None:
                return self._files.log_size(run_id, number, beat.rank)
            return self._files.append(run_id, number, beat.log, beat.rank)

    def _reach(self, run_id: str, number: int) -> tuple[RunRecord, AttemptRecord]:
        """The agent is heard again."""
        with self._ledger.begin() as ledger:
            run, attempt = ledger.run(run_id), ledger.attempt(run_id, number)
            if attempt.ended or run.attempt != number or run.state.final:
                return run, attempt
            before = run, attempt
            run, attempt = reach(run, attempt, self._share(attempt))
            if (run, attempt) != before:
                ledger.save_run(run)
                ledger.save_attempt(attempt)
                text = f"{attempt.node} is back: attempt {number} goes on"
                ledger.add_event(run_id, self._clock.now(), "back", text)
        self._wake()
        return run, attempt

    def _not_wanted(self, run: RunRecord, attempt: AttemptRecord, beat: Beat, log_size: int) -> BeatReply:
        """The run has left this attempt, or has ended: the agent is to end, and is heard to its end."""
        if attempt.ended:
            self._live.forget(attempt.run_id, attempt.number)
        elif beat.outcome is not None:
            self._outcomes.end(attempt.run_id, attempt.number, beat.outcome, beat.rank, beat.outcome_age_s)
            self._wake()
        reason = attempt.reason if attempt.ended and attempt.reason else Reason.FENCED
        if run.state == RunState.CANCELLED and run.attempt == attempt.number:
            reason = run.reason if run.reason in ENDING else Reason.CANCELLED
        return BeatReply(order=Order.STOP, reason=reason, grace_s=5.0, log_offset=log_size)

    def _answer(self, run: RunRecord, attempt: AttemptRecord, log_size: int) -> BeatReply:
        reply = BeatReply(log_offset=log_size, mlflow_run_id=self._spool.mlflow_run_id(run.id))
        stop, grace = run.stop, self._graces.get(run.stop, GRACE_S) if run.stop else GRACE_S
        if stop is None and self._energy.spent(run, attempt):
            stop = Reason.ENERGY
        if attempt.members:
            lost = gang.stop_grace(attempt, self._clock.now())
            if lost is not None:
                stop, grace = stop or Reason.RANK_LOST, min(grace, lost)
            world = len(gang.members(attempt))
            meeting = self._live.rendezvous(run.id, attempt.number, world)
            reply = reply.model_copy(update={"rendezvous": meeting})
        if stop is None:
            return reply
        return reply.model_copy(update={"order": Order.STOP, "reason": stop, "grace_s": grace})

    def _take_news(self, run_id: str, number: int, beat: Beat) -> tuple[RunRecord, AttemptRecord]:
        now = self._clock.now()
        with self._ledger.begin() as ledger:
            run, attempt = ledger.run(run_id), ledger.attempt(run_id, number)
            if attempt.ended:
                return run, attempt
            phase = beat.phase if beat.phase != Phase.ENDED else attempt.phase
            begins = phase == Phase.RUNNING and attempt.started_at is None
            started = now if begins else attempt.started_at or _ended_at_once(beat, now)
            before = run
            run, attempt = self._energy.counted(run, attempt)
            attempt = replace(
                attempt,
                phase=phase,
                device=beat.device or attempt.device,
                device_name=beat.device_name or attempt.device_name,
                first_step=beat.first_step if beat.first_step is not None else attempt.first_step,
                last_step=beat.step if beat.step is not None else attempt.last_step,
                started_at=started,
                timings={**attempt.timings, **beat.timings},
            )
            ledger.save_attempt(attempt)
            if started is not None and run.started_at is None:
                run = replace(run, started_at=started)
            if begins:
                if run.state == RunState.STARTING:
                    run = replace(run, state=RunState.RUNNING, message="")
                from_step = f" from step {beat.first_step}" if beat.first_step else ""
                ledger.add_event(
                    run_id, now, "started", f"attempt {number} runs on {attempt.node}{from_step}"
                )
            if run is not before:
                ledger.save_run(run)
            _add_events(ledger, attempt, beat, now)
        if begins:
            self._tracking.attempt_started(run)
        return run, attempt


def _ended_at_once(beat: Beat, now: datetime) -> datetime | None:
    """When a program began that has ended before the agent could say that it runs: when it ended, nearly."""
    if beat.outcome is None or "spawn" not in beat.timings:
        return None
    return now - timedelta(seconds=beat.outcome_age_s)


def _add_events(ledger: Transaction, attempt: AttemptRecord, beat: Beat, now: datetime) -> None:
    """Add what is not there yet: an agent whose answer was lost says the same again."""
    told = [(note.at, "checkpoint", _describe(note, attempt)) for note in beat.checkpoints]
    told += [(now, "agent", text) for text in beat.events]
    if not told:
        return
    since = attempt.created_at
    known = {event.text for event in ledger.events(attempt.run_id) if event.at >= since}
    for at, kind, text in told:
        if text not in known:
            ledger.add_event(attempt.run_id, at, kind, text)


def _has_news(attempt: AttemptRecord, beat: Beat) -> bool:
    """Whether a beat says something for the ledger. A step alone does not: it is kept in memory."""
    return bool(
        beat.phase != attempt.phase
        or beat.events
        or beat.checkpoints
        or (beat.device and beat.device != attempt.device)
        or (beat.first_step is not None and beat.first_step != attempt.first_step)
        or (beat.timings and {**attempt.timings, **beat.timings} != attempt.timings)
    )


def _describe(note: CheckpointNote, attempt: AttemptRecord) -> str:
    return f"step {note.step} committed from {attempt.node} ({note.size} bytes in {note.seconds:.2f} s)"
