"""Files of a committed checkpoint on their way to this machine: from its cache, else from the store."""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

from orchestrator.errors import DamagedError, NotFoundError
from orchestrator.store.cache import CheckpointCache, OnBytes, silent
from orchestrator.store.copying import copy_hashed
from orchestrator.store.posix import pieces
from orchestrator.store.protocol import CHUNK, ObjectStore
from orchestrator.store.records import CheckpointRecord, FileEntry, PointsRef

_SIDE_BY_SIDE: Final = 2
_LARGE: Final = 16 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Fetch:
    """Brings the files of one checkpoint, each verified by size and SHA-256.

    What the cache has is not fetched. A download is kept there as far as it came, and gone on with. A full
    disk is answered by removing what else the cache has.
    """

    def __init__(
        self, store: ObjectStore, record: CheckpointRecord, cache: CheckpointCache, on_bytes: OnBytes
    ) -> None:
        self._store = store
        self._record = record
        self._cache = cache
        self._lock = threading.Lock()
        self._told = on_bytes

    def bring_all(self, folder: Path) -> None:
        """Write every file of the checkpoint below the folder. Large ones side by side, because hashing one
        of them keeps one core busy; errors as with `bring`.
        """
        with ThreadPoolExecutor(_SIDE_BY_SIDE, "fetch") as pool:
            under_way: list[Future[None]] = []
            try:
                for file in sorted(self._record.files, key=lambda file: -file.size):
                    target = folder / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if file.size >= _LARGE:
                        under_way.append(pool.submit(self.bring, file, target))
                    else:
                        self.bring(file, target)
                for one in under_way:
                    one.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def bring(self, file: FileEntry, target: Path) -> None:
        """Write a file to `target`, which must not exist.

        DamagedError where the store has something else, OSError where this machine cannot keep it.
        """
        while True:
            try:
                if not self._cache.copy_out(file, target, self._on_bytes):
                    self._download(file, target)
                return
            except OSError as error:
                if error.errno not in _FULL or not self._cache.free(file.size):
                    raise
                target.unlink(missing_ok=True)

    def _on_bytes(self, count: int) -> None:
        with self._lock:
            self._told(count)

    def _download(self, file: FileEntry, target: Path) -> None:
        with self._cache.partial(file) as part:
            if part is None:
                with target.open("xb", buffering=0) as out:
                    self._append(file, out, 0)
                return
            try:
                self._complete(file, part)
            except DamagedError:
                self._cache.drop(file)
                raise
            if not self._cache.finish(file, target):
                part.seek(0)
                with target.open("xb", buffering=0) as out:
                    shutil.copyfileobj(part, out, CHUNK)
                self._cache.drop(file)

    def _complete(self, file: FileEntry, part: FileIO) -> None:
        """Fetch what is missing; everything, where what is there is not the beginning of the file."""
        digest = hashlib.sha256()
        for chunk in pieces(part):
            digest.update(chunk)
        have = part.tell()
        if have:
            try:
                self._append(file, part, have, digest)
                return
            except DamagedError:
                part.truncate(0)
        self._append(file, part, 0)

    def _append(self, file: FileEntry, out: FileIO, have: int, digest: hashlib._Hash | None = None) -> None:
        self._on_bytes(have)
        copy_checked(self._store, self._record.key(file), file, out, have, digest, self._on_bytes)


def copy_checked(
    store: ObjectStore,
    key: str,
    file: FileEntry,
    out: FileIO,
    have: int,
    digest: hashlib._Hash | None,
    on_bytes: OnBytes,
) -> None:
    """Append the bytes of an object to a file, without the first `have` ones, which `digest` has seen.

    DamagedError where they are not as expected; at the end, when they have been written.
    """
    digest = digest or hashlib.sha256()
    with _found(file.path):
        size = have + copy_hashed(_opened(store, key, file, file.path, have), out, digest, on_bytes)
    _compare(file.path, file, size, digest)


def checked(store: ObjectStore, key: str, expected: FileEntry | PointsRef) -> Iterator[bytes]:
    """The bytes of an object; DamagedError, at the latest at the end, where they are not as expected."""
    name = expected.path if isinstance(expected, FileEntry) else key.rpartition("/")[2]
    digest, size = hashlib.sha256(), 0
    with _found(name):
        for chunk in _opened(store, key, expected, name):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    _compare(name, expected, size, digest)


def _opened(
    store: ObjectStore, key: str, expected: FileEntry | PointsRef, name: str, have: int = 0
) -> Iterator[bytes]:
    """The rest of an object after `have` bytes; DamagedError where there can be none."""
    if have > expected.size:
        raise DamagedError(f"{name} has {have} bytes instead of {expected.size}")
    # One byte more than expected is enough to see that it is too long.
    return store.get(key, start=have, end=expected.size + 1)


@contextmanager
def _found(name: str) -> Iterator[None]:
    """An object that is missing, or goes while it is read, is damage."""
    try:
        yield
    except NotFoundError as error:
        raise DamagedError(f"{name} is missing") from error


def _compare(name: str, expected: FileEntry | PointsRef, size: int, digest: hashlib._Hash) -> None:
    """DamagedError where what was read is not as expected."""
    if size != expected.size:
        less = "more" if size > expected.size else f"{size}"
        raise DamagedError(f"{name} has {less} bytes instead of {expected.size}")
    if digest.hexdigest() != expected.sha256:
        raise DamagedError(f"{name} does not match its SHA-256")


def drained(
    store: ObjectStore, key: str, expected: FileEntry | PointsRef, on_bytes: OnBytes = silent
) -> None:
    """Read an object whole; DamagedError where it is not as expected."""
    for chunk in checked(store, key, expected):
        on_bytes(len(chunk))
