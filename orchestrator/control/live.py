"""What attempts are doing this second. Kept in memory: after a restart the next beats fill it again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from orchestrator.clock import Clock
from orchestrator.messages import Transfer

_PACE_S = 60.0
_PACE_LEAST_S = 5.0
"""A pace is told from stretches of so many seconds."""


@dataclass(frozen=True)
class Sign:
    """The last sign of life of one attempt."""

    at: float
    """Monotonic seconds."""
    step: int | None = None
    transfer: Transfer | None = None
    base: tuple[float, int] | None = None
    """An earlier moment and its step, by which the pace is told."""
    pace: float | None = None
    """Seconds per step, over the last minute at most."""
    saved: float | None = None
    """When it last committed a checkpoint; None: not in this attempt."""


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
            now = self._clock.monotonic()
            before = self._signs.get(key) or Sign(now)
            known = step if step is not None else before.step
            base = before.base
            if known is not None and (base is None or now - base[0] > _PACE_S):
                base = (now, known)
            pace = before.pace
            if known is not None and base is not None and known > base[1] and now - base[0] > _PACE_LEAST_S:
                pace = (now - base[0]) / (known - base[1])
            self._signs[key] = Sign(now, known, transfer, base, pace, before.saved)

    def committed(self, run_id: str, attempt: int) -> None:
        """The attempt has committed a checkpoint now."""
        with self._lock:
            sign = self._signs.get((run_id, attempt))
            if sign is not None:
                self._signs[run_id, attempt] = replace(sign, saved=self._clock.monotonic())

    def sign(self, run_id: str, attempt: int) -> Sign | None:
        """The last sign of life; None before the first."""
        with self._lock:
            return self._signs.get((run_id, attempt))

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
