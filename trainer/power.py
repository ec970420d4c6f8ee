"""How much energy the device has used, where it tells: NVML for a GPU, RAPL for a processor.

``NVML``  the package `nvidia-ml-py` (the extra ``gpu``): the counter of total energy that GPUs since Volta
          have, else the power at each reading, taken for the mean of the time between two readings.
``RAPL``  ``/sys/class/powercap/intel-rapl:*``, of Intel and AMD, where this user may read it: all packages
          and their memory. It counts for the whole machine, whatever else runs there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

RAPL_FOLDER = Path("/sys/class/powercap")
_NOTHING = "no energy is measured"
_WINDOW_S = 1.0
"""Counters are renewed ten times a second or so."""
_READING_SHARE = 100
"""Steps take at least so many times as long as reading the counter for them."""


class EnergyCounter(Protocol):
    """Counts the joules that a device uses. To ask it may take milliseconds."""

    source: str
    """What people call it."""

    def joules(self) -> float | None:
        """Since the counter was made; None where the device does not tell any more."""
        ...


@dataclass(frozen=True)
class Energy:
    """A counter, or why there is none."""

    counter: EnergyCounter | None
    note: str
    """What is counted, or what is missing."""

    def joules(self) -> float | None:
        """What the counter says; None without one."""
        return self.counter.joules() if self.counter is not None else None


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
    return _nvml(device) if device.type == "cuda" else rapl()


def rapl(folder: Path = RAPL_FOLDER) -> Energy:
    """The counter of the processors whose zones are in `folder`."""
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if _counts(zone))
    if not zones:
        return Energy(None, f"{_NOTHING}: this machine has no RAPL ({folder}/intel-rapl:*)")
    try:
        counter = _Rapl(zones)
    except (OSError, ValueError) as e:
        return Energy(None, f"{_NOTHING}: RAPL cannot be read: {e}")
    return Energy(counter, counter.source)


def _counts(zone: Path) -> bool:
    """Whether a zone is a package or its memory: cores are in the package, and psys has all of it again."""
    try:
        name = (zone / "name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return False
    return name.startswith("package") or name == "dram"


class _Rapl:
    """Adds up differences, since the zones' counters begin again at zero after `max_energy_range_uj`.

    At 200 W that is every 20 minutes or so; it must be read more often than that.
    """

    def __init__(self, zones: list[Path]) -> None:
        self.source = f"RAPL, {len(zones)} zones of the whole machine"
        self._zones = zones
        self._range = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(zone / "energy_uj") for zone in zones]
        self._total = 0

    def joules(self) -> float | None:
        try:
            now = [_number(zone / "energy_uj") for zone in self._zones]
        except (OSError, ValueError):
            return None
        for new, old, top in zip(now, self._last, self._range, strict=True):
            self._total += new - old if new >= old else new - old + top
        self._last = now
        return self._total / 1e6


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _nvml(device: torch.device) -> Energy:
    try:
        import pynvml
    except ImportError:
        return Energy(None, f"{_NOTHING}: NVML needs the package nvidia-ml-py (pip install 'orch[gpu]')")
    try:
        pynvml.nvmlInit()
        # By its id: CUDA_VISIBLE_DEVICES renumbers GPUs for CUDA, not for NVML.
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        counter = nvml_counter(pynvml, handle)
    except pynvml.NVMLError as e:
        return Energy(None, f"{_NOTHING}: NVML says: {e}")
    return Energy(counter, counter.source)


def nvml_counter(nvml: Any, handle: Any, clock: Callable[[], float] = time.monotonic) -> EnergyCounter:
    """The counter of one GPU. `nvml` is the module `pynvml`.

    Raises:
        NVMLError: the GPU tells neither energy nor power.
    """
    try:
        return _NvmlEnergy(nvml, handle)
    except nvml.NVMLError:  # before Volta, or a part of a GPU
        return _NvmlPower(nvml, handle, clock)


class _NvmlEnergy:
    source = "NVML, total energy of the GPU"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._first: int = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    def joules(self) -> float | None:
        try:
            now: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            return None
        return (now - self._first) / 1000.0  # it counts millijoules


class _NvmlPower:
    source = "NVML, power of the GPU at each reading"

    def __init__(self, nvml: Any, handle: Any, clock: Callable[[], float]) -> None:
        self._nvml, self._handle, self._clock = nvml, handle, clock
        self._watts = self._power()
        self._at = clock()
        self._total = 0.0

    def joules(self) -> float | None:
        try:
            watts = self._power()
        except self._nvml.NVMLError:
            return None
        now = self._clock()
        self._total += (self._watts + watts) / 2.0 * (now - self._at)
        self._watts, self._at = watts, now
        return self._total

    def _power(self) -> float:
        milliwatts: int = self._nvml.nvmlDeviceGetPowerUsage(self._handle)
        return milliwatts / 1000.0
