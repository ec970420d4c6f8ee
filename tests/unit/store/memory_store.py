"""An object store in memory that can be told to misbehave, for tests that need many steps or odd timing."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

from orchestrator.errors import NotFoundError
from orchestrator.store.protocol import CHUNK, ObjectInfo, Source, check_key, check_prefix

Hook = Callable[[str, str, Callable[[], object]], object]
"""Gets the operation's name, the key, and what carries it out; returns the latter's result."""


class MemoryStore:
    """Obeys the protocol as long as `hook` does nothing odd."""

    def __init__(self, objects: dict[str, bytes] | None = None, hook: Hook | None = None) -> None:
        self.uri = "memory://test"
        self.objects = {} if objects is None else objects
        self._hook = hook or (lambda operation, key, act: act())
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Nothing to prepare."""

    def put(self, key: str, source: Source, *, create_only: bool = False) -> bool:
        """See ObjectStore."""
        check_key(key)
        data = _read(source)

        def act() -> bool:
            with self._lock:
                if create_only and key in self.objects:
                    return False
                self.objects[key] = data
                return True

        return bool(self._hook("create" if create_only else "put", key, act))

    def put_all(self, objects: Iterable[tuple[str, Source]]) -> None:
        """See ObjectStore."""
        for key, source in objects:
            self.put(key, source)

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See ObjectStore."""
        data = self._hook("get", check_key(key), lambda: self.objects.get(key))
        if not isinstance(data, bytes):
            raise NotFoundError(f"there is no {key}")
        part = data[start:end]
        return (part[i : i + CHUNK] for i in range(0, len(part), CHUNK))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        check_prefix(prefix)
        found = [(key, len(data)) for key, data in self.objects.items() if key.startswith(prefix)]
        self._hook("list", prefix, lambda: None)
        return (ObjectInfo(key, size) for key, size in sorted(found))

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        self._hook("delete", check_key(key), lambda: self.objects.pop(key, None))

    def tidy(self, begun_before: datetime, *, dry_run: bool = False) -> builtins.list[ObjectInfo]:
        """Nothing is ever unfinished."""
        return []


def _read(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path):
        return source.read_bytes()
    return b"".join(iter(lambda: source.read(CHUNK), b""))
