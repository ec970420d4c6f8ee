"""What attempts are doing this second. Kept in memory: after a restart the next beats fill it again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from orchestrator.clock import Clock
from orchestrator.messages import Transfer


@dataclass(frozen=True)
class Sign:
    """The last sign of life of one attempt."""

    at: float
    """Monotonic seconds."""
    step: int | None = None
    transfer: Transfer | None = None


class LiveBoard:
    """Signs of life by attempt; safe to use from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self._signs: dict[tuple[str, int], Sign] = {}
        self._lock = threading.Lock()

    def heard(self, run_id: str, attempt: int, step: int | None, transfer: Transfer | None = None) -> None:
        """The agent spoke now."""
        key = (run_id, attempt)
        with self._lock:
            before = self._signs.get(key)
            known = step if step is not None else (before.step if before else None)
            self._signs[key] = Sign(self._clock.monotonic(), known, transfer)

    def expect(self, run_id: str, attempt: int) -> None:
        """An attempt was launched now: silence counts from here."""
        with self._lock:
            self._signs[run_id, attempt] = Sign(self._clock.monotonic())

    def silence(self, run_id: str, attempt: int) -> float:
        """Seconds since the agent spoke, since its launch, or since this controller started."""
        with self._lock:
            sign = self._signs.get((run_id, attempt))
        return self._clock.monotonic() - (sign.at if sign else self._started)

    def step(self, run_id: str, attempt: int) -> int | None:
        """The newest step that was heard of."""
        with self._lock:
            sign = self._signs.get((run_id, attempt))
        return sign.step if sign else None

    def transfer(self, run_id: str, attempt: int) -> Transfer | None:
        """The checkpoint that is under way."""
        with self._lock:
            sign = self._signs.get((run_id, attempt))
        return sign.transfer if sign else None

    def forget(self, run_id: str, attempt: int) -> None:
        """The attempt has ended."""
        with self._lock:
            self._signs.pop((run_id, attempt), None)

    def pardon(self) -> None:
        """Count all silences from now, after this process itself was away (suspended, or stuck)."""
        with self._lock:
            now = self._clock.monotonic()
            self._signs = {key: replace(sign, at=now) for key, sign in self._signs.items()}
            self._started = now
