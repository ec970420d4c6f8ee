"""Bytes that wait to become artifacts, one file each, beside the spool."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container
from pathlib import Path


class SpoolFiles:
    """A folder of files that the outbox refers to by name."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when the first file comes."""
        self._folder = folder

    def put(self, run_id: str, artifact_path: str, data: bytes) -> Path:
        """Store `data` durably. The same data for the same artifact is the same file."""
        name = hashlib.sha256(f"{run_id}\0{artifact_path}\0".encode() + data).hexdigest()
        file = self._folder / name
        if file.exists():
            return file
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{name}.{os.urandom(4).hex()}"
        with draft.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        draft.rename(file)
        self._sync_folder()
        return file

    def sweep(self, wanted: Container[str]) -> None:
        """Remove files that no task refers to: left by a crash between writing and queueing."""
        if self._folder.is_dir():
            for file in self._folder.iterdir():
                if str(file) not in wanted:
                    file.unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
