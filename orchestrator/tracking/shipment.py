"""Sends what the spool holds of one run: its creation, then points, then the other tasks in order."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.messages_agent import Point
from orchestrator.store.outbox import AnyTask, CreateRun, LogCheckpoint, SetStatus
from orchestrator.store.spool import Spool
from orchestrator.store.spool_schema import StoredPoint, StoredTask
from orchestrator.tracking.sink import (
    MAX_POINTS,
    Sink,
    SinkRefusedError,
    SinkUnavailableError,
    Target,
    TargetState,
)

_log = logging.getLogger(__name__)

BATCHES_PER_TURN = 10
TASKS_PER_TURN = 50
SKIP_AFTER = 5
"""Failures in a row of one thing after which the run's other things go first."""


class Shipment:
    """One turn of one run.

    Nothing leaves the spool's queue before the sink has accepted it or refused it for good. What a refusal
    means is asked of the sink: a run that it has lost is told again from the beginning, one that somebody
    has deleted there is parked, and otherwise the one point or task is recorded as refused.
    """

    def __init__(self, spool: Spool, sink: Sink, run_id: str, stopping: Callable[[], bool]) -> None:
        self._spool = spool
        self._sink = sink
        self._run_id = run_id
        self._stopping = stopping

    def send(self, failures: int) -> bool:
        """Send a part; True where there is more to send at once.

        `failures`: how often this run's turn has failed in a row. SinkUnavailableError where something
        did not work now.
        """
        tasks = self._spool.tasks(self._run_id, TASKS_PER_TURN)
        try:
            target = self._target(tasks)
            if target is None:
                return False
            stuck, more = self._try_points(target, failures)
            more |= self._send_tasks(target, tasks, points_left=more)
        except _ParkedError as parked:
            _log.warning("MLflow: nothing more of run %s is sent: %s", self._run_id, parked)
            self._spool.park(self._run_id, str(parked))
            return False
        except _LostError as lost:
            self._spool.forget_mlflow(self._run_id)
            # Not at once: a server that loses it again and again must not keep us busy.
            message = f"MLflow has lost run {self._run_id}; it is told everything again"
            raise SinkUnavailableError(message, whole_server=False) from lost
        if stuck is not None:
            raise stuck
        return more

    def _target(self, tasks: list[StoredTask]) -> Target | None:
        known = self._spool.mlflow_run(self._run_id)
        if known is not None:
            return Target(self._run_id, *known)
        for stored in tasks:
            if isinstance(stored.task, CreateRun):
                try:
                    target = self._sink.create(self._run_id, stored.task)
                except SinkRefusedError as error:
                    raise _ParkedError(f"MLflow refuses to create it: {error.message}") from error
                self._spool.set_mlflow_run(self._run_id, target.experiment_id, target.mlflow_run_id)
                return target  # the task stays in the queue for what belongs to the run: its parameters
        return None

    # ------------------------------------------------------------------ points

    def _try_points(self, target: Target, failures: int) -> tuple[SinkUnavailableError | None, bool]:
        try:
            return None, self._send_points(target)
        except SinkUnavailableError as error:
            if error.whole_server or failures < SKIP_AFTER:
                raise
            return error, False

    def _send_points(self, target: Target) -> bool:
        for _ in range(BATCHES_PER_TURN):
            points = self._spool.unshipped(self._run_id, MAX_POINTS)
            if points:
                self._send_batch(target, points)
                self._spool.mark_shipped(self._run_id, points[-1].seq)
            if len(points) < MAX_POINTS:
                return False
            if self._stopping():
                break
        return True

    def _send_batch(self, target: Target, points: list[StoredPoint]) -> None:
        """Send points; where the sink refuses them, find the ones that it means by halving."""
        try:
            self._sink.log_points(target, points)
        except SinkRefusedError as error:
            self._check(target)
            if len(points) == 1:
                _log.warning("MLflow refuses %s at step %d: %s", points[0].key, points[0].step, error)
                self._spool.mark_refused(points[0].seq, error.message)
                return
            middle = len(points) // 2
            self._send_batch(target, points[:middle])
            self._send_batch(target, points[middle:])

    # ------------------------------------------------------------------ tasks

    def _send_tasks(self, target: Target, tasks: list[StoredTask], points_left: bool) -> bool:
        stuck: SinkUnavailableError | None = None
        for stored in tasks:
            if self._stopping() or (points_left and _is_final(stored.task)):
                return True
            try:
                self._send_task(target, stored)
            except SinkUnavailableError as error:
                if error.whole_server:
                    raise
                self._spool.mark_tried(stored, error.message)
                stuck = error
                if stored.tries + 1 < SKIP_AFTER:
                    break
        if stuck is not None:
            raise stuck
        return len(tasks) == TASKS_PER_TURN

    def _send_task(self, target: Target, stored: StoredTask) -> None:
        try:
            self._sink.apply(target, stored.task, self._points_of(stored.task))
        except SinkRefusedError as error:
            self._check(target)
            _log.warning("MLflow refuses %s of run %s: %s", stored.task.kind, self._run_id, error.message)
            self._spool.mark_failed(stored, error.message)
        else:
            self._spool.mark_done(stored)

    def _points_of(self, task: AnyTask) -> list[StoredPoint]:
        """A checkpoint's measurements as the run's own points.

        MLflow stores a metric of a logged model as a point of the run too, so it has to be the very same
        point: one that has not been measured otherwise becomes one here.
        """
        if not isinstance(task, LogCheckpoint) or not task.metrics:
            return []
        measured = [
            Point(key=key, step=task.step, time_ms=task.time_ms, value=value)
            for key, value in task.metrics.items()
        ]
        self._spool.add_points(self._run_id, task.attempt, measured)
        found = self._spool.points(self._run_id, list(task.metrics), task.step - 1, limit=len(measured))
        return [
            StoredPoint(0, point.key, point.step, point.time_ms, point.value)
            for point in found
            if point.step == task.step
        ]

    def _check(self, target: Target) -> None:
        """After a refusal: is it the request, or has the run gone?"""
        state = self._sink.state(target)
        if state is TargetState.MISSING:
            raise _LostError
        if state is TargetState.DELETED:
            raise _ParkedError("it was deleted in MLflow; restore it there to go on")


def _is_final(task: AnyTask) -> bool:
    return isinstance(task, SetStatus) and task.final


class _ParkedError(Exception):
    """The sink does not want the run."""


class _LostError(Exception):
    """The sink does not know the run any more."""
