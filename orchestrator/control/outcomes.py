"""What is recorded when an attempt ends, however it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.clock import Clock
from orchestrator.control.energy import EnergyBook
from orchestrator.control.live import LiveBoard
from orchestrator.control.measured import with_attempt
from orchestrator.control.tracking import Tracking
from orchestrator.domain import gang
from orchestrator.domain.limits import describe, exhausted
from orchestrator.domain.records import AttemptRecord, RankEnd, RunRecord
from orchestrator.domain.states import CONSEQUENCES, Phase, RunState, Then
from orchestrator.domain.transitions import after_attempt, after_left_attempt, expire, reach
from orchestrator.errors import OrchError
from orchestrator.messages_agent import Outcome, Point
from orchestrator.store.checkpoints import checkpoints
from orchestrator.store.checkpoints import points as stored_points
from orchestrator.store.ledger import Ledger, Transaction
from orchestrator.store.objects import ObjectStore
from orchestrator.store.spool import Spool

log = logging.getLogger(__name__)


class Outcomes:
    """Ends attempts: once each, whoever says so first."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        store: ObjectStore,
        live: LiveBoard,
        tracking: Tracking,
        energy: EnergyBook,
        clock: Clock,
        release: Callable[[AttemptRecord], None],
        ended: Callable[[AttemptRecord], None] = lambda attempt: None,
        share: Callable[[AttemptRecord], float] = lambda attempt: 1.0,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._store = store
        self._live = live
        self._tracking = tracking
        self._energy = energy
        self._clock = clock
        self._release = release
        self._ended = ended
        self._share = share

    def end(self, run_id: str, number: int, outcome: Outcome, rank: int = 0, age_s: float = 0.0) -> None:
        """Record the end of an attempt and what follows for its run; a second end changes nothing.

        For a run that has left this attempt, or has ended, nothing follows. Of a gang, the end of a rank is
        noted, `age_s` seconds ago; the attempt ends with the last of them.
        """
        now = self._clock.now()
        committed = self._committed(run_id, number, outcome)
        with self._ledger.begin() as ledger:
            run, attempt = ledger.run(run_id), ledger.attempt(run_id, number)
            if attempt.ended:
                return
            if attempt.members:
                attempt = _note_rank(ledger, attempt, rank, outcome, now - timedelta(seconds=age_s))
                if not gang.over(attempt):
                    return
                outcome = _of_all(attempt)
            owns = run.attempt == number and not run.state.final
            if owns:
                run, attempt = reach(run, attempt, self._share(attempt))
            attempt = self._ended_as(attempt, outcome, now)
            before = run
            run, attempt = self._energy.counted(run, attempt)
            ledger.save_attempt(attempt)
            ledger.add_event(run_id, now, "attempt-ended", _describe(attempt, outcome))
            if owns:
                share, message = self._share(attempt), _message(outcome)
                run = after_attempt(
                    run, attempt, outcome.reason, message, now, committed=committed, share=share
                )
                self._save(ledger, run)
            elif (run := after_left_attempt(run, attempt, outcome.reason)) != before:
                ledger.save_run(run)
            left = [a.number for a in ledger.attempts(run_id) if a.abandoned]
        self._live.forget(run_id, number)
        self._release(attempt)
        self._replay(run, [*left, number])
        self._energy.point(run, attempt)
        self._ended(attempt)
        if owns:
            self._tracking.attempt_ended(run)

    def _ended_as(self, attempt: AttemptRecord, outcome: Outcome, now: datetime) -> AttemptRecord:
        """The attempt with its end. One that was given up before has ended then."""
        live = self._live.step(attempt.run_id, attempt.number)
        step = next((one for one in (outcome.last_step, live) if one is not None), attempt.last_step)
        return replace(
            attempt,
            phase=Phase.ENDED,
            reason=outcome.reason,
            message=outcome.message,
            exit_code=outcome.exit_code,
            last_step=step,
            ended_at=attempt.ended_at or now,
        )

    def left(self, run: RunRecord) -> None:
        """The run waits for its attempt no longer: see :func:`orchestrator.domain.transitions.abandon`."""
        self._tracking.attempt_ended(run)

    def expire(self, run_id: str) -> None:
        """End a run that waits and has met a limit; nothing where it does not wait, or has time."""
        now = self._clock.now()
        with self._ledger.begin() as ledger:
            run = ledger.run(run_id)
            reason = exhausted(run, now)
            if run.state != RunState.QUEUED or reason is None:
                return
            run = expire(run, reason, describe(run.spec, reason), now)
            self._save(ledger, run)
        self._tracking.attempt_ended(run)

    def _save(self, ledger: Transaction, run: RunRecord) -> None:
        ledger.save_run(run)
        if run.state.final:
            ledger.add_event(run.id, self._clock.now(), run.state.value, run.message)

    def _committed(self, run_id: str, number: int, outcome: Outcome) -> int | None:
        """The highest step that an attempt has committed. The store is asked only where a retry depends on
        it; while it cannot be read, nothing counts as committed."""
        sign = self._live.sign(run_id, number)
        if sign is not None and sign.committed is not None:
            return sign.committed
        if CONSEQUENCES[outcome.reason].then != Then.RETRY:
            return None
        try:
            found = [one.step for one in checkpoints(self._store, run_id) if one.attempt == number]
        except OrchError as error:
            log.warning("run %s: its checkpoints could not be read: %s", run_id, error)
            return None
        return max(found, default=None)

    def _replay(self, run: RunRecord, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._replay_points(run, number)

    def _replay_points(self, run: RunRecord, number: int) -> None:
        """Take in what the attempt's checkpoints carry: points that the agent could not deliver itself."""
        try:
            for segment in stored_points(self._store, run.id, attempt=number):
                lines = segment.decode().splitlines()
                points = [Point(**json.loads(line)) for line in lines if line]
                self._spool.add_points(run.id, number, with_attempt(points, number))
        except OrchError as error:
            log.warning("run %s: points of attempt %d could not be read back: %s", run.id, number, error)


def _note_rank(
    ledger: Transaction, attempt: AttemptRecord, rank: int, outcome: Outcome, at: datetime
) -> AttemptRecord:
    """Record how a rank of a gang ended; the attempt after it."""
    end = RankEnd(outcome.reason, at, outcome.message, outcome.exit_code)
    changed = gang.noted(attempt, rank, end)
    if changed == attempt:
        return attempt
    if rank == 0 and outcome.last_step is not None:
        changed = replace(changed, last_step=outcome.last_step)
    ledger.save_attempt(changed)
    node, what = gang.members(attempt)[rank].node, _message(outcome)
    text = f"rank {rank} on {node} ended ({outcome.reason.value}: {what})"
    ledger.add_event(attempt.run_id, at, "rank-ended", text)
    return changed


def _of_all(attempt: AttemptRecord) -> Outcome:
    """How a gang ended whose ranks all have."""
    end = gang.judged(attempt)
    return Outcome(
        reason=end.reason, message=end.message, exit_code=end.exit_code, last_step=attempt.last_step
    )


def _message(outcome: Outcome) -> str:
    return outcome.message or CONSEQUENCES[outcome.reason].text


def _describe(attempt: AttemptRecord, outcome: Outcome) -> str:
    at = f" at step {attempt.last_step}" if attempt.last_step is not None else ""
    text = CONSEQUENCES[outcome.reason].text
    detail = f": {outcome.message}" if outcome.message not in ("", text) else ""
    which = f"attempt {attempt.number} on {gang.where(attempt)}"
    return f"{which} ended{at} ({outcome.reason.value}: {text}){detail}"
