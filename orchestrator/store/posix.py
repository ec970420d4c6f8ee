"""What a folder has to be asked for carefully: durable names, hard links, files that NFS may remember
wrongly.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from orchestrator.store.protocol import IntoReader, ObjectInfo

BUFFER: Final = 256 << 10
"""Bytes that are copied at a time; they stay in the processor's cache."""
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_ABSENT: Final = (FileNotFoundError, NotADirectoryError)


class NoHardLinksError(OSError):
    """The filesystem has no hard links, or the names are on two filesystems."""


def aligned(size: int) -> memoryview:
    """A new buffer at the beginning of a page. The kernel copies up to four times slower to odd places."""
    return memoryview(mmap.mmap(-1, size))


def pieces(file: IntoReader) -> Iterator[memoryview]:
    """The rest of a file; each piece holds until the next one is asked for."""
    buffer = aligned(BUFFER)
    while size := file.readinto(buffer):
        yield buffer[:size]


def start_writing(descriptor: int, start: int, size: int) -> None:
    """Let the disk begin with these bytes. What is written already leaves the memory."""
    os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything, however many calls it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def link(temporary: Path, final: Path, written: os.stat_result) -> bool:
    """True where `final` is the file that was written, False where it is somebody else's.

    Of several callers with one `final` exactly one gets True, and nobody ever replaces what is there.
    """
    try:
        os.link(temporary, final)
        return True
    except OSError as error:
        found = _identity(final)
        if found is not None:
            return os.path.samestat(found, written)
        if error.errno in _NO_HARD_LINKS:
            raise NoHardLinksError(error.errno, f"no hard links here ({error.strerror})") from error
        raise


def replace(temporary: Path, final: Path, written: os.stat_result) -> None:
    """Give the file that was written its final name, in place of what is there."""
    try:
        os.replace(temporary, final)
    except FileNotFoundError:
        found = _identity(final)
        if found is None or not os.path.samestat(found, written):
            raise


def _identity(path: Path) -> os.stat_result | None:
    """Which file has this name, None where none has."""
    descriptor = open_fresh(path)
    if descriptor is None:
        return None
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def open_fresh(path: Path) -> int | None:
    """A descriptor for reading, None where there is no regular file (a symbolic link is none).

    An NFS client may remember for a minute that a name was missing. Opening the folder makes it ask the
    server whether the folder has changed, so only the second look counts.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for last in (False, True):
        try:
            descriptor = os.open(path, flags)
        except _ABSENT:
            if last or not _touch_folder(path.parent):
                return None
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None
    return None


def _touch_folder(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except _ABSENT:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty(folder: Path) -> bool:
    """Remove a folder; False where it is not empty or not there."""
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY):
            return False
        raise
    return True


def entries(folder: Path) -> list[tuple[str, bool, int]]:
    """Name, is it a folder, size; in the order of keys, in which a folder's name ends with a slash."""
    found: list[tuple[str, bool, int]] = []
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                if entry.is_dir(follow_symlinks=False):
                    found.append((entry.name + "/", True, 0))
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((entry.name, False, entry.stat(follow_symlinks=False).st_size))
    except _ABSENT:
        return []
    return sorted(found)


def stale(folder: Path, before: datetime) -> list[ObjectInfo]:
    """The files in a folder that were changed last before that instant, sorted; none where it is missing."""
    found: list[ObjectInfo] = []
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_mtime < before.timestamp():
                        found.append(ObjectInfo(entry.name, status.st_size))
    except _ABSENT:
        return []
    return sorted(found, key=lambda info: info.key)


def remove_optional(path: Path) -> None:
    """Remove a file; a missing one is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def read_optional(path: Path) -> bytes | None:
    """A whole small file, None where it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
