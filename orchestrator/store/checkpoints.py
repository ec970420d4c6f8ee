"""Committing checkpoints to shared storage, and keeping the few that are worth it.

A commit uploads to a place of its own, verifies what was stored, and then fills the next slot of the run's
log. Only that last write counts; a process that dies before it leaves data that nobody will ever load.
"""

from __future__ import annotations

import hashlib
import logging
import math
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.errors import DamagedError, StoreError, StoreUnavailableError
from orchestrator.store.protocol import ObjectStore, Source
from orchestrator.store.records import (
    CheckpointRecord,
    FileEntry,
    Parent,
    PointsRef,
    Record,
    data_key,
    data_prefix,
    points_key,
)
from orchestrator.store.restore import Restored, checked, restore, restore_path
from orchestrator.store.retention import choose, leftovers, retire
from orchestrator.store.runlog import Claim, RunLog, fold
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
    ) -> CheckpointRecord:
        """Make a finished directory a checkpoint of the run. Durable and loadable once this returns.

        `points` are JSON lines measured since the last commit, stored with it; `parent` is the checkpoint
        that this attempt went on from. Metrics that are not finite are left out.

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
        try:
            files = self._upload(directory, prefix)
            stored = self._upload_points(step, token, self._carried + points)
            record = self._claim.append(
                lambda stamp: CheckpointRecord(
                    **stamp,
                    node=node,
                    step=step,
                    data=prefix,
                    files=tuple(files),
                    metrics={key: value for key, value in metrics.items() if math.isfinite(value)},
                    device=device,
                    points=stored,
                    parent=Parent(run=parent.run, step=parent.step, id=parent.id) if parent else None,
                )
            )
        except BaseException as error:
            self._clean_up(prefix, error)
            raise
        self._carried = b""
        assert isinstance(record, CheckpointRecord)
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

    def _retire(self, records: list[CheckpointRecord], why: str) -> Record:
        return self._claim.append(lambda stamp: retire(stamp, records, why))

    def _upload(self, directory: Path, prefix: str) -> list[FileEntry]:
        paths = scan(directory, self._limits)
        entries: list[FileEntry] = []

        def objects() -> Iterator[tuple[str, Source]]:
            for path in paths:
                with open_file(directory, path) as reader:
                    yield data_key(prefix, path), reader
                    entries.append(reader.entry(path))

        try:
            self._store.put_all(objects())
        except OSError as error:
            raise StoreError(f"cannot read {directory}: {error.strerror or error}") from error
        for entry in entries:
            _drain(checked(self._store, data_key(prefix, entry.path), entry))
        return entries

    def _upload_points(self, step: int, token: uuid.UUID, data: bytes) -> PointsRef | None:
        if not data:
            return None
        key = points_key(self._claim.run_id, self._claim.attempt, step, token)
        stored = PointsRef(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._store.put(key, data)
        _drain(checked(self._store, key, stored))
        return stored

    def _clean_up(self, prefix: str, error: BaseException) -> None:
        """Remove what was uploaded, unless the log may refer to it after all."""
        if isinstance(error, StoreUnavailableError) or not isinstance(error, StoreError):
            return
        try:
            for info in list(self._store.list(prefix + "/")):
                self._store.delete(info.key)
        except StoreError as failure:
            _LOG.warning("left %s behind: %s", prefix, failure.message)


def _drain(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


def checkpoints(store: ObjectStore, run_id: str) -> list[CheckpointRecord]:
    """The committed checkpoints of a run in the order of commits, retired ones marked; empty for an unknown
    run.
    """
    return list(fold(RunLog(store, run_id).slots()).checkpoints)


def points(store: ObjectStore, run_id: str, attempt: int | None = None) -> Iterator[bytes]:
    """The points that were stored with committed checkpoints (of one attempt), in order, one item per commit.

    Retention does not touch them. DamagedError where one does not verify; ask again without that attempt.
    """
    for record in checkpoints(store, run_id):
        if record.points is not None and attempt in (None, record.attempt):
            yield b"".join(checked(store, record.points.key, record.points))


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
