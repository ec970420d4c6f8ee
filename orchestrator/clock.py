"""The only place that asks what time it is. Instants are aware UTC datetimes, durations are seconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Time as the rest of the program sees it; tests inject their own."""

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back and stand still while the machine is suspended."""
        ...

    def boottime(self) -> float:
        """Seconds that never go back and go on while the machine is suspended."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block for this many seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back and stand still while the machine is suspended."""
        return time.monotonic()

    def boottime(self) -> float:
        """Seconds that never go back and go on while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Block for this many seconds."""
        time.sleep(seconds)


SYSTEM = SystemClock()
