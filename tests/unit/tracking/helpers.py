"""A clock that only tests move, and a sink that keeps what MLflow would keep and fails when told to."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

from orchestrator.messages_agent import Point
from orchestrator.store.outbox import AnyTask, CreateRun
from orchestrator.store.spool_schema import StoredPoint
from orchestrator.tracking.sink import SinkRefusedError, SinkUnavailableError, Target, TargetState


def point(key: str, step: int, value: float = 1.0, time_ms: int | None = None) -> Point:
    """A point whose time follows from its step."""
    return Point(
        key=key, step=step, time_ms=1_700_000_000_000 + step if time_ms is None else time_ms, value=value
    )


class FakeSink:
    """Keeps points as MLflow does: the same (key, step, time, value) once, anything else beside it."""

    def __init__(self, rng: random.Random | None = None, failing: float = 0.0) -> None:
        self.runs: dict[str, set[tuple[str, int, int, float]]] = {}
        """MLflow run id -> points."""
        self.ids: dict[str, str] = {}
        self.applied: list[tuple[str, AnyTask]] = []
        self.sent: list[tuple[str, int]] = []
        """(run id, number of points) of every request, accepted or not."""
        self.deleted: set[str] = set()
        self.refuse: Callable[[str, object], bool] = lambda run_id, thing: False
        self.break_down: Callable[[str, object], bool] = lambda run_id, thing: False
        self.hang: Callable[[str], bool] = lambda run_id: False
        """Runs whose requests time out."""
        self.down = False
        self.release = threading.Event()
        self.release.set()
        self._rng = rng or random.Random(0)
        self._failing = failing

    def create(self, run_id: str, task: CreateRun) -> Target:
        self._maybe_fail(run_id, task)
        if self.refuse(run_id, task.experiment):
            raise SinkRefusedError("bad name")
        mlflow_run_id = self.ids.get(run_id)
        if mlflow_run_id is None:
            mlflow_run_id = self.ids[run_id] = f"m{len(self.runs)}"
            self.runs[mlflow_run_id] = set()
        self._maybe_fail(run_id, None)
        return Target(run_id, "1", mlflow_run_id)

    def log_points(self, target: Target, points: Sequence[StoredPoint]) -> None:
        assert len(points) <= 1000
        self.sent.append((target.run_id, len(points)))
        self._maybe_fail(target.run_id, None)
        if any(self.refuse(target.run_id, point) for point in points):
            raise SinkRefusedError("bad point")
        self._stored(target).update((p.key, p.step, p.time_ms, p.value) for p in points)
        self._maybe_fail(target.run_id, points)

    def apply(self, target: Target, task: AnyTask, points: Sequence[StoredPoint] = ()) -> None:
        self._maybe_fail(target.run_id, task)
        if self.refuse(target.run_id, task):
            raise SinkRefusedError("bad task")
        self._stored(target).update((p.key, p.step, p.time_ms, p.value) for p in points)
        self.applied.append((target.run_id, task))
        self._maybe_fail(target.run_id, None)

    def state(self, target: Target) -> TargetState:
        if target.mlflow_run_id not in self.runs:
            return TargetState.MISSING
        return TargetState.DELETED if target.mlflow_run_id in self.deleted else TargetState.ACTIVE

    def lose_everything(self) -> None:
        """As if its database had been replaced by an empty one."""
        self.runs.clear()
        self.ids.clear()
        self.applied.clear()

    def kinds(self, run_id: str) -> list[str]:
        """Kinds of the tasks that came after the creation, in order."""
        return [task.kind for found, task in self.applied if found == run_id and task.kind != "create"]

    def _stored(self, target: Target) -> set[tuple[str, int, int, float]]:
        if self.state(target) is not TargetState.ACTIVE:
            raise SinkRefusedError("no such run")
        return self.runs[target.mlflow_run_id]

    def _maybe_fail(self, run_id: str, thing: object) -> None:
        assert self.release.wait(20), "a test forgot to let the sink go on"
        if self.down:
            raise SinkUnavailableError("connection refused", whole_server=True)
        if self.hang(run_id):
            raise SinkUnavailableError("timed out", whole_server=True)
        if self.break_down(run_id, thing):
            raise SinkUnavailableError("HTTP 500", whole_server=False)
        if self._rng.random() < self._failing:
            raise SinkUnavailableError("now and then", whole_server=self._rng.random() < 0.5)
