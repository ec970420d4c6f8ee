"""The files of /proc (proc(5)) that tell of processes; what has ended meanwhile reads as empty."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


class Proc:
    """The folder in which the system shows its processes."""

    def __init__(self, folder: Path = PROC) -> None:
        self._folder = str(folder)

    def pids(self) -> Iterator[int]:
        """Numbers of the processes there are."""
        for name in os.listdir(self._folder):
            if name.isdigit():
                yield int(name)

    def stat(self, pid: int) -> list[str]:
        """Fields behind the command; empty where the process has ended."""
        text = self.read(f"{pid}/stat")
        return text[text.rindex(")") + 2 :].split() if ")" in text else []

    def read(self, file: str) -> str:
        """The first 4096 bytes of a file; empty where it has gone or belongs to somebody else."""
        try:
            descriptor = os.open(f"{self._folder}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            return os.read(descriptor, 4096).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(descriptor)
