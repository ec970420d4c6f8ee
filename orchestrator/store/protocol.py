"""Object stores: keys to immutable-looking bytes, with create-only writes.

The whole surface of a backend is :class:`ObjectStore`. :func:`open_store` picks the backend by the URI's
scheme; everything above it (run log, checkpoints) is written against the protocol.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from orchestrator.errors import StoreError

CHUNK: Final = 1 << 20
"""Bytes that streams carry at a time."""
IDENTITY_KEY: Final = "store.json"
"""Says which store this is, by whatever path it is reached."""
LEFTOVER: Final = timedelta(days=1)
"""A write that takes longer fails: what is unfinished and older belongs to nobody any more."""
_MAX_KEY: Final = 1024
_MAX_NAME: Final = 255
_NAME = re.compile(r"[A-Za-z0-9._~%=+@,-]+")


class Reader(Protocol):
    """Anything that hands out bytes, such as a file opened for reading."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


@runtime_checkable
class IntoReader(Protocol):
    """A reader that can fill a buffer, which saves copies. Files can."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the beginning of the buffer; how many bytes that were, 0 at the end."""
        ...


Source = bytes | Path | Reader


@dataclass(frozen=True)
class ObjectInfo:
    """One entry of a listing; `size` in bytes."""

    key: str
    size: int


class ObjectStore(Protocol):
    """Where objects are kept. Implementations can be used from several threads.

    Keys are checked by :func:`check_key`. Errors are StoreFullError, StoreUnavailableError and those named
    below; an error while *reading a source* is passed on as it is.
    """

    uri: str

    def prepare(self) -> None:
        """Make the place that objects go to, where that is up to us. Repeating it changes nothing."""
        ...

    def put(self, key: str, source: Source, *, create_only: bool = False) -> bool:
        """Store an object whole or not at all; it survives power loss once this returns.

        With `create_only` False means that the key exists already, and that object is durable too; of several
        writers at once exactly one gets True.

        After StoreUnavailableError nothing is stored, but what had been sent may be remembered: then a later
        `put` of the same key by the same object sends only what is missing or has changed, and `delete` gives
        it up. After any other error nothing is left.
        """
        ...

    def put_all(self, objects: Iterable[tuple[str, Source]]) -> None:
        """Store several objects; like `put` one by one, durable when this returns, but cheaper.

        Items are taken one at a time: a source has been read to its end when the next item is asked for.
        """
        ...

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Stream the bytes from `start` up to but without `end`. NotFoundError comes at once, not while
        reading.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with `prefix`, sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, and what is left of an interrupted `put`; a missing one is fine."""
        ...

    def tidy(self, begun_before: datetime, *, dry_run: bool = False) -> builtins.list[ObjectInfo]:
        """Remove unfinished writes that began before that instant, whose writers must have died; what was
        removed, or with `dry_run` would be.
        """
        ...


def check_key(key: str) -> str:
    """The key, or StoreError: relative, no empty, `.` or `..` parts, only `A-Z a-z 0-9 . _ ~ % = + @ , -`.

    The first part may not begin with a dot: backends keep their own things there.
    """
    parts = key.split("/")
    wrong = (
        len(key) > _MAX_KEY
        or key.startswith(".")
        or any(
            part in ("", ".", "..") or len(part) > _MAX_NAME or not _NAME.fullmatch(part) for part in parts
        )
    )
    if wrong:
        raise StoreError(
            f"{key[:200]!r} cannot be the key of a stored object",
            remedy="Use letters, digits and ._~%=+@,- in names of at most 255 characters, joined by /.",
        )
    return key


def check_prefix(prefix: str) -> str:
    """The prefix of keys, or StoreError. Empty means everything."""
    if prefix:
        check_key(prefix + "x" if prefix.endswith("/") else prefix)
    return prefix


def read_bytes(store: ObjectStore, key: str, limit: int = 64 << 20) -> bytes:
    """A whole small object. StoreError where it has more than `limit` bytes."""
    data = b"".join(store.get(key, end=limit + 1))
    if len(data) > limit:
        raise StoreError(f"{store.uri}: {key} has more than {limit} bytes")
    return data
