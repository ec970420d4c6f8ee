"""Log records made by hand."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from orchestrator.store.records import (
    CheckpointRecord,
    Fence,
    FileEntry,
    Retire,
)

RUN = "r"
AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
FILE = FileEntry(path="a", size=1, sha256="0" * 64)


def stamp(slot: int, attempt: int) -> dict[str, Any]:
    return {"run": RUN, "slot": slot, "attempt": attempt, "id": uuid.uuid4(), "at": AT, "node": "n"}


def fence(slot: int, attempt: int) -> Fence:
    return Fence(**stamp(slot, attempt))


def checkpoint(slot: int, attempt: int, step: int, **more: Any) -> CheckpointRecord:
    arguments: dict[str, Any] = {"data": f"runs/{RUN}/data/{attempt}/{step}-x", "files": (FILE,), **more}
    return CheckpointRecord(**stamp(slot, attempt), step=step, **arguments)


def retire(slot: int, attempt: int, *records: CheckpointRecord) -> Retire:
    return Retire(**stamp(slot, attempt), checkpoints=tuple(record.id for record in records))
