"""What the program writes, as a stream of bytes by offset: never waiting for a reader, and bounded on disk.

The program writes straight to a file, so that it runs on at full speed whatever the agent and the
controller do. Of more output than the limit, the first part is kept and shipped, and at the end the last
lines, with a line in between that says so. The file is cut back whenever it has grown past the limit and
some slack.
"""

from __future__ import annotations

import os
from pathlib import Path

LIMIT = 64 << 20
"""Bytes of output that are kept of one attempt."""
TAIL = 64 << 10
"""Bytes from the end that are kept besides."""


class OutputLog:
    """The output of one attempt. Offsets count from its first byte and stay valid for good."""

    def __init__(self, file: Path, limit: int = LIMIT, slack: int = 8 << 20) -> None:
        self._file = file
        self._limit = limit
        self._slack = slack
        self._cut = 0
        """Bytes that were taken off the end of the file so far."""
        self._tail = b""
        """The last of those bytes."""
        self._epilogue: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that can be read now."""
        return min(self._on_disk(), self._limit) + len(self._epilogue or b"")

    def bound(self) -> None:
        """Cut the file back if it has grown too long. Call this regularly."""
        if self._on_disk() > self._limit + self._slack:
            self._cut_back()

    def finish(self) -> None:
        """The program has ended: what was left out is marked, and the last of it becomes readable."""
        if self._epilogue is not None:
            return
        if self._on_disk() > self._limit:
            self._cut_back()
        left_out = self._cut - len(self._tail)
        mark = f"\n[orch: {left_out} bytes of output are left out here; {self._limit} are kept]\n".encode()
        self._epilogue = mark + self._tail if self._cut else b""

    def read(self, offset: int, most: int) -> bytes:
        """At most so many bytes from the offset; none where nothing more has been written."""
        in_file = min(self._on_disk(), self._limit)
        if offset < in_file:
            return self._read_file(offset, min(most, in_file - offset))
        if self._epilogue is None:
            return b""
        return self._epilogue[offset - in_file : offset - in_file + most]

    def last_lines(self, count: int = 20, most: int = 4000) -> list[str]:
        """The last lines that are not empty, together at most so many characters."""
        size = self._on_disk()
        start = max(self._limit if self._cut else 0, size - TAIL)
        text = self._tail + self._read_file(start, TAIL)
        lines = [line.rstrip() for line in text.decode(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-count:])[-most:].splitlines()

    def _cut_back(self) -> None:
        size = self._on_disk()
        self._tail = (self._tail + self._read_file(max(self._limit, size - TAIL), TAIL))[-TAIL:]
        os.truncate(self._file, self._limit)
        self._cut += size - self._limit

    def _on_disk(self) -> int:
        try:
            return self._file.stat().st_size
        except FileNotFoundError:
            return 0

    def _read_file(self, offset: int, most: int) -> bytes:
        try:
            with self._file.open("rb") as file:
                file.seek(offset)
                return file.read(most)
        except FileNotFoundError:
            return b""
