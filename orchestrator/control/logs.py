"""Output and artifacts of attempts, as the controller keeps them."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from orchestrator.errors import ConflictError
from orchestrator.messages_agent import LogChunk

ARTIFACT_LIMIT = 64 * 2**20
"""Largest artifact in bytes."""


class RunFiles:
    """Files under one folder per run: ``a<n>.log``, of other ranks ``a<n>-r<k>.log``, and ``artifacts/``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def log(self, run_id: str, attempt: int, rank: int = 0) -> Path:
        """Where the output of an attempt, or of a rank of it, is."""
        return self._root / run_id / (f"a{attempt}-r{rank}.log" if rank else f"a{attempt}.log")

    def log_size(self, run_id: str, attempt: int, rank: int = 0) -> int:
        """Bytes of output that are here."""
        try:
            return self.log(run_id, attempt, rank).stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, run_id: str, attempt: int, chunk: LogChunk, rank: int = 0) -> int:
        """Add what is new of a chunk and answer the size. A chunk that would leave a gap is not taken.

        One caller per attempt at a time.
        """
        path = self.log(run_id, attempt, rank)
        size = self.log_size(run_id, attempt, rank)
        if chunk.offset > size or chunk.offset + len(chunk.data) <= size:
            return size
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(chunk.data[size - chunk.offset :])
        return chunk.offset + len(chunk.data)

    def read(self, run_id: str, attempt: int, offset: int, limit: int = 256 * 1024, rank: int = 0) -> bytes:
        """Up to `limit` bytes of output from `offset`."""
        try:
            with self.log(run_id, attempt, rank).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def artifact(self, run_id: str, path: str) -> bytes | None:
        """An artifact that is kept; None where there is none of this path."""
        try:
            return (self._root / run_id / "artifacts" / path).read_bytes()
        except FileNotFoundError:
            return None

    def save_artifact(self, run_id: str, path: str, data: bytes) -> Path:
        """Keep one artifact, whole or not at all; ConflictError for a path that leads elsewhere."""
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\0" in path:
            raise ConflictError(f"artifact path {path!r} must lie below the run")
        if len(data) > ARTIFACT_LIMIT:
            raise ConflictError(f"artifact {path} has {len(data)} bytes, at most {ARTIFACT_LIMIT} are kept")
        final = self._root / run_id / "artifacts" / relative
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f".{final.name}.{os.getpid()}")
        aside.write_bytes(data)
        aside.replace(final)
        return final
