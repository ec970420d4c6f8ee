"""How long to wait after failures: 0.5 s, doubling to 15 s, each between half and all of it (jitter)."""

from __future__ import annotations

import random

from orchestrator.clock import Clock

FIRST_S = 0.5
LONGEST_S = 15.0


class Backoff:
    """Failures in a row, by name."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def failed(self, name: str) -> None:
        """Wait longer than last time."""
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        delay = min(LONGEST_S, FIRST_S * 2 ** min(failures - 1, 10))
        self._until[name] = self._clock.monotonic() + delay * self._rng.uniform(0.5, 1.0)

    def worked(self, name: str) -> None:
        """No need to wait any more."""
        self._failures.pop(name, None)
        self._until.pop(name, None)

    def failures(self, name: str) -> int:
        """How often it failed in a row."""
        return self._failures.get(name, 0)

    def wait_s(self, name: str) -> float:
        """Seconds until it may be tried again."""
        return max(0.0, self._until.get(name, 0.0) - self._clock.monotonic())
