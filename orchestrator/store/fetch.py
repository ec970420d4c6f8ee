"""Files of a committed checkpoint on their way to this machine: from its cache, else from the store."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from orchestrator.errors import DamagedError, NotFoundError
from orchestrator.store.cache import CheckpointCache, OnBytes
from orchestrator.store.protocol import CHUNK, ObjectStore
from orchestrator.store.records import CheckpointRecord, FileEntry, PointsRef

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
        self._on_bytes = on_bytes

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

    def _complete(self, file: FileEntry, part: BinaryIO) -> None:
        """Fetch what is missing; everything, where what is there is not the beginning of the file."""
        digest = hashlib.sha256()
        while chunk := part.read(CHUNK):
            digest.update(chunk)
        have = part.tell()
        if have:
            try:
                self._append(file, part, have, digest)
                return
            except DamagedError:
                part.truncate(0)
        self._append(file, part, 0)

    def _append(self, file: FileEntry, out: BinaryIO, have: int, digest: hashlib._Hash | None = None) -> None:
        self._on_bytes(have)
        for chunk in checked(self._store, self._record.key(file), file, have, digest):
            out.write(chunk)
            self._on_bytes(len(chunk))


def checked(
    store: ObjectStore,
    key: str,
    expected: FileEntry | PointsRef,
    have: int = 0,
    digest: hashlib._Hash | None = None,
) -> Iterator[bytes]:
    """The bytes of an object; DamagedError, at the latest at the end, where they are not as expected.

    The first `have` bytes, which `digest` has seen, are left out.
    """
    name = expected.path if isinstance(expected, FileEntry) else key.rpartition("/")[2]
    digest = digest or hashlib.sha256()
    size = have
    if have > expected.size:
        raise DamagedError(f"{name} has {have} bytes instead of {expected.size}")
    try:
        # One byte more than expected is enough to see that it is too long.
        for chunk in store.get(key, start=have, end=expected.size + 1):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    except NotFoundError as error:
        raise DamagedError(f"{name} is missing") from error
    if size != expected.size:
        less = "more" if size > expected.size else f"{size}"
        raise DamagedError(f"{name} has {less} bytes instead of {expected.size}")
    if digest.hexdigest() != expected.sha256:
        raise DamagedError(f"{name} does not match its SHA-256")


def drained(store: ObjectStore, key: str, expected: FileEntry | PointsRef) -> None:
    """Read an object whole; DamagedError where it is not as expected."""
    for _ in checked(store, key, expected):
        pass
