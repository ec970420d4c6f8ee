"""What is recorded when an attempt ends, however it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

from orchestrator.clock import Clock
from orchestrator.control.live import LiveBoard
from orchestrator.control.measured import with_attempt
from orchestrator.control.tracking import Tracking
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import CONSEQUENCES, Phase
from orchestrator.domain.transitions import after_attempt
from orchestrator.errors import OrchError
from orchestrator.messages import Outcome, Point
from orchestrator.store.checkpoints import points as stored_points
from orchestrator.store.ledger import Ledger
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
        clock: Clock,
        release: Callable[[AttemptRecord], None],
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._store = store
        self._live = live
        self._tracking = tracking
        self._clock = clock
        self._release = release

    def end(self, run_id: str, number: int, outcome: Outcome) -> None:
        """Record the end of an attempt and what follows for its run; a second end changes nothing."""
        now = self._clock.now()
        with self._ledger.begin() as ledger:
            attempt = ledger.attempt(run_id, number)
            if attempt.ended:
                return
            step = outcome.last_step if outcome.last_step is not None else self._live.step(run_id, number)
            attempt = replace(
                attempt,
                phase=Phase.ENDED,
                reason=outcome.reason,
                message=outcome.message,
                exit_code=outcome.exit_code,
                last_step=step if step is not None else attempt.last_step,
                ended_at=now,
            )
            ledger.save_attempt(attempt)
            run = after_attempt(ledger.run(run_id), attempt, outcome.reason, _message(outcome), now)
            ledger.save_run(run)
            ledger.add_event(run_id, now, "attempt-ended", _describe(attempt, outcome))
            if run.state.final:
                ledger.add_event(run_id, now, run.state.value, run.message)
        self._live.forget(run_id, number)
        self._release(attempt)
        self._replay_points(run, number)
        self._tracking.attempt_ended(run)

    def _replay_points(self, run: RunRecord, number: int) -> None:
        """Take in what the attempt's checkpoints carry: points that the agent could not deliver itself."""
        try:
            for segment in stored_points(self._store, run.id, attempt=number):
                lines = segment.decode().splitlines()
                points = [Point(**json.loads(line)) for line in lines if line]
                self._spool.add_points(run.id, number, with_attempt(points, number))
        except OrchError as error:
            log.warning("run %s: points of attempt %d could not be read back: %s", run.id, number, error)


def _message(outcome: Outcome) -> str:
    return outcome.message or CONSEQUENCES[outcome.reason].text


def _describe(attempt: AttemptRecord, outcome: Outcome) -> str:
    at = f" at step {attempt.last_step}" if attempt.last_step is not None else ""
    text = CONSEQUENCES[outcome.reason].text
    detail = f": {outcome.message}" if outcome.message not in ("", text) else ""
    return f"attempt {attempt.number} on {attempt.node} ended{at} ({outcome.reason.value}: {text}){detail}"
