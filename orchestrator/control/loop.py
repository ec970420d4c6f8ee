"""Observe, decide, act, record: the loop that starts attempts and notices lost ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from orchestrator.clock import Clock
from orchestrator.cluster.gateway import Gateway
from orchestrator.control.board import Board
from orchestrator.control.closing import order_closed
from orchestrator.control.config import ControllerConfig
from orchestrator.control.deadlines import Deadlines
from orchestrator.control.emptying import order_away
from orchestrator.control.fleet import Fleet, FleetWatcher
from orchestrator.control.launching import Launching
from orchestrator.control.live import LiveBoard
from orchestrator.control.outcomes import Outcomes
from orchestrator.control.scheduling import Scheduling
from orchestrator.control.sight import Sight
from orchestrator.domain.records import AttemptRecord
from orchestrator.domain.tariff import Tariff
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool

log = logging.getLogger(__name__)

TICK_S = 1.0
IDLE_TICK_S = 5.0
"""Where nothing waits and nothing executes."""
STALL_S = 20.0
"""A tick that comes this late means that this machine was asleep: silences of agents prove nothing."""


class Loop:
    """Runs in a thread of its own; :meth:`wake` makes it look at once."""

    def __init__(
        self,
        config: ControllerConfig,
        ledger: Ledger,
        spool: Spool,
        gateway: Gateway,
        watcher: FleetWatcher,
        live: LiveBoard,
        outcomes: Outcomes,
        scheduling: Scheduling,
        sight: Sight,
        deadlines: Deadlines,
        board: Board,
        tariff: Callable[[], Tariff | None],
        clock: Clock,
    ) -> None:
        self._board = board
        self._window_grace_s = config.window_grace_s
        self._sight = sight
        self._deadlines = deadlines
        self._scheduling = scheduling
        self._ledger = ledger
        self._watcher = watcher
        self._live = live
        self._clock = clock
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.launching = Launching(
            config, ledger, spool, gateway, watcher, live, outcomes, clock, self.wake, tariff
        )
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)

    def start(self) -> None:
        """Begin to decide."""
        self._thread.start()

    def stop(self) -> None:
        """End deciding; running attempts go on."""
        self._stop.set()
        self._wake.set()
        self._thread.join(10)
        self.launching.stop()

    def wake(self) -> None:
        """Something changed: look now."""
        self._wake.set()

    def release(self, attempt: AttemptRecord) -> None:
        """Let Ray have the resources of an ended attempt back."""
        self.launching.release(attempt)

    def _run(self) -> None:
        last = self._clock.boottime()
        while not self._stop.is_set():
            if self._clock.boottime() - last > STALL_S:
                log.warning("this machine was away for %.0f s", self._clock.boottime() - last)
                self._live.pardon()
            last = self._clock.boottime()
            try:
                self.tick()
            except Exception:
                log.exception("a tick of the loop failed; the next one tries again")
            self._wake.wait(IDLE_TICK_S if self._scheduling.idle else TICK_S)
            self._wake.clear()

    def tick(self) -> None:
        """One round. Safe to repeat at any time."""
        fleet = self._watcher.fleet
        self._sight.look(fleet)
        self._deadlines.expire()
        order_away(self._ledger, fleet, self._clock)
        order_closed(self._ledger, self._board, self._clock, self._window_grace_s)
        self.launching.look(fleet)
        if not self._scheduling.draining and fleet.connected:
            self._start_waiting(fleet)

    def _start_waiting(self, fleet: Fleet) -> None:
        started, more = self._scheduling.round(fleet)
        for run, attempt in started:
            self._live.expect(run.id, attempt.number)
            self.launching.launch(run, attempt)
        if more:
            self.wake()
