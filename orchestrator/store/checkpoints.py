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
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import DamagedError, FencedError, StoreError, StoreUnavailableError
from orchestrator.store.cache import OnBytes, silent
from orchestrator.store.fetch import checked, drained
from orchestrator.store.protocol import ObjectStore
from orchestrator.store.records import (
    CheckpointRecord,
    FileEntry,
    Parent,
    PointsRef,
    Retire,
    data_prefix,
    points_key,
)
from orchestrator.store.restore import Restored, restore, restore_path
from orchestrator.store.retention import choose, leftovers, retire
from orchestrator.store.runlog import Claim, History, RunLog
from orchestrator.store.snapshot import Limits
from orchestrator.store.upload import Uploader

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


@dataclass(frozen=True)
class _Upload:
    """Where the files of a directory go."""

    directory: Path
    step: int
    data: str
    points: str


class CheckpointWriter:
    """Commits and retires the checkpoints of one attempt. One thread at a time."""

    def __init__(
        self, store: ObjectStore, claim: Claim, *, limits: Limits | None = None, clock: Clock = SYSTEM
    ) -> None:
        self._store = store
        self._claim = claim
        self._limits = limits or Limits()
        self._clock = clock
        self._uploader = Uploader(store, self._limits)
        self._interrupted: _Upload | None = None
        """What was being sent when the store went away."""
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
        versions: Mapping[str, str] | None = None,
        on_bytes: OnBytes = silent,
    ) -> CheckpointRecord:
        """Make a finished directory a checkpoint of the run. Durable and loadable once this returns.

        `points` are JSON lines measured since the last commit, stored with it; `parent` is the checkpoint
        that this attempt went on from; `versions` of the software that wrote it. Metrics that are not finite
        are left out. Large files that the newest checkpoint has already are referred to, not sent again.
        `on_bytes` is told how many bytes of the directory have been taken for upload since its last call.

        A step that has a checkpoint already: the first one counts and is returned, nothing is uploaded, and
        the points travel with the next commit. Only where the first one comes from an earlier attempt and
        is damaged, it is retired and this directory takes its place.

        Errors: FencedError where a newer attempt has the run (nothing was committed), StoreFullError (nothing
        was committed, what had been uploaded is removed), StoreUnavailableError (the outcome is unknown; the
        log tells; the same call again goes on with what was sent), StoreError where the directory cannot be a
        checkpoint. After an error the points are still the caller's.
        """
        if len(points) > self._limits.points:
            raise StoreError(f"more than {self._limits.points} bytes of points in one commit")
        counted = self._counted(step)
        if counted is not None:
            self._carried += points
            return counted
        upload = self._begin(directory, step)
        with self._tidied_on_error(upload, sent=False):
            files = self._uploader.send(directory, upload.data, self._known(), on_bytes)
            stored = self._upload_points(upload.points, self._carried + points)

        arrived: list[CheckpointRecord] = []

        def make(stamp: dict[str, Any], history: History) -> CheckpointRecord | None:
            if found := history.find(step):
                arrived[:] = [found]
                return None
            if upload.data in history.discarded:
                raise _collected(upload)
            return CheckpointRecord(
                **stamp,
                node=node,
                step=step,
                data=upload.data,
                files=files,
                metrics={key: float(value) for key, value in metrics.items() if math.isfinite(value)},
                device=device,
                points=stored,
                parent=Parent(run=parent.run, step=parent.step, id=parent.id) if parent else None,
                versions=dict(versions or {}),
            )

        with self._tidied_on_error(upload, sent=True):
            record = self._claim.append_unless(make)
        if record is None:
            # An earlier try whose answer was lost has reached the log while this one was sent.
            self._give_up(upload)
            self._carried += points
            return arrived[0]
        self._carried = b""
        return record

    def retain(
        self,
        keep_last: int,
        keep_best: int,
        metric: str,
        mode: str,
        *,
        keep_every: int | None = None,
        grace_s: float = 0.0,
    ) -> list[int]:
        """Keep the newest `keep_last`, the best `keep_best`, one of every `keep_every` steps and what has a
        tag, and delete the others' data `grace_s` seconds after they were retired.

        Returns the steps retired now. The newest one always stays. The log says "retired" before anything is
        deleted; what an earlier call could not delete, and what dead attempts have left behind, goes too.
        """
        dropped: list[CheckpointRecord] = []

        def make(stamp: dict[str, Any], history: History) -> Retire | None:
            dropped[:] = choose(history.live, keep_last, keep_best, metric, mode, keep_every)
            return retire(stamp, dropped, "retention") if dropped else None

        self._claim.append_unless(make)
        before = self._clock.now() - timedelta(seconds=grace_s)
        history = self._claim.history()
        for info in list(leftovers(self._store, self._claim.run_id, history, self._claim.attempt, before)):
            self._store.delete(info.key)
        return sorted(record.step for record in dropped)

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
        why = "damaged: " + "; ".join(problems)[:500]
        self._claim.append(lambda stamp: retire(stamp, [found], why))
        return None

    def _begin(self, directory: Path, step: int) -> _Upload:
        """The interrupted upload where this is its directory, else a new one.

        The points have another name each time: those of an earlier try, which may be fewer, can still be on
        their way and arrive last.
        """
        before, self._interrupted = self._interrupted, None
        run, attempt, token = self._claim.run_id, self._claim.attempt, uuid.uuid4()
        points = points_key(run, attempt, step, token)
        if before is not None:
            if (before.directory, before.step) == (directory, step):
                return replace(before, points=points)
            self._give_up(before)
        return _Upload(directory, step, data_prefix(run, attempt, step, token), points)

    def _known(self) -> dict[str, FileEntry]:
        """The files of the newest checkpoint by path, with their keys."""
        live = self._claim.history().live
        if not live:
            return {}
        return {file.path: file.model_copy(update={"key": live[-1].key(file)}) for file in live[-1].files}

    def _upload_points(self, key: str, data: bytes) -> PointsRef | None:
        if not data:
            return None
        stored = PointsRef(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._store.put(key, data)
        self._uploader.read_back(key, stored)
        return stored

    @contextmanager
    def _tidied_on_error(self, upload: _Upload, *, sent: bool) -> Iterator[None]:
        """Remove what was uploaded, unless the log may refer to it (the record was `sent`, with what outcome
        is unknown), or the store is away and the upload goes on later.
        """
        try:
            yield
        except StoreError as error:
            away = isinstance(error, StoreUnavailableError)
            if not away:
                self._give_up(upload)
            if not sent:
                self._blame_others(upload, error)
                if away:
                    self._interrupted = upload
            raise

    def _give_up(self, upload: _Upload) -> None:
        try:
            for key in self._uploader.forget():
                self._store.delete(key)
            for info in list(self._store.list(upload.data + "/")):
                self._store.delete(info.key)
            self._store.delete(upload.points)
        except StoreError as failure:
            # Whoever owns the run next removes it.
            _LOG.warning("left %s behind: %s", upload.data, failure.message)

    def _blame_others(self, upload: _Upload, error: StoreError) -> None:
        """Where somebody removes what this attempt was uploading, the failure is not the store's fault: a
        newer attempt, or whoever collects garbage.
        """
        try:
            discarded = self._claim.history().discarded
        except FencedError as fenced:
            raise fenced from error
        except StoreError as second:
            _LOG.warning("after %s: %s", error.message, second.message)
            if isinstance(error, DamagedError):
                raise second from error  # nobody knows whose fault it is
            return
        if upload.data in discarded:
            raise _collected(upload) from error


def _collected(upload: _Upload) -> StoreUnavailableError:
    return StoreUnavailableError(f"what was sent for step {upload.step} was collected as garbage")


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


def verify(store: ObjectStore, record: CheckpointRecord, on_bytes: OnBytes = silent) -> list[str]:
    """Read a checkpoint's files again; what is wrong with them, empty where they are as they were
    committed. `on_bytes` is told how many bytes have been read since its last call.
    """
    problems: list[str] = []
    for file in record.files:
        try:
            drained(store, record.key(file), file, on_bytes)
        except DamagedError as error:
            problems.append(error.message)
    return problems
