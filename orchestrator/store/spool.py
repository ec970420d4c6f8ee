"""Every metric point of every run, and what waits to be told to MLflow: one SQLite file of the controller.

Guarantees:

* What a method has acknowledged by returning survives ``kill -9`` and loss of power.
* One point per (run, key, step): the first one that arrives stays, whoever sends another.
* Points reach MLflow at least once and always with the same time and value, which MLflow stores once. The
  cursor of a run moves only after MLflow has accepted, so a crash in between sends the same points again.
* The outbox keeps a run's tasks in order, with at most one task per dedupe key (see :mod:`.outbox`).

Safe to use from any thread of one process.
"""

from __future__ import annotations

import math
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import NotFoundError
from orchestrator.messages import Point, PointView
from orchestrator.store.outbox import TASK, AnyTask, LogArtifact, tracking_key
from orchestrator.store.sqlite_file import SqliteFile

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  mlflow_run_id TEXT,
  mlflow_experiment_id TEXT,
  newest INTEGER NOT NULL DEFAULT 0,   -- seq of the run's last point
  shipped INTEGER NOT NULL DEFAULT 0   -- seq up to which MLflow has the run's points
);
CREATE INDEX IF NOT EXISTS runs_behind ON runs (id) WHERE newest > shipped;
CREATE TABLE IF NOT EXISTS series (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs (id),
  key TEXT NOT NULL,
  UNIQUE (run, key)
);
CREATE TABLE IF NOT EXISTS points (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival, never reused
  run INTEGER NOT NULL REFERENCES runs (id),
  series INTEGER NOT NULL REFERENCES series (id),
  step INTEGER NOT NULL,
  time_ms INTEGER NOT NULL,
  value REAL NOT NULL,
  attempt INTEGER NOT NULL,
  UNIQUE (series, step)
);
CREATE INDEX IF NOT EXISTS points_by_run ON points (run, seq);
CREATE TABLE IF NOT EXISTS refused_points (
  seq INTEGER PRIMARY KEY REFERENCES points (seq),
  error TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  run INTEGER NOT NULL REFERENCES runs (id),
  dedupe TEXT NOT NULL,
  body TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed')),
  tries INTEGER NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '',
  created_ms INTEGER NOT NULL,
  UNIQUE (run, dedupe)
);
CREATE INDEX IF NOT EXISTS outbox_pending ON outbox (run, seq) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS outbox_failed ON outbox (run, seq) WHERE state = 'failed';
"""
_INT64 = 2**63
_IN_LIMIT = 500
"""Values per SQL `IN` list, below SQLite's limit of 999 in old builds."""


@dataclass(frozen=True)
class StoredPoint:
    """A point with its place in the order of arrival."""

    seq: int
    key: str
    step: int
    time_ms: int
    value: float


@dataclass(frozen=True)
class StoredTask:
    """A task of the outbox. `seq` names this version of it: a replacement has another."""

    seq: int
    task: AnyTask
    tries: int


@dataclass(frozen=True)
class TaskFailure:
    """A task that MLflow refused for good."""

    run_id: str
    task: AnyTask
    error: str


@dataclass(frozen=True)
class Backlog:
    """How far MLflow is behind."""

    points: int
    tasks: int
    oldest_ms: int | None
    """Unix milliseconds of the oldest waiting point (when measured) or task (when queued)."""
    failed_tasks: int
    refused_points: int


