"""Sending the files of a finished directory to a store, and not sending what is there already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from orchestrator.errors import DamagedError, NotFoundError, StoreError
from orchestrator.store.cache import OnBytes, silent
from orchestrator.store.fetch import drained
from orchestrator.store.protocol import CHUNK, ObjectStore, Source
from orchestrator.store.records import FileEntry, PointsRef, data_key
from orchestrator.store.snapshot import Limits, open_file, sample, scan

WORTH_SHARING: Final = 1 << 16
"""Smaller files are always sent: to look for one in the store takes as long."""
_LARGE: Final = 8 << 20
"""Files of this size are stored one by one, and not sent again where a later one fails."""


class Uploader:
    """Sends one directory after another. One thread at a time."""

    def __init__(self, store: ObjectStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._samples: dict[str, bytes] = {}
        """Samples of the files sent last, by path: most changed files are told by them, unread."""
        self._sent: dict[str, FileEntry] = {}
        """Large files under way to their checkpoint: key -> what was stored and read back."""
        self._started: set[str] = set()
        """Their keys from the moment that sending them began."""
        self._read: set[str] = set()
        """Keys of objects that were read back whole by this process."""

    def send(
        self,
        directory: Path,
        prefix: str,
        known: Mapping[str, FileEntry],
        on_bytes: OnBytes = silent,
    ) -> tuple[FileEntry, ...]:
        """Store the files below `prefix`, read them back, and tell the manifest, sorted by path.

        `known` has, by path, files of an earlier checkpoint with their keys. One that has not changed is
        referred to instead of sent; it is read back the first time. After an error the same call goes on
        where it stopped: large files that were stored are not sent again. `on_bytes` is told how many bytes
        have been read for sending since its last call.
        """
        entries: dict[str, FileEntry] = {}
        few: list[str] = []
        try:
            for path in scan(directory, self._limits):
                entry = self._shared(directory, path, known.get(path)) or self._sent.get(
                    data_key(prefix, path)
                )
                if entry is not None:
                    entries[path] = entry
                elif os.stat(directory / path, follow_symlinks=False).st_size >= _LARGE:
                    entries[path] = self._send_large(directory, path, prefix, on_bytes)
                else:
                    few.append(path)
            entries.update(self._send_few(directory, few, prefix, on_bytes))
            large = [path for path, entry in entries.items() if entry.size >= WORTH_SHARING]
            samples = {path: sample(directory, path) for path in large}
        except OSError as error:
            raise StoreError(f"cannot read {directory}: {error.strerror or error}") from error
        self._samples = samples
        self.forget()
        return tuple(entries[path] for path in sorted(entries))

    def forget(self) -> list[str]:
        """Give up the checkpoint that was being sent; the keys of what the store may have of it, whole or
        in parts.
        """
        started = sorted(self._started)
        self._started.clear()
        self._sent.clear()
        return started

    def read_back(self, key: str, expected: FileEntry | PointsRef) -> None:
        """Read a stored object whole; DamagedError where it is not what was sent."""
        try:
            drained(self._store, key, expected)
        except DamagedError as error:
            raise DamagedError(
                f"{self._store.uri} did not keep what was written: {error.message}",
                remedy="Check the disk or server of the store.",
            ) from error
        self._read.add(key)

    # ------------------------------------------------------------------ parts

    def _send_large(self, directory: Path, path: str, prefix: str, on_bytes: OnBytes) -> FileEntry:
        key = data_key(prefix, path)
        self._started.add(key)
        with open_file(directory, path, on_bytes) as reader:
            self._store.put(key, reader)
        entry = reader.entry(path)
        self.read_back(key, entry)
        self._sent[key] = entry
        return entry

    def _send_few(
        self, directory: Path, paths: list[str], prefix: str, on_bytes: OnBytes
    ) -> dict[str, FileEntry]:
        entries: dict[str, FileEntry] = {}

        def objects() -> Iterator[tuple[str, Source]]:
            for path in paths:
                with open_file(directory, path, on_bytes) as reader:
                    yield data_key(prefix, path), reader
                    entries[path] = reader.entry(path)

        self._store.put_all(objects())
        for path, entry in entries.items():
            self.read_back(data_key(prefix, path), entry)
        return entries

    def _shared(self, directory: Path, path: str, known: FileEntry | None) -> FileEntry | None:
        """The stored file to refer to, where this one has the same bytes and they are still there."""
        if known is None or known.key is None or known.size < WORTH_SHARING:
            return None
        if os.stat(directory / path, follow_symlinks=False).st_size != known.size:
            return None
        before = self._samples.get(path)
        if before is not None and before != sample(directory, path):
            return None
        with open_file(directory, path) as reader:
            while reader.read(CHUNK):
                pass
        same = reader.entry(path).sha256 == known.sha256
        return known if same and self._still_there(known.key, known) else None

    def _still_there(self, key: str, known: FileEntry) -> bool:
        """Where the answer is no the file is sent again, so that the new checkpoint is whole."""
        try:
            if key not in self._read:
                drained(self._store, key, known)
                self._read.add(key)
                return True
            # What comes from its last byte on tells the size.
            return len(b"".join(self._store.get(key, start=known.size - 1, end=known.size + 1))) == 1
        except (DamagedError, NotFoundError):
            return False
