"""How far a checkpoint has come on its way to or from the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from orchestrator.clock import Clock
from orchestrator.messages import Transfer

_AFTER_S: Final = 2.0
"""Transfers that take less are not worth telling."""
_EVERY_S: Final = 1.0

Tell = Callable[[Transfer | None], None]


class Meter:
    """Counts the bytes of one transfer after another; tells once a second, and None when one is over."""

    def __init__(self, tell: Tell, clock: Clock) -> None:
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._now: Transfer | None = None
        self._told_at = 0.0
        self._told = False

    @contextmanager
    def measuring(
        self, direction: Literal["up", "down"], step: int | None, total: int | None
    ) -> Iterator[Callable[[int], None]]:
        """A transfer of `total` bytes, where that is known; what it yields is told of bytes that moved."""
        with self._lock:
            self._now = Transfer(direction=direction, step=step, done=0, total=total)
            self._told_at = self._clock.monotonic() + _AFTER_S - _EVERY_S
        try:
            yield self._moved
        finally:
            with self._lock:
                self._now, told, self._told = None, self._told, False
            if told:
                self._tell(None)

    def _moved(self, count: int) -> None:
        with self._lock:
            if self._now is None:
                return
            self._now = self._now.model_copy(update={"done": self._now.done + count})
            if self._clock.monotonic() - self._told_at < _EVERY_S:
                return
            self._told_at, self._told = self._clock.monotonic(), True
            now = self._now
        self._tell(now)
