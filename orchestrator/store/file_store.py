"""Objects as files below a folder: a local disk, or a mount that several machines share (NFS)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from orchestrator.clock import SYSTEM
from orchestrator.errors import NotFoundError, SetupError, StoreError, StoreFullError, StoreUnavailableError
from orchestrator.store.protocol import (
    CHUNK,
    IDENTITY_KEY,
    ObjectInfo,
    Reader,
    Source,
    check_key,
    check_prefix,
)

_TEMPORARY: Final = ".tmp"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_STALE_S: Final = 86_400.0
_RACES: Final = 10
"""Times that a folder may be removed by somebody else between making it and using it."""


class FileStore:
    """Keys are paths below `root`.

    A write goes to a temporary file, which is synced, then linked (create-only) or renamed to its final
    name, and then the folder is synced. So a key holds a whole object or none, whenever the machine dies,
    and `link` lets exactly one of several writers win. An error of `link` is no answer on NFS, where a
    repeated request fails although the first one succeeded: what counts is whether the final name is our
    file.

    A folder that is suddenly another one (a mount that went away) is refused with StoreUnavailableError,
    unless it carries the same store identity.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()
        self._place: tuple[int, int] | None = None
        self._identity: bytes | None = None
        self._durable: set[Path] = set()
        """Folders whose names we have synced."""

    # ------------------------------------------------------------------ protocol

    def prepare(self) -> None:
        """Make the folder where it is missing."""
        with self._edge("make the folder"):
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                _sync_folder(self.root.parent)
            self._make_folder(self.root / _TEMPORARY)
            _remove_stale(self.root / _TEMPORARY)

    def put(self, key: str, source: Source, *, create_only: bool = False) -> bool:
        """See ObjectStore."""
        final = self._path(key)
        self._check_root()
        created = not (create_only and self._exists(final)) and self._store(final, source, create_only)
        with self._edge(f"sync {key}"):
            _sync_folder(final.parent)
        self._check_root()
        if key == IDENTITY_KEY:
            self._place = None
        return created

    def put_all(self, objects: Iterable[tuple[str, Source]]) -> None:
        """See ObjectStore. Every file is synced as it is written, every folder once at the end."""
        self._check_root()
        folders: set[Path] = set()
        for key, source in objects:
            final = self._path(key)
            self._store(final, source, create_only=False)
            folders.add(final.parent)
        with self._edge("sync folders"):
            for folder in sorted(folders):
                _sync_folder(folder)
        self._check_root()

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See ObjectStore."""
        path = self._path(key)
        self._check_root()
        with self._edge(f"read {key}"):
            descriptor = _open_fresh(path)
        if descriptor is None:
            raise NotFoundError(f"{self.uri}: there is no {key}")
        return _Stream(self, key, descriptor, start, end)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore. Symbolic links are not objects."""
        folder, _, start = check_prefix(prefix).rpartition("/")
        self._check_root()
        return self._walk(f"{folder}/" if folder else "", start)

    def delete(self, key: str) -> None:
        """See ObjectStore. Folders that become empty go too."""
        path = self._path(key)
        self._check_root()
        with self._edge(f"delete {key}"):
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                return
            for folder in path.parents:
                if folder == self.root or not _remove_empty(folder):
                    return
                self._durable.discard(folder)

    # ------------------------------------------------------------------ writing

    def _store(self, final: Path, source: Source, create_only: bool) -> bool:
        temporary = self.root / _TEMPORARY / uuid.uuid4().hex
        try:
            self._write(temporary, source)
            with self._edge(f"store {self._key(final)}"):
                return self._publish(temporary, final, create_only)
        finally:
            with self._edge("remove a temporary file"), contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _write(self, path: Path, source: Source) -> None:
        """Write and sync a new file. Only errors of the store are translated, not those of the source."""
        with self._edge("write"), contextlib.suppress(FileExistsError):
            os.mkdir(path.parent)
        with self._edge("write"):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for chunk in _chunks(source):
                with self._edge("write"):
                    _write_all(descriptor, chunk)
            with self._edge("write"):
                os.fsync(descriptor)
                # What is read back for verification shall come from the disk or server, not from our own
                # memory.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            with self._edge("write"):
                os.close(descriptor)

    def _publish(self, temporary: Path, final: Path, create_only: bool) -> bool:
        for attempt in range(_RACES):
            self._make_folder(final.parent)
            try:
                if not create_only:
                    os.replace(temporary, final)
                    return True
                return _link(temporary, final)
            except FileNotFoundError:
                # Somebody removed the folder because it was empty.
                if attempt == _RACES - 1:
                    raise
        raise AssertionError("unreachable")

    def _make_folder(self, folder: Path) -> None:
        """Make a folder below the root, and durable its name in the folder above.

        A folder that exists may have been made a moment ago by a process that died before it could sync.
        """
        if folder == self.root or (folder in self._durable and folder.is_dir()):
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        _sync_folder(folder.parent)
        self._durable.add(folder)

    # ------------------------------------------------------------------ reading

    def _walk(self, folder: str, start: str) -> Iterator[ObjectInfo]:
        with self._edge(f"list {folder or '/'}"):
            entries = _entries(self.root / folder)
        for name, is_folder, size in entries:
            if not name.startswith(start) or (not folder and name.startswith(".")):
                continue
            if is_folder:
                yield from self._walk(f"{folder}{name}", "")
            else:
                yield ObjectInfo(f"{folder}{name}", size)

    # ------------------------------------------------------------------ the folder and its errors

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _exists(self, path: Path) -> bool:
        with self._edge(f"look for {self._key(path)}"):
            try:
                os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def _check_root(self) -> None:
        with self._edge("use the folder"):
            status = os.stat(self.root)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder")
            place = (status.st_dev, status.st_ino)
            if place == self._place:
                return
            identity = _read_identity(self.root / IDENTITY_KEY)
        if self._place is not None and (identity is None or identity != self._identity):
            raise StoreUnavailableError(
                f"{self.uri} is not the store any more that it was a moment ago",
                remedy="Check that it is still mounted.",
            )
        self._place, self._identity = place, identity

    @contextlib.contextmanager
    def _edge(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.translate(error, action) from error

    def translate(self, error: OSError, action: str) -> StoreError | SetupError:
        """The error of ours that says what an error of the operating system means here."""
        text = f"{self.uri}: cannot {action}: {error.strerror or error}"
        if error.errno in _FULL:
            return StoreFullError(
                text,
                remedy="Free space there or raise the quota, or let runs keep fewer checkpoints (retention).",
            )
        if isinstance(error, _NoHardLinks):
            return SetupError(
                text, remedy="Put the store on one filesystem with hard links (ext4, XFS, NFS, …)."
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StoreUnavailableError(
                text, remedy=f"Let user {os.geteuid()} read and write everything below {self.root}."
            )
        if error.errno == errno.ENAMETOOLONG:
            return StoreError(text, remedy="Use shorter names.")
        return StoreUnavailableError(
            text, remedy=f"Check that {self.root} exists, is mounted, and that its disk or server answers."
        )


class _NoHardLinks(OSError):
    pass


class _Stream(Iterator[bytes]):
    """Chunks of an open file; the descriptor is closed at the end, on an error and when nobody listens."""

    def __init__(self, store: FileStore, key: str, descriptor: int, start: int, end: int | None) -> None:
        self._store, self._key, self._position, self._end = store, key, start, end
        self._descriptor: int | None = descriptor

    def __next__(self) -> bytes:
        if self._descriptor is None:
            raise StopIteration
        wanted = CHUNK if self._end is None else min(CHUNK, self._end - self._position)
        try:
            chunk = os.pread(self._descriptor, wanted, self._position) if wanted > 0 else b""
        except OSError as error:
            self.close()
            raise self._store.translate(error, f"read {self._key}") from error
        if not chunk:
            self.close()
            raise StopIteration
        self._position += len(chunk)
        return chunk

    def close(self) -> None:
        """Give the file back; nothing more comes."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _chunks(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, Path):
        with source.open("rb", buffering=0) as file:
            yield from _read(file)
    else:
        yield from _read(source)


def _read(reader: Reader) -> Iterator[bytes]:
    while chunk := reader.read(CHUNK):
        yield chunk


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _link(temporary: Path, final: Path) -> bool:
    """True where `final` is our file now, False where it is somebody else's."""
    try:
        os.link(temporary, final)
        return True
    except OSError as error:
        found = _open_fresh(final)
        if found is None:
            if error.errno in _NO_HARD_LINKS:
                raise _NoHardLinks(error.errno, f"no hard links here ({error.strerror})") from error
            raise
        try:
            return os.path.samestat(os.fstat(found), os.stat(temporary))
        finally:
            os.close(found)


def _open_fresh(path: Path) -> int | None:
    """A descriptor for reading, None where there is no such file.

    An NFS client may remember for a minute that a name was missing. Opening the folder makes it ask the
    server whether the folder has changed, so only the second look counts.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for last in (False, True):
        try:
            descriptor = os.open(path, flags)
        except (FileNotFoundError, NotADirectoryError):
            if last or not _touch_folder(path.parent):
                return None
            continue
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None
    return None


def _touch_folder(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(folder: Path) -> bool:
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY):
            return False
        raise
    return True


def _entries(folder: Path) -> list[tuple[str, bool, int]]:
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
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def _remove_stale(folder: Path) -> None:
    """Remove what writers that were killed have left; a write that takes more than a day fails."""
    oldest = SYSTEM.now().timestamp() - _STALE_S
    with os.scandir(folder) as scan:
        for entry in scan:
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)


def _read_identity(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
