"""What the tests of the checkpoint store share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.store.checkpoints import CheckpointRecord, CheckpointWriter
from orchestrator.store.objects import ObjectStore, open_store, store_id
from orchestrator.store.runlog import RunLog

RUN = "run-1"


def new_store(folder: Path) -> ObjectStore:
    """A store in a folder of its own, ready to use."""
    store = open_store(folder)
    store_id(store, create=True)
    return store


def contents(step: int, salt: str = "") -> dict[str, bytes]:
    """What a checkpoint of a step holds in these tests: different for every step, file and salt."""

    def noise(name: str, size: int) -> bytes:
        seed = hashlib.sha256(f"{step} {name} {salt}".encode()).digest()
        return (seed * (size // len(seed) + 1))[:size]

    return {
        "model.safetensors": noise("model", 3000),
        "optimizer.safetensors": noise("optimizer", 2000),
        "extra/état 1.json": noise("extra", 40),
        "empty": b"",
    }


def make_directory(parent: Path, step: int, salt: str = "") -> Path:
    """A finished checkpoint directory as a program leaves it."""
    directory = parent / f"step-{step:08d}{salt}"
    for name, data in contents(step, salt).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def read_directory(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def writer(store: ObjectStore, attempt: int = 1, run: str = RUN) -> CheckpointWriter:
    """A writer with a fresh claim."""
    return CheckpointWriter(store, RunLog(store, run).claim(attempt, node=f"node-{attempt}"))


def commit(to: CheckpointWriter, under: Path, step: int, salt: str = "", **more: Any) -> CheckpointRecord:
    """Make a directory below `under` and commit it."""
    arguments: dict[str, Any] = {
        "metrics": {"val/loss": 1.0 / (step + 1)},
        "device": "cpu",
        "node": "n",
        **more,
    }
    return to.commit(make_directory(under, step, salt), step, **arguments)


def stored_file(store: ObjectStore, record: CheckpointRecord, name: str) -> Path:
    """Where a file of a checkpoint lies in a store that is a folder."""
    file = next(file for file in record.files if file.path == name)
    return Path(store.uri.removeprefix("file://")) / record.key(file)


def log_keys(store: ObjectStore, run: str = RUN) -> list[str]:
    """Keys of the log's slots."""
    return [info.key for info in store.list(f"runs/{run}/log/")]


@contextmanager
def failing(monkeypatch: Any, name: str, error: OSError, *, after: bool = False) -> Iterator[list[int]]:
    """Make the next call of `os.NAME` fail, before or after its effect; counts calls in the list's one
    item.
    """
    real = getattr(os, name)
    calls = [0]

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            return real(*args, **kwargs)
        if after:
            real(*args, **kwargs)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield calls
