"""Which checkpoints to keep, and which data nobody can need any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.store.protocol import ObjectStore
from orchestrator.store.records import CheckpointRecord, Retire, data_root, points_root
from orchestrator.store.runlog import History


def choose(
    live: Sequence[CheckpointRecord], keep_last: int, keep_best: int, metric: str, mode: str
) -> list[CheckpointRecord]:
    """The checkpoints to drop: all but the last `keep_last` and the best `keep_best`, in the order given.

    `live` is in the order of commits; the last one is never dropped. Best is the smallest value of the
    metric with mode `min`, the largest with `max`, the earlier one on a tie; checkpoints without the metric
    are never best.
    """
    if keep_last < 1 or keep_best < 0 or mode not in ("min", "max"):
        raise ValueError(f"keep_last={keep_last}, keep_best={keep_best}, mode={mode!r}")
    sign = 1.0 if mode == "min" else -1.0
    measured = [record for record in live if metric in record.metrics]
    best = sorted(measured, key=lambda record: sign * record.metrics[metric])[:keep_best]
    keep = {record.id for record in [*live[-keep_last:], *best]}
    return [record for record in live if record.id not in keep]


def retire(stamp: dict[str, Any], records: Sequence[CheckpointRecord], why: str) -> Retire:
    """The record that says so."""
    return Retire(**stamp, checkpoints=tuple(record.id for record in records), why=why)


def leftovers(store: ObjectStore, run_id: str, history: History, attempt: int) -> Iterator[str]:
    """Keys of data that no checkpoint that counts refers to, and of points of none at all, as far as the
    owner `attempt` can be sure.

    Of its own data only what it has retired: the rest may belong to a commit whose outcome it did not
    learn. Earlier attempts cannot commit any more, later ones are not its business. While a record of the
    log cannot be read, data that nobody mentions may be that record's.
    """
    live = {record.data for record in history.live}
    retired = {record.data for record in history.checkpoints if record.retired}
    points = {record.points.key for record in history.checkpoints if record.points}
    root = data_root(run_id)
    for info in store.list(root):
        number, _, rest = info.key.removeprefix(root).partition("/")
        prefix = f"{root}{number}/{rest.partition('/')[0]}"
        if prefix in retired or (prefix not in live and _dead(number, history, attempt)):
            yield info.key
    for info in store.list(points_root(run_id)):
        number = info.key.removeprefix(points_root(run_id)).partition("-")[0]
        if info.key not in points and _dead(number, history, attempt):
            yield info.key


def _dead(number: str, history: History, attempt: int) -> bool:
    """True where data of attempt `number` that no record mentions will never be mentioned."""
    return number.isdigit() and int(number) < attempt and not history.unreadable
