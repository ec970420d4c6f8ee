"""A clock for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class TurnedClock:
    """Stands still until a test turns it, or somebody sleeps by it."""

    def __init__(self, at: float = 1000.0, wall: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        """`at`: seconds to begin with; `wall`: the instant then."""
        self.at = at
        self._zero = wall - timedelta(seconds=at)

    def now(self) -> datetime:
        """An instant that moves with the seconds."""
        return self._zero + timedelta(seconds=self.at)

    def monotonic(self) -> float:
        """Seconds."""
        return self.at

    def boottime(self) -> float:
        """Seconds."""
        return self.at

    def sleep(self, seconds: float) -> None:
        """Come back at once."""
        self.at += seconds
