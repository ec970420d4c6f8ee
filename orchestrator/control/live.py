"""What attempts are doing this second. Kept in memory: after a restart the next beats fill it again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from orchestrator.clock import Clock
from orchestrator.messages import Rendezvous, Transfer


@dataclass(frozen=True)
class Sign:
    """The last sign of life of one rank of an attempt."""

    at: float
    """Monotonic seconds."""
    step: int | None = None
    transfer: Transfer | None = None
    rendezvous: Rendezvous | None = None
    spoke: bool = False
    """Whether its agent has been heard of at all."""


class LiveBoard:
    """Signs of life by attempt and rank; safe to use from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self._signs: dict[tuple[str, int, int], Sign] = {}
        self._lock = threading.Lock()

    def heard(
        self,
        run_id: str,
        attempt: int,
        step: int | None,
        transfer: Transfer | None = None,
        *,
        rank: int = 0,
        rendezvous: Rendezvous | None = None,
    ) -> None:
        """The agent of a rank spoke now."""
        key = (run_id, attempt, rank)
        with self._lock:
            before = self._signs.get(key)
            known = step if step is not None else (before.step if before else None)
            self._signs[key] = Sign(self._clock.monotonic(), known, transfer, rendezvous, spoke=True)

    def expect(self, run_id: str, attempt: int, rank: int = 0) -> None:
        """A rank is launched now: silence counts from here, unless there is a sign of it already."""
        with self._lock:
            self._signs.setdefault((run_id, attempt, rank), Sign(self._clock.monotonic()))

    def silence(self, run_id: str, attempt: int, rank: int = 0) -> float:
        """Seconds since the agent spoke, since its launch, or since this controller started."""
        sign = self._sign(run_id, attempt, rank)
        return self._clock.monotonic() - (sign.at if sign else self._started)

    def spoke(self, run_id: str, attempt: int, rank: int) -> bool:
        """Whether this controller has heard of the agent."""
        sign = self._sign(run_id, attempt, rank)
        return sign is not None and sign.spoke

    def rendezvous(self, run_id: str, attempt: int, world: int) -> Rendezvous | None:
        """Where the ranks meet; None until all are there and rank 0 has said so."""
        first = self._sign(run_id, attempt)
        there = all(self.spoke(run_id, attempt, rank) for rank in range(world))
        return first.rendezvous if first and there else None

    def step(self, run_id: str, attempt: int) -> int | None:
        """The newest step that was heard of."""
        sign = self._sign(run_id, attempt)
        return sign.step if sign else None

    def transfer(self, run_id: str, attempt: int) -> Transfer | None:
        """The checkpoint that is under way."""
        sign = self._sign(run_id, attempt)
        return sign.transfer if sign else None

    def forget(self, run_id: str, attempt: int) -> None:
        """The attempt has ended."""
        with self._lock:
            for key in [key for key in self._signs if key[:2] == (run_id, attempt)]:
                del self._signs[key]

    def pardon(self) -> None:
        """Count all silences from now, after this process itself was away (suspended, or stuck)."""
        with self._lock:
            now = self._clock.monotonic()
            self._signs = {key: replace(sign, at=now) for key, sign in self._signs.items()}
            self._started = now

    def _sign(self, run_id: str, attempt: int, rank: int = 0) -> Sign | None:
        with self._lock:
            return self._signs.get((run_id, attempt, rank))
