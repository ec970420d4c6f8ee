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
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import NotFoundError
from orchestrator.messages import PointView
from orchestrator.messages_agent import Point
from orchestrator.store.outbox import TASK, AnyTask, LogArtifact, tracking_key
from orchestrator.store.spool_files import SpoolFiles
from orchestrator.store.spool_schema import (
    SCHEMA,
    VERSION,
    Backlog,
    StoredPoint,
    StoredTask,
    Stretches,
    TaskFailure,
)
from orchestrator.store.sqlite_file import SqliteFile

_INT64 = 2**63
_NOTHING: Mapping[str, bytes] = MappingProxyType({})
_IN_LIMIT = 500
"""Values per SQL `IN` list, below SQLite's limit of 999 in old builds."""
_OWNED = "json_extract(body, '$.owned') = 1"
_REPEATABLE = f"run = ? AND NOT (state = 'done' AND COALESCE({_OWNED}, 0))"


class Spool:
    """See the module's description."""

    def __init__(self, path: Path, clock: Clock = SYSTEM) -> None:
        """Open or create the file at `path`; artifact bytes lie beside it in `<name>.files/`."""
        self._clock = clock
        self._db = SqliteFile(path, SCHEMA, VERSION)
        self._listeners: list[Callable[[], None]] = []
        self._files = SpoolFiles(path.with_name(f"{path.name}.files"))
        self._files_lock = threading.Lock()
        self._files.sweep(self._owned_files())

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

    def stretches(self, asked: Sequence[Stretches]) -> list[list[tuple[int, float, int, int]]]:
        """For each: (step // width, sum of values, number of points, highest step), in the order of steps."""
        query = (
            "SELECT p.step / ?, SUM(p.value), COUNT(*), MAX(p.step) FROM runs r JOIN series s ON s.run = r.id"
            " JOIN points p ON p.series = s.id WHERE r.run_id = ? AND s.key = ? AND p.step > ?"
            " GROUP BY 1 ORDER BY 1"
        )
        with self._db.read() as db:
            return [
                db.execute(query, (one.width, one.run_id, tracking_key(one.key), one.after_step)).fetchall()
                for one in asked
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

    def best(
        self, run_ids: Sequence[str], key: str, mode: Literal["min", "max"]
    ) -> dict[str, tuple[int, float]]:
        """(step, value) of each run's lowest or highest value; runs without any are left out. Looks at every
        point of the series."""
        found: dict[str, tuple[int, float]] = {}
        with self._db.read() as db:
            for first in range(0, len(run_ids), _IN_LIMIT):
                some = run_ids[first : first + _IN_LIMIT]
                # With MIN or MAX, SQLite takes the other columns from the row that has it.
                query = (
                    f"SELECT r.run_id, p.step, {mode.upper()}(p.value) FROM runs r"
                    " JOIN series s ON s.run = r.id"
                    f" JOIN points p ON p.series = s.id WHERE s.key = ? AND r.run_id IN ({_marks(some)})"
                    " GROUP BY r.run_id"
                )
                for run_id, step, value in db.execute(query, [tracking_key(key), *some]):
                    found[run_id] = (step, value)
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

    def enqueue(self, run_id: str, *tasks: AnyTask, files: Mapping[str, bytes] = _NOTHING) -> int:
        """Queue tasks in this order, then the files; the number of those that changed anything.

        All or none are committed. `files` has the bytes of artifacts by their path; they are kept in the
        spool's folder until they are artifacts of the run.
        """
        with self._files_lock:
            owned = [
                LogArtifact(artifact_path=path, file=str(self._files.put(run_id, path, data)), owned=True)
                for path, data in files.items()
            ]
            changed = self._enqueue(run_id, [*tasks, *owned])
            self._remove_unwanted(run_id, [*owned, *changed])
        if changed:
            self._tell()
        return len(changed)

    def tasks(self, run_id: str, limit: int = 100) -> list[StoredTask]:
        """The run's first waiting tasks, in order."""
        query = (
            "SELECT o.seq, o.body, o.tries FROM outbox o JOIN runs r ON r.id = o.run"
            " WHERE r.run_id = ? AND o.state = 'pending' ORDER BY o.seq LIMIT ?"
        )
        with self._db.read() as db:
            rows = db.execute(query, (run_id, limit)).fetchall()
        return [StoredTask(run_id, seq, TASK.validate_json(body), tries) for seq, body, tries in rows]

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
        """MLflow has lost the run: tell it everything again, from the creation to the last point.

        Only artifacts whose bytes were kept here until they were sent cannot be sent again.
        """
        with self._db.write() as db:
            row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                raise NotFoundError(f"the spool knows no run {run_id}")
            columns = "mlflow_run_id = NULL, mlflow_experiment_id = NULL, shipped = 0, parked = NULL"
            db.execute(f"UPDATE runs SET {columns} WHERE id = ?", row)
            db.execute(f"UPDATE outbox SET state = 'pending', tries = 0, error = '' WHERE {_REPEATABLE}", row)
        self._tell()

    def park(self, run_id: str, reason: str) -> None:
        """Keep what the run has, but send nothing of it until :meth:`unpark`."""
        with self._db.write() as db:
            db.execute("UPDATE runs SET parked = ? WHERE run_id = ?", (reason, run_id))

    def parked(self) -> dict[str, str]:
        """Run -> why nothing of it is sent."""
        with self._db.read() as db:
            return dict(db.execute("SELECT run_id, parked FROM runs WHERE parked IS NOT NULL"))

    def unpark(self) -> None:
        """Try all parked runs again."""
        with self._db.write() as db:
            db.execute("UPDATE runs SET parked = NULL WHERE parked IS NOT NULL")

    def waiting(self) -> list[str]:
        """Runs with something that MLflow does not have yet, those that began first coming first."""
        query = (
            "SELECT run_id FROM runs WHERE parked IS NULL AND id IN (SELECT id FROM runs"
            " WHERE newest > shipped UNION SELECT run FROM outbox WHERE state = 'pending') ORDER BY id"
        )
        with self._db.read() as db:
            return [run_id for (run_id,) in db.execute(query)]

    def backlog(self) -> Backlog:
        """How far MLflow is behind."""
        points = (
            "SELECT COUNT(*), MIN(p.time_ms) FROM runs r JOIN points p ON p.run = r.id AND p.seq > r.shipped"
            " WHERE r.newest > r.shipped AND r.parked IS NULL"
        )
        tasks = (
            "SELECT COUNT(*), MIN(o.created_ms) FROM outbox o JOIN runs r ON r.id = o.run"
            " WHERE o.state = 'pending' AND r.parked IS NULL"
        )
        counts = (
            "SELECT (SELECT COUNT(*) FROM outbox WHERE state = 'failed'),"
            " (SELECT COUNT(*) FROM refused_points), (SELECT COUNT(*) FROM runs WHERE parked IS NOT NULL)"
        )
        with self._db.read() as db:
            waiting_points, oldest_point = db.execute(points).fetchone()
            waiting_tasks, oldest_task = db.execute(tasks).fetchone()
            failed, refused, parked = db.execute(counts).fetchone()
        oldest = [instant for instant in (oldest_point, oldest_task) if instant is not None]
        return Backlog(waiting_points, waiting_tasks, min(oldest, default=None), failed, refused, parked)

    # ------------------------------------------------------------------ inside

    def _enqueue(self, run_id: str, tasks: Iterable[AnyTask]) -> list[AnyTask | None]:
        """For each task that changed anything: what it replaced."""
        with self._db.write() as db:
            run = _run(db, run_id)
            outcomes = [self._put(db, run, task) for task in tasks]
        return [replaced for changed, replaced in outcomes if changed]

    def _put(self, db: sqlite3.Connection, run: int, task: AnyTask) -> tuple[bool, AnyTask | None]:
        key, replaced = task.dedupe_key(), None
        query = "SELECT seq, body, state FROM outbox WHERE run = ? AND dedupe = ?"
        row = db.execute(query, (run, key)).fetchone()
        if row is not None:
            if not task.newest_wins:
                return False, None
            seq, known, state = row
            replaced = TASK.validate_json(known)
            if state != "failed":
                task = task.after(replaced)
                if task == replaced:
                    return False, None
            # A new row, not an update: whoever is sending the old version marks the old seq, which is gone.
            db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
        db.execute(
            "INSERT INTO outbox (run, dedupe, body, created_ms) VALUES (?, ?, ?, ?)",
            (run, key, task.model_dump_json(), int(self._clock.now().timestamp() * 1000)),
        )
        return True, replaced

    def _settle(self, task: StoredTask, state: str, error: str) -> None:
        with self._files_lock:
            with self._db.write() as db:
                db.execute("UPDATE outbox SET state = ?, error = ? WHERE seq = ?", (state, error, task.seq))
            self._remove_unwanted(task.run_id, [task.task])

    def _owned_files(self, run_id: str | None = None) -> set[str]:
        """The files that tasks of one run, or of all, still need."""
        of_run = "" if run_id is None else " AND run = (SELECT id FROM runs WHERE run_id = ?)"
        query = f"SELECT json_extract(body, '$.file') FROM outbox WHERE state != 'done' AND {_OWNED}{of_run}"
        with self._db.read() as db:
            return {file for (file,) in db.execute(query, () if run_id is None else (run_id,))}

    def _remove_unwanted(self, run_id: str, tasks: Iterable[AnyTask | None]) -> None:
        """Remove the files of a run's tasks that none of its waiting tasks refers to."""
        owned = {task.file for task in tasks if isinstance(task, LogArtifact) and task.owned}
        if owned:
            for file in owned - self._owned_files(run_id):  # no other run has a file of this name
                Path(file).unlink(missing_ok=True)

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
