"""Collecting what nobody can need: data of retired checkpoints and of commits that never happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.store.protocol import ObjectInfo, ObjectStore
from orchestrator.store.records import Discard, data_root, points_root
from orchestrator.store.retention import attempt_of, data_of, leftovers
from orchestrator.store.runlog import History, RunLog


@dataclass(frozen=True)
class Garbage:
    """What was collected of one run, or would be."""

    run: str
    objects: int
    size: int
    """Bytes."""


def stored_runs(store: ObjectStore) -> list[str]:
    """The ids of all runs that have a log in the store, sorted."""
    found: dict[str, None] = {}
    for info in store.list("runs/"):
        parts = info.key.split("/")
        if len(parts) == 4 and parts[2] == "log":
            found[parts[1]] = None
    return list(found)


def collect(
    store: ObjectStore, run_id: str, *, ended: bool, retired_before: datetime, dry_run: bool = False
) -> Garbage:
    """Delete what no checkpoint of a run needs; with `dry_run` only say how much that is.

    Whoever owns the run can go on meanwhile: retired data goes after its grace, and what dead attempts have
    left. Where the run has `ended`, also what its last attempt has sent without committing it. That attempt
    may still exist somewhere, asleep in the middle of a commit; so the log first says that this data is
    discarded, and a record that refers to it does not count any more.
    """
    log = RunLog(store, run_id)
    history = log.history()
    if not history.owner:
        return Garbage(run_id, 0, 0)
    if ended and not history.unreadable and (orphans := _orphans(store, run_id, history)):
        if dry_run:
            history = History(**{**vars(history), "discarded": history.discarded | set(orphans)})
        else:
            history = _discard(log, orphans)
    found = list(leftovers(store, run_id, history, history.owner, retired_before))
    if not dry_run:
        for info in found:
            store.delete(info.key)
    return Garbage(run_id, len(found), sum(info.size for info in found))


def _discard(log: RunLog, orphans: list[str]) -> History:
    def make(stamp: dict[str, Any], history: History) -> Discard:
        return Discard(**stamp, data=tuple(orphans))

    log.note(make)
    return log.history()


def _orphans(store: ObjectStore, run_id: str, history: History) -> list[str]:
    """Data prefixes of the owner that no record mentions."""
    points = {record.points.key for record in history.checkpoints if record.points}
    mentioned = {record.data for record in history.checkpoints} | history.discarded
    found = {data_of(info.key, run_id) for info in _objects(store, run_id) if info.key not in points}
    return sorted(data for data in found - mentioned if attempt_of(data, run_id) == history.owner)


def _objects(store: ObjectStore, run_id: str) -> Iterator[ObjectInfo]:
    yield from store.list(data_root(run_id))
    yield from store.list(points_root(run_id))
