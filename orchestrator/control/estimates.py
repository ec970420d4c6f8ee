"""Remembers how fast runs went, and says how long others will take."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Final

from orchestrator.clock import Clock
from orchestrator.control.live import LiveBoard
from orchestrator.domain.estimate import (
    Paces,
    Progress,
    device_kind,
    expected_end,
    measured,
    shape,
    target,
)
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.spec.models import RunSpec, Variant
from orchestrator.store.ledger import Ledger

_SINCE: Final = timedelta(days=90)
_MOST: Final = 1000
"""Ended attempts that a controller learns from when it starts."""


class Estimates:
    """Learns from every attempt that ends. Safe to use from several threads."""

    def __init__(self, ledger: Ledger, live: LiveBoard, clock: Clock) -> None:
        self._ledger = ledger
        self._live = live
        self._clock = clock
        self._lock = threading.Lock()
        self._paces = Paces()
        self._devices: dict[str, str] = {}
        """Pool -> the device on which an attempt there ran last."""
        with ledger.read() as reading:
            for attempt in reading.ended_since(clock.now() - _SINCE, _MOST):
                self._learn(reading.run(attempt.run_id).spec, attempt)

    def ended(self, attempt: AttemptRecord) -> None:
        """An attempt has ended."""
        with self._ledger.read() as reading:
            spec = reading.run(attempt.run_id).spec
        self._learn(spec, attempt)

    def _learn(self, spec: RunSpec, attempt: AttemptRecord) -> None:
        device = device_kind(attempt)
        if not device:
            return
        seconds = measured(attempt)
        with self._lock:
            self._devices[attempt.variant.pool] = device
            if seconds is not None:
                self._paces.learn(shape(spec, attempt.variant), device, seconds)

    def seconds_per_step(self, spec: RunSpec, variant: Variant, device: str = "") -> float | None:
        """What a step of this run takes on a kind of device, by default that of the variant's pool.

        None where nothing is known.
        """
        with self._lock:
            kind = device or self._devices.get(variant.pool, "")
            return self._paces.seconds_per_step(shape(spec, variant), kind) if kind else None

    def pace(self, run: RunRecord, attempt: AttemptRecord) -> float | None:
        """Seconds per step of an attempt that executes: as it goes now, else as runs like it went."""
        sign = self._live.sign(run.id, attempt.number)
        if sign is not None and sign.pace is not None:
            return sign.pace
        return self.seconds_per_step(run.spec, attempt.variant, device_kind(attempt))

    def speedup(self, run: RunRecord, attempt: AttemptRecord, variant: Variant) -> float | None:
        """How many times faster the run would go in another placement; None where nothing is known."""
        here, there = self.pace(run, attempt), self.seconds_per_step(run.spec, variant)
        return here / there if here is not None and there is not None else None

    def remaining(self, run: RunRecord, attempt: AttemptRecord | None, step: int | None) -> float | None:
        """Seconds that a run still has to train, where it executes or in the first placement of which
        something is known. Time in the queue is not counted."""
        steps = target(run)
        if steps is None:
            return None
        if attempt is not None and not attempt.ended and not attempt.abandoned:
            paces = [self.pace(run, attempt)]
        else:
            placement = (v for v in run.spec.placement if run.pin_pool in (None, v.pool))
            paces = [self.seconds_per_step(run.spec, variant) for variant in placement]
        known = next((pace for pace in paces if pace is not None), None)
        return Progress(step or 0, steps, known).remaining_s if known is not None else None

    def expected_end(self, run: RunRecord, attempt: AttemptRecord) -> datetime | None:
        """When an attempt that executes will have ended: done, or at one of its limits. None: unknown."""
        sign = self._live.sign(run.id, attempt.number)
        step = sign.step if sign is not None and sign.step is not None else attempt.first_step
        pace, steps = self.pace(run, attempt), target(run)
        progress = None
        if steps is not None and pace is not None and step is not None:
            progress = Progress(step, steps, pace)
        return expected_end(run, attempt, progress, self._clock.now())
