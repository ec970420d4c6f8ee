"""Objects as files below a folder: a local disk, or a mount that several machines share (NFS)."""

from __future__ import annotations

import builtins
import contextlib
import errno
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from orchestrator.clock import SYSTEM
from orchestrator.errors import NotFoundError, SetupError, StoreError, StoreFullError, StoreUnavailableError
from orchestrator.store.posix import (
    BUFFER,
    NoHardLinksError,
    aligned,
    entries,
    link,
    open_fresh,
    pieces,
    read_optional,
    remove_empty,
    remove_optional,
    replace,
    stale,
    start_writing,
    sync_folder,
    write_all,
)
from orchestrator.store.protocol import (
    CHUNK,
    IDENTITY_KEY,
    LEFTOVER,
    IntoReader,
    ObjectInfo,
    Reader,
    Source,
    check_key,
    check_prefix,
)
from orchestrator.store.throttle import Pace, Paces, process_paces

_LOG = logging.getLogger(__name__)
_TEMPORARY: Final = ".tmp"
_SLICE: Final = 8 << 20
"""After so many bytes the disk begins to write, rather than at the end with all of them."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MISNAMED = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
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

    def __init__(self, root: Path, paces: Paces | None = None) -> None:
        self.root = root
        self._paces = paces or process_paces()
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
                sync_folder(self.root.parent)
            self._make_folder(self.root / _TEMPORARY)
        self.tidy(SYSTEM.now() - LEFTOVER)

    def put(self, key: str, source: Source, *, create_only: bool = False) -> bool:
        """See ObjectStore."""
        final = self._path(key)
        self._check_root()
        created = not (create_only and self._exists(final)) and self._store(final, source, create_only)
        with self._edge(f"sync {key}"):
            sync_folder(final.parent)
        self._check_root()
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
                sync_folder(folder)
        self._check_root()

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See ObjectStore."""
        path = self._path(key)
        self._check_root()
        with self._edge(f"read {key}"):
            descriptor = open_fresh(path)
        if descriptor is None:
            # Absence means something to callers: it must not come from a mount that has just gone.
            self._check_root()
            raise NotFoundError(f"{self.uri}: there is no {key}")
        return _Stream(self, key, descriptor, start, end, self._paces.down)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore. Symbolic links are not objects."""
        folder, _, start = check_prefix(prefix).rpartition("/")
        self._check_root()
        return self._listing(f"{folder}/" if folder else "", start)

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
                if folder == self.root or not remove_empty(folder):
                    return
                self._durable.discard(folder)

    def tidy(self, begun_before: datetime, *, dry_run: bool = False) -> builtins.list[ObjectInfo]:
        """See ObjectStore. These are temporary files."""
        self._check_root()
        folder = self.root / _TEMPORARY
        with self._edge("look for unfinished writes"):
            found = stale(folder, begun_before)
            if not dry_run:
                for info in found:
                    remove_optional(folder / info.key)
        return found

    # ------------------------------------------------------------------ writing

    def _store(self, final: Path, source: Source, create_only: bool) -> bool:
        temporary = self.root / _TEMPORARY / uuid.uuid4().hex
        try:
            written = self._write(temporary, source)
            with self._edge(f"store {self._key(final)}"):
                return self._publish(temporary, final, written, create_only)
        finally:
            self._forget(temporary)

    def _forget(self, temporary: Path) -> None:
        """Remove a temporary file. One that stays is removed by `prepare` on a later day."""
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        except OSError as error:
            _LOG.warning("left %s behind: %s", temporary, error)

    def _write(self, path: Path, source: Source) -> os.stat_result:
        """Write and sync a new file. Only errors of the store are translated, not those of the source."""
        with self._edge("write"), contextlib.suppress(FileExistsError):
            os.mkdir(path.parent)
        with self._edge("write"):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            written = begun = 0
            for chunk in _chunks(source):
                for block in self._paces.up.blocks(chunk):
                    with self._edge("write"):
                        write_all(descriptor, block)
                written += len(chunk)
                if written - begun >= _SLICE:
                    with self._edge("write"):
                        start_writing(descriptor, begun, written - begun)
                    begun = written
            with self._edge("write"):
                os.fsync(descriptor)
                # What is read back for verification shall come from the disk or server, not from our own
                # memory.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                return os.fstat(descriptor)
        finally:
            with self._edge("write"):
                os.close(descriptor)

    def _publish(self, temporary: Path, final: Path, written: os.stat_result, create_only: bool) -> bool:
        for attempt in range(_RACES):
            try:
                self._make_folder(final.parent)
                if create_only:
                    return link(temporary, final, written)
                replace(temporary, final, written)
                return True
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
        sync_folder(folder.parent)
        self._durable.add(folder)

    # ------------------------------------------------------------------ reading

    def _listing(self, folder: str, start: str) -> Iterator[ObjectInfo]:
        yield from self._walk(folder, start)
        self._check_root()

    def _walk(self, folder: str, start: str) -> Iterator[ObjectInfo]:
        with self._edge(f"list {folder or '/'}"):
            found = entries(self.root / folder)
        for name, is_folder, size in found:
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
        """The folder is there and the same as before. Without an identity it must even be the same
        directory.
        """
        with self._edge("use the folder"):
            status = os.stat(self.root)
            place = (status.st_dev, status.st_ino)
            if place == self._place and self._identity is not None:
                return
            identity = read_optional(self.root / IDENTITY_KEY)
        if self._place not in (None, place) and (identity is None or identity != self._identity):
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
                remedy="Free space there, raise the quota or size limit, or let runs keep fewer checkpoints.",
            )
        if isinstance(error, NoHardLinksError):
            return SetupError(
                text, remedy="Put the store on one filesystem with hard links (ext4, XFS, NFS, …)."
            )
        if error.errno in _DENIED:
            return StoreUnavailableError(
                text, remedy=f"Let user {os.geteuid()} read and write everything below {self.root}."
            )
        if error.errno in _MISNAMED and self.root.is_dir():
            return StoreError(text, remedy="Use shorter names, and no key that is the folder of another one.")
        return StoreUnavailableError(
            text,
            remedy=f"Check that {self.root} is a folder, is mounted, and that its disk or server answers.",
        )


class _Stream(Iterator[bytes]):
    """Chunks of an open file; the descriptor is closed at the end, on an error and when nobody listens."""

    def __init__(
        self, store: FileStore, key: str, descriptor: int, start: int, end: int | None, pace: Pace
    ) -> None:
        self._store, self._key, self._position, self._end, self._pace = store, key, start, end, pace
        self._buffer = aligned(min(pace.block, BUFFER))
        self._descriptor: int | None = descriptor

    def __next__(self) -> bytes:
        if not (size := self.readinto(self._buffer)):
            raise StopIteration
        return bytes(self._buffer[:size])

    def readinto(self, buffer: memoryview, /) -> int:
        """See IntoReader. Spares those a copy who can do with what a buffer holds for a while."""
        if self._descriptor is None:
            return 0
        left = self._pace.block if self._end is None else min(self._pace.block, self._end - self._position)
        try:
            size = os.preadv(self._descriptor, [buffer[: max(0, left)]], self._position)
        except OSError as error:
            self.close()
            raise self._store.translate(error, f"read {self._key}") from error
        if not size:
            self.close()
            return 0
        self._pace.take(size)
        self._position += size
        return size

    def close(self) -> None:
        """Give the file back; nothing more comes."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _chunks(source: Source) -> Iterator[bytes | memoryview]:
    """The bytes of a source; each chunk holds until the next one is asked for."""
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, Path):
        with source.open("rb", buffering=0) as file:
            yield from _read(file)
    else:
        yield from _read(source)


def _read(reader: Reader) -> Iterator[bytes | memoryview]:
    if isinstance(reader, IntoReader):
        yield from pieces(reader)
    else:
        while chunk := reader.read(CHUNK):
            yield chunk
