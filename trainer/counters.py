"""The energy counters of this machine: NVML for a GPU, RAPL for the processors. It imports no torch, so that
the agent can read the same ones for whatever program it runs.

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
from typing import Any, Final, Protocol

RAPL_FOLDER: Final = Path("/sys/class/powercap")
ZONE_WATTS: Final = 1000.0
"""No package and no package's memory takes more."""
GPU_WATTS: Final = 2000.0
"""No GPU takes more."""
_POWER_S: Final = 60.0
"""Two readings of power that are farther apart say nothing of the time between them."""
_NOTHING = "no energy is measured"


class EnergyCounter(Protocol):
    """Counts the joules that a device uses. To ask it may take milliseconds."""

    source: str
    """What people call it."""
    most_watts: float
    """More than this it cannot count; where it does, it has begun anew, as some do while a machine sleeps."""
    longest_s: float
    """Readings that are farther apart cannot be told from ones between which it began anew."""

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
        self.most_watts = ZONE_WATTS * len(zones)
        self.longest_s = min(self._range) / 1e6 / ZONE_WATTS
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


def gpu(name: str) -> Energy:
    """The counter of a GPU that is called so in CUDA_VISIBLE_DEVICES: by its place on the bus or its id."""
    try:
        import pynvml
    except ImportError:
        return Energy(None, f"{_NOTHING}: NVML needs the package nvidia-ml-py (pip install 'orch[gpu]')")
    try:
        pynvml.nvmlInit()
        counter = nvml_counter(pynvml, nvml_handle(pynvml, name))
    except pynvml.NVMLError as e:
        return Energy(None, f"{_NOTHING}: NVML says: {e}")
    return Energy(counter, counter.source)


def nvml_handle(nvml: Any, name: str) -> Any:
    """NVML's handle of the GPU that is called so in CUDA_VISIBLE_DEVICES; NVMLError where there is none."""
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


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
    most_watts = GPU_WATTS
    longest_s = math.inf

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
    most_watts = GPU_WATTS
    longest_s = _POWER_S

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
