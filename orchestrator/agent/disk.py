"""The disk that an attempt's folder is on. A program whose output goes there cannot say that it is full."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestrator.clock import Clock

FULL: Final = 1 << 20
"""Bytes; a disk with less room than that is full."""
_EVERY_S: Final = 2.0


class DiskWatch:
    """Makes room where the disk is full; tells where that did not help, and when there is room again."""

    def __init__(
        self, folder: Path, make_room: Callable[[], None], tell: Callable[[str], None], clock: Clock
    ) -> None:
        self.full = False
        self._make_room = make_room
        self._folder = folder
        self._tell = tell
        self._clock = clock
        self._looked = -math.inf

    def look(self, *, now: bool = False) -> bool:
        """Whether the disk is full. Looks every few seconds only, or `now`."""
        at = self._clock.monotonic()
        if now or at - self._looked >= _EVERY_S:
            self._looked = at
            was, self.full = self.full, self._is_full()
            if self.full and not was:
                self._tell(f"the disk of {self._folder} is full: the program cannot write checkpoints there")
            elif was and not self.full:
                self._tell(f"the disk of {self._folder} has room again")
        return self.full

    def _is_full(self) -> bool:
        if self._free() < FULL:
            self._make_room()
        return self._free() < FULL

    def _free(self) -> int:
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize
