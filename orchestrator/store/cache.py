"""Files of checkpoints that a node keeps, by their SHA-256, so that it fetches only what it lacks.

What is kept was committed from this node or fetched to it. It may have been damaged or altered since, so it
is hashed while it is copied out, and dropped where it is not what its name says. Several agents use one cache
at a time: every change is one atomic call, and what is missing is fetched from the store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from orchestrator.settings import size
from orchestrator.store.copying import copy_hashed
from orchestrator.store.records import FileEntry

OnBytes = Callable[[int], None]
"""Is told how many bytes were moved since the last call."""
_LOG = logging.getLogger(__name__)
_MOST: Final = 10_000_000_000
_SHARE: Final = 10
"""One part in so many of the disk."""
_SPARE: Final = 20
"""One part in so many of the disk is left to others,"""
_SPARE_MOST: Final = 5_000_000_000
"""but not more bytes than that."""
_PARTIAL: Final = ".part"
_NO_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


def silent(count: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class _Kept:
    used: float
    size: int
    path: Path
    alone: bool
    """No other name has these bytes: to remove it frees them."""


class CheckpointCache:
    """A folder of files named by the SHA-256 of their bytes; those used longest ago go first.

    `limit` in bytes; with 0 nothing is kept. Trouble with the cache's own files is logged, never raised: it
    only costs a download. Only a full disk is passed on while a download is written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    @classmethod
    def of_node(cls, node_home: Path) -> CheckpointCache:
        """The cache of a node, as large as ``ORCH_CACHE_SIZE`` says. SetupError where that is nonsense."""
        limit = size("ORCH_CACHE_SIZE")
        if limit is None:
            disk = os.statvfs(node_home)
            limit = min(_MOST, disk.f_blocks * disk.f_frsize // _SHARE)
        return cls(node_home / "cache" / "checkpoints", limit)

    # ------------------------------------------------------------------ out of it

    def copy_out(self, file: FileEntry, target: Path, on_bytes: OnBytes = silent) -> bool:
        """Write the file to `target`, which must not exist; False where it is not here or not whole.

        OSError where `target` cannot be written.
        """
        path = self.folder / file.sha256
        try:
            kept = path.open("rb", buffering=0)
        except OSError:
            return False
        digest = hashlib.sha256()
        with kept, target.open("xb", buffering=0) as out:
            moved = copy_hashed(_Readable(kept), out, digest, on_bytes)
        if (moved, digest.hexdigest()) == (file.size, file.sha256):
            self._touch(path)
            return True
        _LOG.warning("%s is not what it was any more and is removed", path)
        _remove(path)
        target.unlink()
        return False

    # ------------------------------------------------------------------ into it

    def take_in(self, directory: Path, files: tuple[FileEntry, ...]) -> None:
        """Move the files of a committed checkpoint out of its directory, which nobody needs any more."""
        for file in files:
            source = directory / file.path
            try:
                if file.size and source.stat().st_size == file.size <= self.limit:
                    self._adopt(source, file.sha256)
            except OSError as error:
                _LOG.info("%s is not kept: %s", source, error)
        self.trim()

    def _adopt(self, source: Path, sha256: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / sha256
        if not path.exists():
            source.replace(path)
        self._touch(path)

    @contextmanager
    def partial(self, file: FileEntry) -> Iterator[FileIO | None]:
        """What an interrupted download of this file has left, open at its beginning for reading and writing;
        None where somebody else is fetching it, or nothing of its size is kept.

        It stays for the next try unless `finish` or `drop` takes it.
        """
        if not 0 < file.size <= self.limit:
            yield None
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            opened = self._part(file).open("a+b", buffering=0)
        except OSError as error:
            _LOG.warning("%s cannot be used: %s", self.folder, error)
            yield None
            return
        with opened:
            if not _locked(opened, self._part(file)):
                yield None
                return
            opened.seek(0)
            yield opened

    def finish(self, file: FileEntry, target: Path) -> bool:
        """Keep a download, which is whole, and give it the name `target` too; False where that cannot be."""
        part = self._part(file)
        try:
            os.link(part, target)
            part.replace(self.folder / file.sha256)
        except OSError as error:
            if error.errno not in _NO_LINK and not isinstance(error, FileNotFoundError):
                raise
            return False
        self.trim()
        return True

    def drop(self, file: FileEntry) -> None:
        """Throw away what an interrupted download has left."""
        _remove(self._part(file))

    def _part(self, file: FileEntry) -> Path:
        return self.folder / f"{file.sha256}{_PARTIAL}"

    # ------------------------------------------------------------------ its size

    def trim(self) -> None:
        """Remove what was used longest ago until the limit is kept and the disk has room for others."""
        self._trim_to_limit()
        if short := self._short():
            self.free(short)

    def _short(self) -> int:
        """Bytes that the disk lacks of what is left to others."""
        try:
            disk = os.statvfs(self.folder)
        except OSError:
            return 0
        spare = min(_SPARE_MOST, disk.f_blocks * disk.f_frsize // _SPARE)
        return max(0, spare - disk.f_bavail * disk.f_frsize)

    def _trim_to_limit(self) -> None:
        kept = self._kept()
        excess = sum(one.size for one in kept) - self.limit
        for one in kept:
            if excess <= 0:
                return
            if _discard(one.path):
                excess -= one.size

    def free(self, wanted: int) -> int:
        """Make that many bytes of the disk free, as far as possible; how many became free."""
        freed = 0
        for one in self._kept():
            if freed >= wanted:
                break
            if one.alone and _discard(one.path):
                freed += one.size
        if freed:
            _LOG.info("removed %d bytes of kept checkpoints: the disk is full", freed)
        return freed

    def _kept(self) -> list[_Kept]:
        """Everything here, used longest ago first."""
        found: list[_Kept] = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as scan:
            for entry in scan:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    found.append(
                        _Kept(status.st_mtime, status.st_size, Path(entry.path), status.st_nlink == 1)
                    )
        return sorted(found, key=lambda one: one.used)

    def _touch(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            os.utime(path)


@dataclass(frozen=True)
class _Readable:
    """A kept file, as far as the disk can read it."""

    file: FileIO

    def readinto(self, buffer: memoryview, /) -> int:
        """See IntoReader."""
        try:
            return self.file.readinto(buffer)
        except OSError as error:
            _LOG.warning("a kept checkpoint cannot be read: %s", error)
            return 0


def _discard(path: Path) -> bool:
    """Remove a file unless somebody is downloading it."""
    if path.suffix != _PARTIAL:
        return _remove(path)
    try:
        with path.open("rb", buffering=0) as file:
            return _locked(file, path) and _remove(path)
    except OSError:
        return False


def _locked(file: FileIO, path: Path) -> bool:
    """Take a file's lock, which its descriptor holds; False where another has it, or has just finished."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


NO_CACHE: Final = CheckpointCache(Path(os.devnull), 0)
"""Keeps nothing."""
