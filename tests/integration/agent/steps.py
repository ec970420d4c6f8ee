"""A node's cache of compiled steps, and archives of them as a store may have them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.agent.compiled import SharedSteps
from orchestrator.agent.packing import ENTRY
from orchestrator.store import compiled as stored
from orchestrator.store.compiled import StepNote
from tests.support import wait_until
from tests.unit.store.memory_store import MemoryStore

KEY = "0123456789abcdef" * 2
FILES = {"gradient.pt2": b"gradient" * 1000, "update.pt2": b"update" * 1000}


def entry_json(files: dict[str, bytes]) -> bytes:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name.endswith(".pt2")}
    return json.dumps({"order": {}, "sha256": sums}).encode()


class Node:
    """A node's cache, and what shares it."""

    def __init__(self, root: Path, store: MemoryStore) -> None:
        self.store = store
        self.events: list[str] = []
        self.busy = False
        self.wanted, self.cache = root / "wanted", root / "cache"
        self.entries = self.cache / "compiled"
        self.wanted.mkdir(parents=True)
        self.steps = SharedSteps(
            store,
            self.wanted,
            self.cache,
            "n1",
            lambda: self.busy,
            self.events.append,
            lambda: None,
        )

    def compile(self, files: dict[str, bytes] = FILES) -> None:
        """What the trainer's compiler leaves."""
        folder = self.entries / KEY
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / f".{ENTRY}").write_bytes(entry_json(files))
        (folder / f".{ENTRY}").rename(folder / ENTRY)

    def ask(self) -> None:
        """Ask as the trainer does, and wait for the answer."""
        (self.wanted / KEY).touch()
        wait_until(lambda: not (self.wanted / KEY).exists(), 20)

    def end(self, patience: float = 20.0) -> None:
        self.steps.end(patience, time.sleep)

    @property
    def kept(self) -> dict[str, bytes]:
        """The entry, without what belongs to the trainer."""
        folder = self.entries / KEY
        files = [file for file in folder.rglob("*") if file.is_file()]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name != ENTRY}

    @property
    def rest(self) -> set[str]:
        """Whatever else is in the cache."""
        return set(os.listdir(self.entries)) - {KEY, f".{KEY}.lock"}


Make = Callable[..., Node]


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def good(files: dict[str, bytes] = FILES) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [*(member(name, data) for name, data in files.items()), member(ENTRY, entry_json(files))]


def put(store: MemoryStore, tar: bytes, **fields: Any) -> StepNote:
    """Store an archive as an entry, whatever is in it."""
    values = {"sha256": hashlib.sha256(tar).hexdigest(), "size": len(tar), "at": datetime.now(UTC)}
    note = StepNote.model_construct(None, **{**values, "node": "", **fields})
    store.objects[f"compiled/{KEY}/{note.sha256}.tar"] = tar
    store.objects[f"compiled/{KEY}.json"] = note.model_dump_json().encode()
    return note


def note_of(store: MemoryStore) -> StepNote:
    note = stored.find(store, KEY)
    assert note is not None
    return note
