"""Committing checkpoints to shared storage, and keeping the few that are worth it.

A commit uploads to a place of its own, verifies what was stored, and then fills the next slot of the run's
log. Only that last write counts; a process that dies before it leaves data that nobody will ever load.
"""

from __future__ import annotations

import hashlib
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import DamagedError, FencedError, StoreError, StoreUnavailableError
from orchestrator.store.cache import OnBytes, silent
from orchestrator.store.protocol import ObjectStore, Source
from orchestrator.store.records import (
    CheckpointRecord,
    FileEntry,
    Parent,
    PointsRef,
    data_key,
    data_prefix,
    points_key,
)
from orchestrator.store.restore import Restored, checked, restore, restore_path
from orchestrator.store.retention import choose, leftovers, retire
from orchestrator.store.runlog import Claim, RunLog
from orchestrator.store.snapshot import Limits, open_file, scan

__all__ = [
    "CheckpointRecord",
    "CheckpointWriter",
    "Limits",
    "Restored",
    "checkpoints",
    "points",
    "restore",
    "restore_path",
    "verify",
]

_LOG = logging.getLogger(__name__)


class CheckpointWriter:
    """Commits and retires the checkpoints of one attempt. One thread at a time."""

    def __init__(self, store: ObjectStore, claim: Claim, *, limits: Limits | None = None) -> None:
        self._store = store
        self._claim = claim
        self._limits = limits or Limits()
        self._carried = b""

    def commit(
        self,
        directory: Path,
        step: int,
        *,
        metrics: Mapping[str, float],
        device: str,
        node: str,
        points: bytes = b"",
        parent: CheckpointRecord | None = None,
        on_bytes: OnBytes = silent,
    ) -> CheckpointRecord:
        """Make a finished directory a checkpoint of the run. Durable and loadable once this returns.

        `points` are JSON lines measured since the last commit, stored with it; `parent` is the checkpoint
        that this attempt went on from. Metrics that are not finite are left out. `on_bytes` is told how many
        bytes of the directory have been taken for upload since its last call.

        A step that has a checkpoint already: the first one counts and is returned, nothing is uploaded, and
        the points travel with the next commit. Only where the first one comes from an earlier attempt and
        is damaged, it is retired and this directory takes its place.

        Errors: FencedError where a newer attempt has the run (nothing was committed), StoreFullError (nothing
        was committed, what had been uploaded is removed), StoreUnavailableError (the outcome is unknown; the
        log tells), StoreError where the directory cannot be a checkpoint. After an error the points are still
        the caller's.
        """
        if len(points) > self._limits.points:
            raise StoreError(f"more than {self._limits.points} bytes of points in one commit")
        counted = self._counted(step)
        if counted is not None:
            self._carried += points
            return counted
        token = uuid.uuid4()
        prefix = data_prefix(self._claim.run_id, self._claim.attempt, step, token)
        points_at = points_key(self._claim.run_id, self._claim.attempt, step, token)
        with self._removed_on_error(prefix, points_at, sent=False):
            files = self._upload(directory, prefix, on_bytes)
            stored = self._upload_points(points_at, self._carried + points)
        with self._removed_on_error(prefix, points_at, sent=True):
            record = self._claim.append(
                lambda stamp: CheckpointRecord(
                    **stamp,
                    node=node,
                    step=step,
                    data=prefix,
                    files=files,
                    metrics={key: float(value) for key, value in metrics.items() if math.isfinite(value)},
                    device=device,
                    points=stored,
                    parent=Parent(run=parent.run, step=parent.step, id=parent.id) if parent else None,
                )
            )
        self._carried = b""
        return record

    def retain(self, keep_last: int, keep_best: int, metric: str, mode: str) -> list[int]:
        """Keep the newest `keep_last` and the best `keep_best` checkpoints and delete the others' data.

        Returns the steps retired now. The newest one always stays. The log says "retired" before anything is
        deleted; what an earlier call could not delete, and what dead attempts have left behind, goes too.
        """
        history = self._claim.history()
        drop = choose(history.live, keep_last, keep_best, metric, mode)
        if drop:
            self._retire(drop, "retention")
        history = self._claim.history()
        for key in list(leftovers(self._store, self._claim.run_id, history, self._claim.attempt)):
            self._store.delete(key)
        return sorted(record.step for record in drop)

    # ------------------------------------------------------------------ steps of a commit

    def _counted(self, step: int) -> CheckpointRecord | None:
        """The checkpoint that counts for this step; a damaged one of an earlier attempt is retired first."""
        found = self._claim.history().find(step)
        if found is None or found.attempt == self._claim.attempt:
            return found
        problems = verify(self._store, found)
        if not problems:
            return found
        _LOG.warning("checkpoint of step %d from attempt %d is damaged: %s", step, found.attempt, problems)
        self._retire([found], "damaged: " + "; ".join(problems)[:500])
        return None

    def _retire(self, records: list[CheckpointRecord], why: str) -> None:
        self._claim.append(lambda stamp: retire(stamp, records, why))

    def _upload(self, directory: Path, prefix: str, on_bytes: OnBytes) -> tuple[FileEntry, ...]:
        entries: list[FileEntry] = []

        def objects() -> Iterator[tuple[str, Source]]:
            for path in scan(directory, self._limits):
                with open_file(directory, path, on_bytes) as reader:
                    yield data_key(prefix, path), reader
                    entries.append(reader.entry(path))

        try:
            self._store.put_all(objects())
        except OSError as error:
            raise StoreError(f"cannot read {directory}: {error.strerror or error}") from error
        for entry in entries:
            self._read_back(data_key(prefix, entry.path), entry)
        return tuple(entries)

    def _upload_points(self, key: str, data: bytes) -> PointsRef | None:
        if not data:
            return None
        stored = PointsRef(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._store.put(key, data)
        self._read_back(key, stored)
        return stored

    def _read_back(self, key: str, expected: FileEntry | PointsRef) -> None:
        try:
            _drain(checked(self._store, key, expected))
        except DamagedError as error:
            raise DamagedError(
                f"{self._store.uri} did not keep what was written: {error.message}",
                remedy="Check the disk or server of the store.",
            ) from error

    @contextmanager
    def _removed_on_error(self, prefix: str, points_at: str, *, sent: bool) -> Iterator[None]:
        """Remove what was uploaded, unless the log may refer to it: the record was `sent`, with what
        outcome is unknown.
        """
        try:
            yield
        except StoreError as error:
            if not (sent and isinstance(error, StoreUnavailableError)):
                self._remove(prefix, points_at)
            if not sent:
                self._blame_fence(error)
            raise

    def _remove(self, prefix: str, points_at: str) -> None:
        try:
            for info in list(self._store.list(prefix + "/")):
                self._store.delete(info.key)
            self._store.delete(points_at)
        except StoreError as failure:
            # Whoever owns the run next removes it.
            _LOG.warning("left %s behind: %s", prefix, failure.message)

    def _blame_fence(self, error: StoreError) -> None:
        """A newer attempt removes what this one was uploading: then the failure is not the store's fault."""
        try:
            self._claim.check()
        except FencedError as fenced:
            raise fenced from error
        except StoreError as second:
            _LOG.warning("after %s: %s", error.message, second.message)


def _drain(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


def checkpoints(store: ObjectStore, run_id: str) -> list[CheckpointRecord]:
    """The committed checkpoints of a run in the order of commits, retired ones marked; empty for an unknown
    run.
    """
    return list(RunLog(store, run_id).history().checkpoints)


def points(
    store: ObjectStore,
    run_id: str,
    attempt: int | None = None,
    on_damage: Callable[[str], None] = _LOG.warning,
) -> Iterator[bytes]:
    """The points that were stored with committed checkpoints (of one attempt), in order, one item per commit.

    Retention does not touch them. A damaged item is left out, and `on_damage` is told which and why.
    """
    for record in checkpoints(store, run_id):
        if record.points is None or attempt not in (None, record.attempt):
            continue
        try:
            yield b"".join(checked(store, record.points.key, record.points))
        except DamagedError as error:
            on_damage(f"run {run_id}: points up to step {record.step} are lost: {error.message}")


def verify(store: ObjectStore, record: CheckpointRecord) -> list[str]:
    """Read a checkpoint's files again; what is wrong with them, empty where they are as they were
    committed.
    """
    problems: list[str] = []
    for file in record.files:
        try:
            _drain(checked(store, record.key(file), file))
        except DamagedError as error:
            problems.append(error.message)
    return problems
