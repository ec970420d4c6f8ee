"""Bringing a committed checkpoint back: sizes and SHA-256 are checked before anything becomes visible."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import ConflictError, DamagedError, NotFoundError, StoreError
from orchestrator.store.cache import NO_CACHE, CheckpointCache, OnBytes, silent
from orchestrator.store.copying import write_whole
from orchestrator.store.fetch import Fetch
from orchestrator.store.posix import pieces
from orchestrator.store.protocol import ObjectStore
from orchestrator.store.records import CheckpointRecord
from orchestrator.store.runlog import History, RunLog, Unreadable
from orchestrator.store.snapshot import Limits, open_file, scan

__all__ = ["Restored", "restore", "restore_path"]


@dataclass(frozen=True)
class Restored:
    """A checkpoint that is in `directory` now, whole and verified."""

    record: CheckpointRecord
    directory: Path
    skipped: list[tuple[CheckpointRecord, str]] = field(default_factory=list)
    """Newer checkpoints that are damaged, and how."""
    unreadable: tuple[Unreadable, ...] = ()
    """Damaged records of the log; each may have been a checkpoint."""


def restore(
    store: ObjectStore,
    run_id: str,
    step: int | None,
    into: Path,
    *,
    cache: CheckpointCache = NO_CACHE,
    on_bytes: OnBytes = silent,
) -> Restored:
    """Bring the newest checkpoint whose files verify, or the one of exactly this step.

    `into` must not exist; it appears whole or not at all. "Newest" is the one committed last. Files that are
    in the `cache` are taken from there, the others are downloaded; `on_bytes` is told of every byte that is
    there, from wherever it came.

    Errors: NotFoundError where there is no checkpoint (of this step), DamagedError where there are some and
    none verifies, ConflictError where `into` exists, StoreUnavailableError where the store cannot be read.
    Damage is never taken for absence, nor an unreachable store for damage.
    """
    if os.path.lexists(into):
        raise ConflictError(f"{into} exists already", remedy="Restore to a new directory.")
    log = RunLog(store, run_id)
    skipped: dict[uuid.UUID, tuple[CheckpointRecord, str]] = {}
    while True:
        history = log.history()
        record = next((c for c in _candidates(history, run_id, step) if c.id not in skipped), None)
        if record is None:
            raise _all_damaged(run_id, list(skipped.values()), history)
        try:
            with _aside(into) as folder:
                Fetch(store, record, cache, on_bytes).bring_all(folder)
        except DamagedError as error:
            skipped[record.id] = (record, error.message)
            continue
        live = {checkpoint.id for checkpoint in history.live}
        damaged = [pair for pair in skipped.values() if pair[0].id in live]
        return Restored(record, into, damaged, history.unreadable)


def _candidates(history: History, run_id: str, step: int | None) -> list[CheckpointRecord]:
    """Newest first. The log is read anew after each failure: retention may have removed what was being
    read.
    """
    found = [c for c in reversed(history.live) if step is None or c.step == step]
    if found:
        return found
    have = ", ".join(str(c.step) for c in history.live) or "none"
    what = f"checkpoint of step {step}" if step is not None else "checkpoint"
    damaged = f"; {len(history.unreadable)} log records are damaged" if history.unreadable else ""
    raise NotFoundError(f"run {run_id} has no {what} (steps it has: {have}{damaged})")


def _all_damaged(run_id: str, skipped: list[tuple[CheckpointRecord, str]], history: History) -> DamagedError:
    live = {checkpoint.id for checkpoint in history.live}
    told = "; ".join(f"step {record.step}: {why}" for record, why in skipped if record.id in live)
    return DamagedError(
        f"no checkpoint of run {run_id} that was asked for is intact: {told}",
        remedy="Name an earlier step, or bring the store's files back from a backup.",
    )


def restore_path(path: Path, into: Path) -> None:
    """Copy a plain directory of this machine to `into`, which must not exist; it appears whole or not at all.

    NotFoundError where `path` is no directory; StoreError where it has anything but regular files.
    """
    if not path.is_dir():
        raise NotFoundError(f"{path} is not a directory on this machine")
    if os.path.lexists(into):
        raise ConflictError(f"{into} exists already", remedy="Restore to a new directory.")
    with _aside(into) as folder:
        for name in scan(path, Limits()):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_file(path, name) as reader, target.open("xb", buffering=0) as file:
                for chunk in pieces(reader):
                    write_whole(file, chunk)


@contextmanager
def _aside(into: Path) -> Iterator[Path]:
    """A new directory beside `into` that takes its name at the end, and vanishes on an error."""
    folder = into.with_name(f".{into.name}.{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(into)
    except OSError as error:
        raise StoreError(
            f"cannot write {into}: {error.strerror or error}", remedy="Check the disk of this machine."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
