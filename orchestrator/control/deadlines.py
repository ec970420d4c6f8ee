"""Ends runs that wait although a limit of theirs has been met: nothing would be gained by starting them."""

from __future__ import annotations

import heapq
import logging
import threading

from orchestrator.clock import Clock
from orchestrator.control.outcomes import Outcomes
from orchestrator.domain.limits import exhausted
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.store.ledger import Ledger, Transaction

log = logging.getLogger(__name__)


class Deadlines:
    """Follows the ledger's commits, so that a round costs nothing for runs that have time. What executes is
    ended by its node, and comes here if it waits again."""

    def __init__(self, ledger: Ledger, outcomes: Outcomes, clock: Clock) -> None:
        self._ledger = ledger
        self._outcomes = outcomes
        self._clock = clock
        self._lock = threading.Lock()
        self._due: list[tuple[float, str]] = []
        """(Unix time, run) of waiting runs; old entries are found out when they are due."""
        ledger.watch(self._follow)
        with ledger.read() as reading:
            for run in reading.queued_with_limits():
                self._take(run)

    def expire(self) -> None:
        """End what is due now."""
        now = self._clock.now()
        for run_id in self._take_due(now.timestamp()):
            with self._ledger.read() as reading:
                run = reading.run(run_id)
            if run.state == RunState.QUEUED and exhausted(run, now) is not None:
                self._outcomes.expire(run_id)

    def _take_due(self, now: float) -> list[str]:
        found = []
        with self._lock:
            while self._due and self._due[0][0] <= now:
                found.append(heapq.heappop(self._due)[1])
        return found

    def _follow(self, transaction: Transaction) -> None:
        for run in transaction.runs_changed.values():
            if run.state == RunState.QUEUED:
                self._take(run)

    def _take(self, run: RunRecord) -> None:
        spec = run.spec
        if exhausted(run, self._clock.now()) is not None:
            at = 0.0
        elif spec.deadline is not None:
            at = spec.deadline.timestamp()
        else:
            return
        with self._lock:
            heapq.heappush(self._due, (at, run.id))
