"""A directory that a program has finished, as files to upload: regular files only, hashed while they are
read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.store.cache import OnBytes, silent
from orchestrator.store.records import FileEntry


@dataclass(frozen=True)
class Limits:
    """What a checkpoint may have at most."""

    files: int = 4096
    bytes: int = 1 << 40
    points: int = 64 << 20
    """Bytes of metric points that one commit may carry."""


def scan(directory: Path, limits: Limits) -> list[str]:
    """Paths of the files below a directory, sorted, with `/` between names; empty directories do not count.

    StoreError for symbolic links, devices, sockets and pipes, for names that are not UTF-8, for too many or
    too large files and where there is no file at all.
    """
    found: list[str] = []
    total = 0
    for folder, folders, files, descriptor in os.fwalk(directory, onerror=_raise, follow_symlinks=False):
        for name in [*folders, *files]:
            path = os.path.relpath(os.path.join(folder, name), directory)
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                continue
            _check(path, status)
            found.append(path)
            total += status.st_size
            if len(found) > limits.files or total > limits.bytes:
                raise StoreError(
                    f"{directory} has more than {limits.files} files or {limits.bytes} bytes",
                    remedy="Write only what the program needs to go on into a checkpoint.",
                )
    if not found:
        raise StoreError(
            f"{directory} has no files", remedy="Write the checkpoint's files before it is renamed."
        )
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _check(path: str, status: os.stat_result) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"the file name {path!r} is not UTF-8", remedy="Rename the file.") from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(
            f"{path!r} in a checkpoint is not a regular file",
            remedy="Write regular files: what a link or device points to is not part of the checkpoint.",
        )


class HashingReader:
    """Reads a file once and knows size and SHA-256 of what was read; `on_bytes` is told of every read."""

    def __init__(self, descriptor: int, on_bytes: OnBytes = silent) -> None:
        self._descriptor = descriptor
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        chunk = os.read(self._descriptor, size)
        self._hash.update(chunk)
        self.size += len(chunk)
        self._on_bytes(len(chunk))
        return chunk

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of the buffer; how many bytes that were, 0 at the end."""
        size = os.readv(self._descriptor, [buffer])
        self._hash.update(buffer[:size])
        self.size += size
        self._on_bytes(size)
        return size

    def entry(self, path: str) -> FileEntry:
        """The manifest's line for what was read."""
        return FileEntry(path=path, size=self.size, sha256=self._hash.hexdigest())


_SAMPLES = 16
_SAMPLE_SIZE = 4096


def sample(directory: Path, path: str) -> bytes:
    """A digest of the file's size and of small pieces all over it: where it differs, so do the files."""
    descriptor = _open_beneath(directory, path)
    try:
        size = os.fstat(descriptor).st_size
        found = hashlib.sha256(str(size).encode())
        for number in range(_SAMPLES):
            found.update(os.pread(descriptor, _SAMPLE_SIZE, size * number // _SAMPLES))
        return found.digest()
    finally:
        os.close(descriptor)


@contextmanager
def open_file(directory: Path, path: str, on_bytes: OnBytes = silent) -> Iterator[HashingReader]:
    """A file below the directory, reached without following any link.

    StoreError at the end where it changed meanwhile: a finished checkpoint stands still.
    """
    descriptor = _open_beneath(directory, path)
    try:
        before = os.fstat(descriptor)
        _check(path, before)
        reader = HashingReader(descriptor, on_bytes)
        yield reader
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (reader.size, after.st_mtime_ns):
            raise StoreError(
                f"{path!r} changed while it was being saved",
                remedy="Write a checkpoint under another name and rename it when it is complete.",
            )
    finally:
        os.close(descriptor)


def _open_beneath(directory: Path, path: str) -> int:
    *folders, name = path.split("/")
    current = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(folder, flags, dir_fd=current)
            os.close(current)
            current = below
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=current)
    finally:
        os.close(current)
