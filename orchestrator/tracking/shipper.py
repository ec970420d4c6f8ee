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
from orchestrator.messages import Point
from orchestrator.store.outbox import CreateRun, LogCheckpoint, SetStatus, tracking_key
from orchestrator.store.spool import Spool, StoredPoint, StoredTask
from orchestrator.tracking.sink import (
    MAX_POINTS,
    Sink,
    SinkRefusedError,
    SinkUnavailableError,
    Target,
    TargetState,
)

_log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 15.0
_GATHER_S = 0.25
"""How long news is collected before it is sent."""
_BATCHES_PER_TURN = 10
_TASKS_PER_TURN = 50
_SKIP_AFTER = 5
"""Failures of one thing after which the run's other things go first."""


@dataclass(frozen=True)
class ShipperStatus:
    """How MLflow keeps up, for `orch doctor`."""

    connected: bool
    """True where the last request was answered as it should be."""
    pending_points: int
    pending_tasks: int
    oldest_pending_s: float
    """Age of the oldest thing that MLflow does not have; 0 where it has everything."""
    failed_tasks: int
    refused_points: int
    last_error: str | None


class Backoff:
    """0.5 s, doubling to 15 s, each between half and all of it (jitter)."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def failed(self, what: str) -> None:
        """Wait longer than last time."""
        failures = self._failures[what] = self._failures.get(what, 0) + 1
        delay = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(failures - 1, 10))
        self._until[what] = self._clock.monotonic() + delay * self._rng.uniform(0.5, 1.0)

    def worked(self, what: str) -> None:
        """No need to wait any more."""
        self._failures.pop(what, None)
        self._until.pop(what, None)

    def failures(self, what: str) -> int:
        """How often it failed in a row."""
        return self._failures.get(what, 0)

    def wait_s(self, what: str) -> float:
        """Seconds until it may be tried again."""
        return max(0.0, self._until.get(what, 0.0) - self._clock.monotonic())


class Shipper:
    """See the module's description."""

    def __init__(
        self,
        spool: Spool,
        sink_factory: Callable[[], Sink],
        clock: Clock = SYSTEM,
        rng: random.Random | None = None,
    ) -> None:
        """`sink_factory` is called in the shipper's thread, again after it has raised an OrchError."""
        self._spool = spool
        self._sink_factory = sink_factory
        self._clock = clock
        self._backoff = Backoff(clock, rng or random.Random())
        self._sink: Sink | None = None
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="shipper", daemon=True)
        self._connected = False
        self._last_error: str | None = None
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
            last_error=self._last_error,
        )

    # ------------------------------------------------------------------ the thread

    def _main(self) -> None:
        while not self._stopping.is_set():
            self._news.clear()
            try:
                delay = self.turn()
            except Exception as error:  # noqa: BLE001 - the boundary of the thread: shipping must go on
                _log.exception("the shipper failed unexpectedly")
                self._last_error = repr(error)
                self._backoff.failed("")
                delay = self._backoff.wait_s("")
            if self._news.wait(delay):
                self._stopping.wait(max(_GATHER_S, self._backoff.wait_s("")))

    def turn(self) -> float | None:
        """Give every run that waits its turn; seconds until the next one is due, None: when there is news."""
        waiting = self._spool.waiting()
        if not waiting:
            return None
        more = False
        for run_id in sorted(waiting, key=self._backoff.failures):
            if self._stopping.is_set():
                return None
            if self._backoff.wait_s(run_id) > 0:
                continue
            try:
                more |= self._ship(run_id)
            except SinkUnavailableError as error:
                self._failed(run_id, error)
                if error.whole_server:
                    self._backoff.failed("")
                    return self._backoff.wait_s("")
            except OrchError as error:
                self._failed(run_id, error)
            else:
                self._worked(run_id)
        if more:
            return 0.0
        delays = [delay for run_id in waiting if (delay := self._backoff.wait_s(run_id)) > 0]
        return min(delays, default=None)

    def _failed(self, run_id: str, error: OrchError) -> None:
        self._backoff.failed(run_id)
        whole = isinstance(error, SinkUnavailableError) and error.whole_server
        self._connected = self._connected and not whole
        if self._last_error != error.message:
            _log.warning("MLflow: run %s: %s", run_id, error.message)
        self._last_error = error.message

    def _worked(self, run_id: str) -> None:
        self._backoff.worked(run_id)
        self._backoff.worked("")
        self._connected = True
        self._last_error = None

    # ------------------------------------------------------------------ one run

    def _ship(self, run_id: str) -> bool:
        """Send some of what the run has; True where there is more."""
        if self._sink is None:
            self._sink = self._sink_factory()
        sink = self._sink
        tasks = self._spool.tasks(run_id, _TASKS_PER_TURN)
        target = self._target(sink, run_id, tasks)
        if target is None:
            return False
        try:
            more = self._ship_points(sink, target)
            return self._ship_tasks(sink, target, tasks, points_left=more) or more
        except _LostError:
            self._spool.forget_mlflow(run_id)
            return True

    def _target(self, sink: Sink, run_id: str, tasks: list[StoredTask]) -> Target | None:
        known = self._spool.mlflow_run(run_id)
        if known is not None:
            return Target(run_id, *known)
        for stored in tasks:
            if isinstance(stored.task, CreateRun):
                try:
                    target = sink.create(run_id, stored.task)
                except SinkRefusedError as error:
                    self._refused(run_id, stored, error)
                    return None
                self._spool.set_mlflow_run(run_id, target.experiment_id, target.mlflow_run_id)
                self._spool.mark_done(stored)
                tasks.remove(stored)
                return target
        return None

    def _ship_points(self, sink: Sink, target: Target) -> bool:
        for _ in range(_BATCHES_PER_TURN):
            points = self._spool.unshipped(target.run_id, MAX_POINTS)
            if points:
                self._send(sink, target, points)
                self._spool.mark_shipped(target.run_id, points[-1].seq)
            if len(points) < MAX_POINTS:
                return False
            if self._stopping.is_set():
                break
        return True

    def _send(self, sink: Sink, target: Target, points: list[StoredPoint]) -> None:
        """Send points; where the sink refuses them, find the ones that it means."""
        try:
            sink.log_points(target, points)
        except SinkRefusedError as error:
            self._check(sink, target)
            if len(points) == 1:
                _log.warning("MLflow refuses %s at step %d: %s", points[0].key, points[0].step, error)
                self._spool.mark_refused(points[0].seq, error.message)
                return
            middle = len(points) // 2
            self._send(sink, target, points[:middle])
            self._send(sink, target, points[middle:])

    def _ship_tasks(self, sink: Sink, target: Target, tasks: list[StoredTask], points_left: bool) -> bool:
        blocked: SinkUnavailableError | None = None
        for stored in tasks:
            if self._stopping.is_set():
                return True
            if isinstance(stored.task, SetStatus) and stored.task.final and points_left:
                return True
            try:
                sink.apply(target, stored.task, self._points_of(target.run_id, stored))
                self._spool.mark_done(stored)
            except SinkRefusedError as error:
                self._check(sink, target)
                self._refused(target.run_id, stored, error)
            except SinkUnavailableError as error:
                if error.whole_server:
                    raise
                self._spool.mark_tried(stored, error.message)
                blocked = error
                if stored.tries + 1 < _SKIP_AFTER:
                    break
        if blocked is not None:
            raise blocked
        return len(tasks) == _TASKS_PER_TURN

    def _points_of(self, run_id: str, stored: StoredTask) -> list[StoredPoint]:
        """A checkpoint's measurements as the run's own points.

        MLflow stores a metric of a logged model as a point of the run too, so it has to be the very same
        point: one that has not been measured otherwise becomes one here.
        """
        task = stored.task
        if not isinstance(task, LogCheckpoint) or not task.metrics:
            return []
        measured = [
            Point(key=key, step=task.step, time_ms=task.time_ms, value=value)
            for key, value in task.metrics.items()
        ]
        self._spool.add_points(run_id, task.attempt, measured)
        found = self._spool.points(run_id, list(task.metrics), after_step=task.step - 1, limit=len(measured))
        wanted = {tracking_key(key) for key in task.metrics}
        return [
            StoredPoint(0, point.key, point.step, point.time_ms, point.value)
            for point in found
            if point.step == task.step and point.key in wanted
        ]

    def _refused(self, run_id: str, stored: StoredTask, error: SinkRefusedError) -> None:
        _log.warning("MLflow refuses the task %s of run %s: %s", stored.task.kind, run_id, error.message)
        self._spool.mark_failed(stored, error.message)

    def _check(self, sink: Sink, target: Target) -> None:
        """After a refusal: is it the request, or has the run gone?"""
        state = sink.state(target)
        if state is TargetState.MISSING:
            _log.warning("MLflow has lost run %s: telling it everything again", target.run_id)
            raise _LostError
        if state is TargetState.DELETED:
            raise SinkUnavailableError(f"run {target.run_id} was deleted in MLflow", whole_server=False)


class _LostError(Exception):
    """The sink does not know the run any more."""
