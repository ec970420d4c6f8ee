"""How much energy training has used, where the device tells: see :mod:`trainer.counters`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.counters import Energy, EnergyCounter, gpu, rapl

_WINDOW_S = 1.0
"""Counters are renewed ten times a second or so."""
_READING_SHARE = 100
"""Steps take at least so many times as long as reading the counter for them."""


@dataclass(frozen=True)
class Used:
    """What some steps used."""

    joules: float
    seconds: float
    steps: int


class EnergyMeter:
    """Measures the energy of steps of training, in stretches: reading a counter takes milliseconds on some
    machines, as long as many steps. So not all steps are measured, and reading takes at most a hundredth of
    the time.

    `find` finds the counter, if there is one, when it is first needed.
    """

    def __init__(
        self, find: Callable[[], EnergyCounter | None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._find: Callable[[], EnergyCounter | None] | None = find
        self._counter: EnergyCounter | None = None
        self._clock = clock
        self._cost_s = 0.0
        self._open: tuple[float, float] | None = None  # when the stretch began, and the joules until then
        self._opened_at = -math.inf
        self._steps = 0
        self._used = Used(0.0, 0.0, 0)

    def begin(self) -> None:
        """Training begins or goes on. Nothing is under way on the device."""
        if self._find is not None:
            self._counter, self._find = self._find(), None
        now = self._clock()
        if self._counter is None or self._open or now - self._opened_at < 2 * _READING_SHARE * self._cost_s:
            return
        joules = self._read()
        self._opened_at, self._steps = self._clock(), 0
        self._open = None if joules is None else (self._opened_at, joules)

    def count(self, steps: int) -> None:
        """So many more steps are made."""
        self._steps += steps

    def end(self) -> None:
        """Training pauses. Nothing is under way on the device."""
        if self._open is None:
            return
        (began, before), self._open = self._open, None
        seconds, after = self._clock() - began, self._read()
        if after is not None:
            used = self._used
            self._used = Used(used.joules + after - before, used.seconds + seconds, used.steps + self._steps)

    def take(self) -> Used | None:
        """What was used since this was last not None, once that is of a second or more, during training or a
        pause; ends and begins a stretch during training."""
        if self._open is not None and self._used.seconds + self._clock() - self._open[0] >= _WINDOW_S:
            self.end()
            self.begin()
        if self._used.seconds < _WINDOW_S or not self._used.steps:
            return None
        used, self._used = self._used, Used(0.0, 0.0, 0)
        return used

    def _read(self) -> float | None:
        begin = self._clock()
        joules = self._counter.joules() if self._counter is not None else None
        self._cost_s = self._clock() - begin
        return joules


def find_energy(device: torch.device) -> Energy:
    """What counts the energy of `device`."""
    if device.type != "cuda":
        return rapl()
    # By its id: CUDA_VISIBLE_DEVICES renumbers GPUs for CUDA, not for NVML.
    return gpu(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