class Spool:
    """See the module's description."""

    def __init__(self, path: Path, clock: Clock = SYSTEM) -> None:
        """Open or create the file at `path`; artifact bytes lie beside it in `<name>.files/`."""
        self._clock = clock
        self._files = path.with_name(f"{path.name}.files")
        self._db = SqliteFile(path, _SCHEMA, _VERSION)
        self._listeners: list[Callable[[], None]] = []

    def close(self) -> None:
        """Close the file; later calls raise StoreUnavailableError."""
        self._db.close()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` (fast, from any thread) after something new has been committed."""
        self._listeners.append(listener)

    # ------------------------------------------------------------------ points

    def add_points(self, run_id: str, attempt: int, points: Iterable[Point]) -> int:
        """Commit one beat's points; the number of those that were new.

        A point whose (key, step) is known already changes nothing. A value that is not finite is kept as
        `KEY/nonfinite` = 1, a step or time outside 64 bits is dropped.
        """
        rows = [row for point in points if (row := _clean(point))]
        if not rows:
            return 0
        with self._db.write() as db:
            run = _run(db, run_id)
            series = {key: _series(db, run, key) for key in {row[0] for row in rows}}
            before = db.total_changes
            db.executemany(
                "INSERT OR IGNORE INTO points (run, series, step, time_ms, value, attempt)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [(run, series[key], step, at, value, attempt) for key, step, at, value in rows],
            )
            added = db.total_changes - before
            if added:
                newest = "(SELECT MAX(seq) FROM points WHERE run = ?)"
                db.execute(f"UPDATE runs SET newest = {newest} WHERE id = ?", (run, run))
        if added:
            self._tell()
        return added

    def points(
        self,
        run_id: str,
        keys: Sequence[str] | None = None,
        after_step: int | None = None,
        limit: int = 100_000,
    ) -> list[PointView]:
        """The first `limit` points by (step, key), of these keys (all when None), after this step."""
        where, args = ["r.run_id = ?"], [run_id]
        if keys is not None:
            where.append(f"s.key IN ({_marks(keys)})")
            args += map(tracking_key, keys)
        if after_step is not None:
            where.append(f"p.step > {int(after_step)}")
        query = (
            "SELECT s.key, p.step, p.time_ms, p.value, p.attempt FROM runs r JOIN series s ON s.run = r.id"
            f" JOIN points p ON p.series = s.id WHERE {' AND '.join(where)}"
            f" ORDER BY p.step, s.key LIMIT {int(limit)}"
        )
        with self._db.read() as db:
            rows = db.execute(query, args).fetchall()
        return [
            PointView(key=key, step=step, time_ms=at, value=value, attempt=attempt)
            for key, step, at, value, attempt in rows
        ]

    def keys(self, run_id: str) -> list[str]:
        """The names of a run's metrics, sorted."""
        query = "SELECT s.key FROM series s JOIN runs r ON r.id = s.run WHERE r.run_id = ? ORDER BY s.key"
        with self._db.read() as db:
            return [key for (key,) in db.execute(query, (run_id,))]

    def latest(self, run_id: str) -> dict[str, tuple[int, float]]:
        """Metric name -> (step, value) at its highest step."""
        return self.latest_many([run_id]).get(run_id, {})

    def latest_many(
        self, run_ids: Sequence[str], keys: Sequence[str] | None = None
    ) -> dict[str, dict[str, tuple[int, float]]]:
        """:meth:`latest` of several runs, restricted to these keys; runs without any are left out.

        One index probe per (run, key), whatever the number of points.
        """
        chosen = "" if keys is None else f" AND s.key IN ({_marks(keys)})"
        args = [] if keys is None else [tracking_key(key) for key in keys]
        found: dict[str, dict[str, tuple[int, float]]] = {}
        with self._db.read() as db:
            for first in range(0, len(run_ids), _IN_LIMIT):
                some = run_ids[first : first + _IN_LIMIT]
                query = (
                    "SELECT r.run_id, s.key, p.step, p.value FROM runs r JOIN series s ON s.run = r.id"
                    " JOIN points p ON p.series = s.id"
                    " AND p.step = (SELECT MAX(step) FROM points WHERE series = s.id)"
                    f" WHERE r.run_id IN ({_marks(some)}){chosen}"
                )
                for run_id, key, step, value in db.execute(query, [*some, *args]):
                    found.setdefault(run_id, {})[key] = (step, value)
        return found

    # ------------------------------------------------------------------ shipping points

    def unshipped(self, run_id: str, limit: int) -> list[StoredPoint]:
        """The first `limit` points that MLflow has not acknowledged, in order of arrival."""
        query = (
            "SELECT p.seq, s.key, p.step, p.time_ms, p.value FROM runs r"
            " JOIN points p ON p.run = r.id AND p.seq > r.shipped JOIN series s ON s.id = p.series"
            " WHERE r.run_id = ? ORDER BY p.seq LIMIT ?"
        )
        with self._db.read() as db:
            return [StoredPoint(*row) for row in db.execute(query, (run_id, limit))]

    def mark_shipped(self, run_id: str, seq: int) -> None:
        """MLflow has the run's points up to and with `seq`. The cursor never goes back."""
        with self._db.write() as db:
            db.execute("UPDATE runs SET shipped = MAX(shipped, ?) WHERE run_id = ?", (seq, run_id))

    def mark_refused(self, seq: int, error: str) -> None:
        """MLflow refuses this point for good: it stays readable here and is not sent again."""
        with self._db.write() as db:
            db.execute("INSERT OR REPLACE INTO refused_points (seq, error) VALUES (?, ?)", (seq, error))

    # ------------------------------------------------------------------ outbox

    def enqueue(self, run_id: str, *tasks: AnyTask) -> int:
        """Queue tasks in this order; the number of those that changed anything. All or none are committed."""
        replaced: list[AnyTask] = []
        with self._db.write() as db:
            run = _run(db, run_id)
            changed = sum(self._put(db, run, task, replaced) for task in tasks)
        self._remove_files(replaced)
        if changed:
            self._tell()
        return changed

    def enqueue_bytes(self, run_id: str, artifact_path: str, data: bytes) -> None:
        """Keep `data` in the spool's folder until it is an artifact of the run."""
        self._files.mkdir(parents=True, exist_ok=True)
        file = self._files / uuid.uuid4().hex
        file.write_bytes(data)
        self.enqueue(run_id, LogArtifact(artifact_path=artifact_path, file=str(file), owned=True))

    def tasks(self, run_id: str, limit: int = 100) -> list[StoredTask]:
        """The run's first waiting tasks, in order."""
        query = (
            "SELECT o.seq, o.body, o.tries FROM outbox o JOIN runs r ON r.id = o.run"
            " WHERE r.run_id = ? AND o.state = 'pending' ORDER BY o.seq LIMIT ?"
        )
        with self._db.read() as db:
            rows = db.execute(query, (run_id, limit)).fetchall()
        return [StoredTask(seq, TASK.validate_json(body), tries) for seq, body, tries in rows]

    def mark_done(self, task: StoredTask) -> None:
        """MLflow has this version of the task."""
        self._settle(task, "done", "")

    def mark_failed(self, task: StoredTask, error: str) -> None:
        """MLflow refuses this version of the task for good; the run's other tasks go on."""
        self._settle(task, "failed", error)

    def mark_tried(self, task: StoredTask, error: str) -> None:
        """An attempt at the task failed in a way that may pass."""
        with self._db.write() as db:
            db.execute("UPDATE outbox SET tries = tries + 1, error = ? WHERE seq = ?", (error, task.seq))

    def failures(self, run_id: str | None = None) -> list[TaskFailure]:
        """Tasks that MLflow refused, of one run or of all."""
        query = (
            "SELECT r.run_id, o.body, o.error FROM outbox o JOIN runs r ON r.id = o.run"
            " WHERE o.state = 'failed' AND (? IS NULL OR r.run_id = ?) ORDER BY o.seq"
        )
        with self._db.read() as db:
            rows = db.execute(query, (run_id, run_id)).fetchall()
        return [TaskFailure(found, TASK.validate_json(body), error) for found, body, error in rows]

    # ------------------------------------------------------------------ runs and MLflow

    def set_mlflow_run(self, run_id: str, experiment_id: str, mlflow_run_id: str) -> None:
        """Remember which MLflow run is this run's."""
        with self._db.write() as db:
            db.execute(
                "UPDATE runs SET mlflow_experiment_id = ?, mlflow_run_id = ? WHERE id = ?",
                (experiment_id, mlflow_run_id, _run(db, run_id)),
            )

    def mlflow_run_id(self, run_id: str) -> str | None:
        """The MLflow run of this run, None until it has been created."""
        found = self.mlflow_run(run_id)
        return found[1] if found else None

    def mlflow_run(self, run_id: str) -> tuple[str, str] | None:
        """(experiment id, run id) in MLflow, None until created."""
        query = "SELECT mlflow_experiment_id, mlflow_run_id FROM runs WHERE run_id = ?"
        with self._db.read() as db:
            row = db.execute(query, (run_id,)).fetchone()
        return (row[0], row[1]) if row and row[1] else None

    def forget_mlflow(self, run_id: str) -> None:
        """MLflow has lost the run: tell it everything again, from the creation to the last point."""
        with self._db.write() as db:
            row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                raise NotFoundError(f"the spool knows no run {run_id}")
            db.execute(
                "UPDATE runs SET mlflow_run_id = NULL, mlflow_experiment_id = NULL, shipped = 0 WHERE id = ?",
                row,
            )
            db.execute("UPDATE outbox SET state = 'pending', tries = 0, error = '' WHERE run = ?", row)
        self._tell()

    def waiting(self) -> list[str]:
        """Runs with something that MLflow does not have yet."""
        query = (
            "SELECT run_id FROM runs WHERE id IN (SELECT id FROM runs WHERE newest > shipped"
            " UNION SELECT run FROM outbox WHERE state = 'pending') ORDER BY id"
        )
        with self._db.read() as db:
            return [run_id for (run_id,) in db.execute(query)]

    def backlog(self) -> Backlog:
        """How far MLflow is behind."""
        behind = "FROM runs r JOIN points p ON p.run = r.id AND p.seq > r.shipped WHERE r.newest > r.shipped"
        with self._db.read() as db:
            points, oldest_point = db.execute(f"SELECT COUNT(*), MIN(p.time_ms) {behind}").fetchone()
            query = "SELECT COUNT(*), MIN(created_ms) FROM outbox WHERE state = 'pending'"
            tasks, oldest_task = db.execute(query).fetchone()
            (failed,) = db.execute("SELECT COUNT(*) FROM outbox WHERE state = 'failed'").fetchone()
            (refused,) = db.execute("SELECT COUNT(*) FROM refused_points").fetchone()
        oldest = [instant for instant in (oldest_point, oldest_task) if instant is not None]
        return Backlog(points, tasks, min(oldest, default=None), failed, refused)

    # ------------------------------------------------------------------ inside

    def _put(self, db: sqlite3.Connection, run: int, task: AnyTask, replaced: list[AnyTask]) -> bool:
        key, body = task.dedupe_key(), task.model_dump_json()
        query = "SELECT seq, body, state FROM outbox WHERE run = ? AND dedupe = ?"
        row = db.execute(query, (run, key)).fetchone()
        if row is not None:
            seq, known, state = row
            if not task.newest_wins or (known == body and state != "failed"):
                return False
            # A new row, not an update: whoever is sending the old version marks the old seq, which is gone.
            db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
            replaced.append(TASK.validate_json(known))
        db.execute(
            "INSERT INTO outbox (run, dedupe, body, created_ms) VALUES (?, ?, ?, ?)",
            (run, key, body, int(self._clock.now().timestamp() * 1000)),
        )
        return True

    def _settle(self, task: StoredTask, state: str, error: str) -> None:
        with self._db.write() as db:
            db.execute("UPDATE outbox SET state = ?, error = ? WHERE seq = ?", (state, error, task.seq))
        if state == "done":
            self._remove_files([task.task])

    def _remove_files(self, tasks: Iterable[AnyTask]) -> None:
        for task in tasks:
            if isinstance(task, LogArtifact) and task.owned:
                Path(task.file).unlink(missing_ok=True)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _clean(point: Point) -> tuple[str, int, int, float] | None:
    if not all(-_INT64 <= number < _INT64 for number in (point.step, point.time_ms)):
        return None
    key, value = point.key, point.value
    if not math.isfinite(value):
        key, value = f"{key}/nonfinite", 1.0
    return tracking_key(key), point.step, point.time_ms, value


def _run(db: sqlite3.Connection, run_id: str) -> int:
    row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        row = db.execute("INSERT INTO runs (run_id) VALUES (?) RETURNING id", (run_id,)).fetchone()
    return int(row[0])


def _series(db: sqlite3.Connection, run: int, key: str) -> int:
    row = db.execute("SELECT id FROM series WHERE run = ? AND key = ?", (run, key)).fetchone()
    if row is None:
        row = db.execute("INSERT INTO series (run, key) VALUES (?, ?) RETURNING id", (run, key)).fetchone()
    return int(row[0])


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))
