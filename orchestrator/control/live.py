"""What attempts are doing this second. Kept in memory: after a restart the next beats fill it again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from orchestrator.clock import Clock
from orchestrator.domain.energy import Energy
from orchestrator.messages import Transfer
from orchestrator.messages_agent import Rendezvous

_PACE_S = 60.0
_PACE_LEAST_S = 5.0
"""A pace is told from stretches of so many seconds."""
_SPEAKS_S = 30.0
"""What was told longer ago is not what is the case now."""
_SLOWER = 2.0
"""How much slower a step may count than those before it."""


@dataclass(frozen=True)
class Sign:
    """The last sign of life of one rank of an attempt."""

    at: float
    """Monotonic seconds."""
    step: int | None = None
    transfer: Transfer | None = None
    base: tuple[float, int] | None = None
    """An earlier moment and its step, by which the pace is told."""
    pace: float | None = None
    """Seconds per step, over the last minute at most."""
    stepped: float = 0.0
    """When its step last became another one, or it was first heard; in monotonic seconds."""
    step_s: float | None = None
    """Seconds per step when it did. It does not grow while nothing happens, nor much by one long pause."""
    saved: float | None = None
    """When it last committed a checkpoint; None: not in this attempt."""
    committed: int | None = None
    """The highest step that it has committed."""
    boot_id: str = ""
    """Which start of its machine the agent spoke from."""
    rendezvous: Rendezvous | None = None
    energy: Energy | None = None
    """What it has used since it began."""
    counted: tuple[float, float] | None = None
    """An earlier moment and its joules, by which `watts` is told."""
    watts: float | None = None
    """Over the last minute at most."""
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
        boot_id: str = "",
        *,
        rank: int = 0,
        rendezvous: Rendezvous | None = None,
        energy: Energy | None = None,
    ) -> None:
        """The agent of a rank spoke now."""
        key = (run_id, attempt, rank)
        with self._lock:
            now = self._clock.monotonic()
            before = self._signs.get(key) or Sign(now)
            if not before.spoke:
                before = replace(before, stepped=now)
            known = step if step is not None else before.step
            base = before.base
            if known is not None and (base is None or now - base[0] > _PACE_S):
                base = (now, known)
            pace = before.pace
            if known is not None and base is not None and known > base[1] and now - base[0] > _PACE_LEAST_S:
                pace = (now - base[0]) / (known - base[1])
            if known is not None and known != before.step:
                before = _stepped(before, known, now)
            if energy is not None:
                before = _counted(before, energy.joules, now)
            self._signs[key] = replace(
                before,
                at=now,
                step=known,
                transfer=transfer,
                base=base,
                pace=pace,
                boot_id=boot_id,
                rendezvous=rendezvous,
                energy=energy or before.energy,
                spoke=True,
            )

    def committed(self, run_id: str, attempt: int, step: int) -> None:
        """The attempt has committed this step now."""
        key = (run_id, attempt, 0)
        with self._lock:
            sign = self._signs.get(key)
            if sign is not None:
                highest = max(step, sign.committed if sign.committed is not None else step)
                self._signs[key] = replace(sign, saved=self._clock.monotonic(), committed=highest)

    def sign(self, run_id: str, attempt: int) -> Sign | None:
        """The last sign of life of its first rank; None before that."""
        return self._sign(run_id, attempt)

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

    def energies(self, run_id: str, attempt: int) -> dict[int, Energy]:
        """What each rank that has said so has used."""
        with self._lock:
            signs = [(key[2], sign) for key, sign in self._signs.items() if key[:2] == (run_id, attempt)]
        return {rank: sign.energy for rank, sign in signs if sign.energy is not None}

    def watts(self, run_id: str, attempt: int) -> dict[int, float]:
        """What each rank that has said so, and still speaks, uses."""
        with self._lock:
            now = self._clock.monotonic()
            signs = [(key[2], sign) for key, sign in self._signs.items() if key[:2] == (run_id, attempt)]
        return {rank: s.watts for rank, s in signs if s.watts is not None and now - s.at < _SPEAKS_S}

    def forget(self, run_id: str, attempt: int) -> None:
        """The attempt has ended."""
        with self._lock:
            for key in [key for key in self._signs if key[:2] == (run_id, attempt)]:
                del self._signs[key]

    def pardon(self) -> None:
        """Count all silences from now, after this process itself was away (suspended, or stuck)."""
        with self._lock:
            now = self._clock.monotonic()
            self._signs = {key: replace(sign, at=now, stepped=now) for key, sign in self._signs.items()}
            self._started = now

    def _sign(self, run_id: str, attempt: int, rank: int = 0) -> Sign | None:
        with self._lock:
            return self._signs.get((run_id, attempt, rank))


def _stepped(sign: Sign, step: int, now: float) -> Sign:
    """The sign once this step was heard of."""
    if sign.step is None or step < sign.step:
        return replace(sign, stepped=now)
    step_s = (now - sign.stepped) / (step - sign.step)
    return replace(sign, stepped=now, step_s=min(step_s, _SLOWER * (sign.step_s or step_s)))


def _counted(sign: Sign, joules: float, now: float) -> Sign:
    """The sign once this energy was heard of."""
    base = sign.counted
    if base is None or now - base[0] > _PACE_S or joules < base[1]:
        return replace(sign, counted=(now, joules))
    if now - base[0] > _PACE_LEAST_S:
        return replace(sign, watts=(joules - base[1]) / (now - base[0]))
    return sign
