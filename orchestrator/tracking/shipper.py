"""Brings what the spool holds to the sink, in a thread of its own.

Guarantees: a point or task leaves the spool's queue only after the sink has accepted it; a sink that fails,
hangs or is away delays nothing but the sink itself; a run that the sink does not want delays no other run.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import OrchError
from orchestrator.store.spool import Spool
from orchestrator.tracking.backoff import Backoff
from orchestrator.tracking.shipment import Shipment
from orchestrator.tracking.sink import Sink, SinkUnavailableError

_log = logging.getLogger(__name__)

_GATHER_S = 0.25
"""How long news is collected before it is sent."""
_RECHECK_S = 600.0
"""How often parked runs are tried again."""
_SERVER = ""
"""Name of the backoff of the server as a whole."""


@dataclass(frozen=True)
class ShipperStatus:
    """How MLflow keeps up, for `orch doctor`."""

    connected: bool | None
    """Whether the server answered the last request; None where there has been none."""
    pending_points: int
    pending_tasks: int
    oldest_pending_s: float
    """Age of the oldest thing that MLflow does not have; 0 where it has everything."""
    failed_tasks: int
    refused_points: int
    parked_runs: int
    last_error: str | None
    """None once everything that was tried has worked."""


class Shipper:
    """See the module's description."""

    def __init__(
        self,
        spool: Spool,
        sink_factory: Callable[[], Sink],
        clock: Clock = SYSTEM,
        rng: random.Random | None = None,
    ) -> None:
        """`sink_factory` is called in the shipper's thread, again after it has raised."""
        self._spool = spool
        self._sink_factory = sink_factory
        self._clock = clock
        self._backoff = Backoff(clock, rng or random.Random())
        self._sink: Sink | None = None
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="shipper", daemon=True)
        self._connected: bool | None = None
        self._errors: dict[str, str] = {}
        self._rechecked: float | None = None
        spool.subscribe(self.wake)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, timeout: float = 20.0) -> bool:
        """End after the request that is under way; True where the thread has ended in time."""
        self._stopping.set()
        self._news.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """There is something new to send."""
        self._news.set()

    def status(self) -> ShipperStatus:
        """How MLflow keeps up."""
        backlog = self._spool.backlog()
        now_ms = self._clock.now().timestamp() * 1000
        age = 0.0 if backlog.oldest_ms is None else max(0.0, (now_ms - backlog.oldest_ms) / 1000)
        return ShipperStatus(
            connected=self._connected,
            pending_points=backlog.points,
            pending_tasks=backlog.tasks,
            oldest_pending_s=age,
            failed_tasks=backlog.failed_tasks,
            refused_points=backlog.refused_points,
            parked_runs=backlog.parked_runs,
            last_error=next(iter(list(self._errors.values())), None),
        )

    # ------------------------------------------------------------------ the thread

    def _main(self) -> None:
        while not self._stopping.is_set():
            self._news.clear()
            try:
                delay = self.turn()
            except Exception as error:  # noqa: BLE001 - the boundary of the thread: shipping must go on
                _log.exception("the shipper failed unexpectedly")
                self._errors[_SERVER] = repr(error)
                self._backoff.failed(_SERVER)
                delay = self._backoff.wait_s(_SERVER)
            if self._news.wait(_RECHECK_S if delay is None else delay):
                self._stopping.wait(max(_GATHER_S, self._backoff.wait_s(_SERVER)))

    def turn(self) -> float | None:
        """Give every run that waits its turn; seconds until the next one is due, None: when there is news."""
        self._recheck_parked()
        waiting = self._spool.waiting()
        more = False
        # Runs that fail come last: where one of them makes the server hang, the others have been served.
        for run_id in sorted(waiting, key=self._backoff.failures):
            if self._stopping.is_set():
                return None
            if self._backoff.wait_s(run_id) > 0:
                continue
            try:
                more |= self._ship(run_id)
            except SinkUnavailableError as error:
                self._failed(run_id, error.message)
                if error.whole_server:
                    self._connected = False
                    self._backoff.failed(_SERVER)
                    return self._backoff.wait_s(_SERVER)
                self._connected = True
            except OrchError as error:
                self._failed(run_id, error.message)
            except Exception as error:  # noqa: BLE001 - the boundary between runs: none may stop the others
                _log.exception("run %s: the shipper failed unexpectedly", run_id)
                self._failed(run_id, repr(error))
        if more:
            return 0.0
        delays = [delay for run_id in waiting if (delay := self._backoff.wait_s(run_id)) > 0]
        return min(delays, default=None)

    def _ship(self, run_id: str) -> bool:
        if self._sink is None:
            self._sink = self._sink_factory()
        shipment = Shipment(self._spool, self._sink, run_id, self._stopping.is_set)
        more = shipment.send(self._backoff.failures(run_id))
        for name in (run_id, _SERVER):
            self._backoff.worked(name)
            self._errors.pop(name, None)
        self._connected = True
        return more

    def _failed(self, run_id: str, message: str) -> None:
        self._backoff.failed(run_id)
        if self._errors.get(run_id) != message:
            _log.warning("MLflow: run %s: %s", run_id, message)
        self._errors[run_id] = message

    def _recheck_parked(self) -> None:
        now = self._clock.monotonic()
        if self._rechecked is None or now - self._rechecked >= _RECHECK_S:
            self._rechecked = now
            self._spool.unpark()
