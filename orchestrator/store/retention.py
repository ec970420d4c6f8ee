"""Which checkpoints to keep, and which data nobody can need any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from orchestrator.store.protocol import ObjectInfo, ObjectStore
from orchestrator.store.records import CheckpointRecord, Retire, data_root, points_root
from orchestrator.store.runlog import History


def choose(
    live: Sequence[CheckpointRecord],
    keep_last: int,
    keep_best: int,
    metric: str,
    mode: str,
    keep_every: int | None = None,
) -> list[CheckpointRecord]:
    """The checkpoints to drop, in the order given: all but the last `keep_last`, the best `keep_best`, the
    first at or after every multiple of `keep_every` steps, and those with a tag.

    `live` is in the order of commits; the last one is never dropped. Best is the smallest value of the
    metric with mode `min`, the largest with `max`, the earlier one on a tie; checkpoints without the metric
    are never best.
    """
    if keep_last < 1 or keep_best < 0 or mode not in ("min", "max") or (keep_every or 1) < 1:
        raise ValueError(f"{keep_last=}, {keep_best=}, {keep_every=}, {mode=}")
    sign = 1.0 if mode == "min" else -1.0
    measured = [record for record in live if metric in record.metrics]
    best = sorted(measured, key=lambda record: sign * record.metrics[metric])[:keep_best]
    keep = {record.id for record in [*live[-keep_last:], *best]}
    if keep_every:
        firsts: dict[int, CheckpointRecord] = {}
        for record in sorted(live, key=lambda record: record.step):
            if record.step >= keep_every:
                firsts.setdefault(record.step // keep_every, record)
        keep.update(record.id for record in firsts.values())
    return [record for record in live if record.id not in keep and not record.tags]


def retire(stamp: dict[str, Any], records: Sequence[CheckpointRecord], why: str) -> Retire:
    """The record that says so."""
    return Retire(**stamp, checkpoints=tuple(record.id for record in records), why=why)


def leftovers(
    store: ObjectStore, run_id: str, history: History, attempt: int, retired_before: datetime
) -> Iterator[ObjectInfo]:
    """Objects that nobody can need any more, as far as `attempt`, which owns the run, can be sure.

    These are data of checkpoints that were retired before that instant, of attempts before `attempt` that
    never committed it (they cannot any more), and what the log has discarded; also points of such commits,
    and what arrived below a checkpoint's prefix without being part of it: a file may be sent, its answer be
    lost, and then an older checkpoint's equal file be referred to.
    Other data of `attempt` itself may belong to a commit whose outcome it did not learn, and later attempts
    are not its business. What a checkpoint that stays refers to stays, whoever has put it there. A record
    that cannot be read may be of a checkpoint that needs anything older than it.
    """
    doubtful = max((slot.slot for slot in history.unreadable), default=0)
    kept: set[str] = set()
    for record in history.checkpoints:
        retired = record.retired_at is not None and record.retired_at <= retired_before
        if record.slot <= doubtful or not retired:
            kept.update(record.key(file) for file in record.files)
    mentioned = {record.data for record in history.checkpoints}
    points = {record.points.key for record in history.checkpoints if record.points}

    def collectable(data: str) -> bool:
        if data in mentioned or data in history.discarded:
            return True
        return not doubtful and 0 < attempt_of(data, run_id) < attempt

    for info in store.list(data_root(run_id)):
        if info.key not in kept and collectable(data_of(info.key, run_id)):
            yield info
    for info in store.list(points_root(run_id)):
        if info.key not in points and collectable(data_of(info.key, run_id)):
            yield info


def data_of(key: str, run_id: str) -> str:
    """The data prefix of the commit that an object among a run's data or points was sent for."""
    root = data_root(run_id)
    if key.startswith(root):
        number, _, rest = key.removeprefix(root).partition("/")
        return f"{root}{number}/{rest.partition('/')[0]}"
    number, _, rest = key.removeprefix(points_root(run_id)).removesuffix(".jsonl").partition("-")
    return f"{root}{number}/{rest}"


def attempt_of(data: str, run_id: str) -> int:
    """The attempt whose data it is; 0 where it is nobody's."""
    number = data.removeprefix(data_root(run_id)).partition("/")[0]
    return int(number) if number.isdigit() else 0
