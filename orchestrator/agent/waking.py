"""Notices that this machine, or this process, has slept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from orchestrator.clock import Clock

TICK_S: Final = 0.5
SLEPT_S: Final = 4.0
"""A tick that comes this much after the one before means that nothing ran in between."""
WAKING_S: Final = 120.0
"""After so long a machine that has woken is as before: Ray has found out by then that it was given up."""


class Waking:
    """Ticks in a thread of its own, on the clock that goes on while the machine sleeps; `say` is told what
    was slept through.

    Ray gives up a node that sleeps, and ends its actors when it wakes; that is no reason for an attempt to
    end, if it still owns its run. :attr:`fresh` says when to think of it.
    """

    def __init__(self, clock: Clock, say: Callable[[str], None]) -> None:
        self._clock = clock
        self.say = say
        self._ticked = clock.boottime()
        self._woken: float | None = None
        self._thread = threading.Thread(target=self._run, name="waking", daemon=True)

    def start(self) -> None:
        """Begin to tick; ends with the process."""
        self.tick()
        self._thread.start()

    def tick(self) -> None:
        """Look at the clock."""
        now = self._clock.boottime()
        gap, self._ticked = now - self._ticked, now
        if gap >= SLEPT_S:
            self._woken = now
            self.say(f"nothing ran on this machine for {gap:.0f} s")

    @property
    def fresh(self) -> bool:
        """Whether the machine has woken lately, or wakes at this moment."""
        now = self._clock.boottime()
        wakes = now - self._ticked >= SLEPT_S
        return wakes or (self._woken is not None and now - self._woken < WAKING_S)

    def _run(self) -> None:
        while True:
            self._clock.sleep(TICK_S)
            self.tick()
