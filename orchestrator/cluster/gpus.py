"""The GPUs of a node through NVML (package `nvidia-ml-py`, the extra ``gpu``): what others take of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.domain.fleet import GpuState
from trainer.counters import nvml_handle

log = logging.getLogger(__name__)

MEMORY_STEP: Final = 16 * 2**20
"""Foreign memory is rounded up to this, so that a report does not change with every small allocation."""
_USE_STEPS: Final = 20
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC
"""The kernel's number of the namespace in which NVML counts processes (PROC_PID_INIT_INO)."""


@dataclass(frozen=True)
class Ours:
    """Which processes are ours, and whether some may be on GPUs."""

    is_ours: Callable[[int], bool]
    on_gpus: Callable[[], bool]


def load_nvml() -> Any | None:
    """The module `pynvml`, ready; None where it or the driver is missing, which the log says."""
    try:
        import pynvml
    except ImportError:
        log.info("the memory of GPUs is not known: the package nvidia-ml-py is missing (extra `gpu`)")
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("the memory of GPUs is not known: NVML says: %s", error)
        return None
    return pynvml


def sees_all_processes() -> bool:
    """Whether process numbers mean here what they mean to NVML; not so in most containers."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


class Gpus:
    """The GPUs of one node, in the order in which it offers them. For one thread."""

    def __init__(self, nvml: Any, ids: Sequence[str], sees_all: bool) -> None:
        """`ids` as CUDA_VISIBLE_DEVICES names them; `sees_all`: see :func:`sees_all_processes`."""
        self._nvml = nvml
        self._sees_all = sees_all
        self._gpus: list[_Gpu] = []
        self._silent: set[int] = set()
        for index, name in enumerate(ids):
            try:
                self._gpus.append(_Gpu(nvml, index, nvml_handle(nvml, name)))
            except (nvml.NVMLError, ValueError) as error:
                log.info("GPU %s is not known to NVML: %s", name, error)

    def read(self, ours: Ours) -> list[GpuState]:
        """How each is now; those that do not answer are left out."""
        found = []
        for gpu in self._gpus:
            try:
                found.append(gpu.read(ours, self._sees_all))
                self._silent.discard(gpu.index)
            except self._nvml.NVMLError as error:
                if gpu.index not in self._silent:
                    log.warning("GPU %d does not answer: %s", gpu.index, error)
                    self._silent.add(gpu.index)
        return found


class _Gpu:
    def __init__(self, nvml: Any, index: int, handle: Any) -> None:
        self.index = index
        self._nvml = nvml
        self._handle = handle
        name = nvml.nvmlDeviceGetName(handle)
        self._name = name.decode() if isinstance(name, bytes) else str(name)
        self._looked_at = 0
        """Time stamp of the newest sample of processes' use, in µs."""
        self._foreign = 0
        """Bytes of others when they could last be told from ours."""

    def read(self, ours: Ours, sees_all: bool) -> GpuState:
        # Asked first: a program that begins or ends during the rest must not look like somebody else's.
        expected = ours.on_gpus()
        total, used = self._memory()
        processes, complete = self._processes()
        mine = {pid for pid in processes if ours.is_ours(pid)}
        others = [processes[pid] for pid in processes if pid not in mine]
        if sees_all and complete and None not in others:
            self._foreign = sum(size for size in others if size is not None)
        elif mine and all(processes[pid] is not None for pid in mine):
            self._foreign = max(0, used - sum(processes[pid] or 0 for pid in mine))
        elif expected or mine:
            # Ours are among what is used, and nobody can say how much: what was seen before they began.
            return self._state(total, min(self._foreign, used), 0.0)
        else:
            self._foreign = used
        return self._state(total, self._foreign, self._use(mine))

    def _state(self, total: int, foreign: int, use: float) -> GpuState:
        foreign = min(total, -(-foreign // MEMORY_STEP) * MEMORY_STEP)
        return GpuState(self.index, self._name, total, foreign, round(use * _USE_STEPS) / _USE_STEPS)

    def _memory(self) -> tuple[int, int]:
        """Bytes that programs can have, and that they have taken; what the driver keeps is in neither."""
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle, version=nvml.nvmlMemory_v2)
            return int(memory.total) - int(memory.reserved), int(memory.used)
        except nvml.NVMLError:  # a driver before 510
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle)
            return int(memory.total), int(memory.used)

    def _processes(self) -> tuple[dict[int, int | None], bool]:
        """Process -> bytes (None where the driver does not tell), and whether those are all."""
        nvml = self._nvml
        found: dict[int, int | None] = {}
        complete = True
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            try:
                for entry in ask(self._handle):
                    # A program that computes and draws is in both lists, each time with all that it has.
                    found[int(entry.pid)] = entry.usedGpuMemory
            except nvml.NVMLError:
                complete = False
        return found, complete

    def _use(self, mine: set[int]) -> float:
        """Share of the last seconds in which others kept it busy; 0 where they cannot be told from ours."""
        nvml = self._nvml
        try:
            if not mine:
                return float(nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
            samples = nvml.nvmlDeviceGetProcessUtilization(self._handle, self._looked_at)
        except nvml.NVMLError:  # not supported, or nobody has used it since the last look
            return 0.0
        self._looked_at = max([self._looked_at, *(int(sample.timeStamp) for sample in samples)])
        use: dict[int, list[int]] = {}
        for sample in samples:
            if int(sample.pid) not in mine:
                use.setdefault(int(sample.pid), []).append(int(sample.smUtil))
        return min(1.0, sum(sum(values) / len(values) for values in use.values()) / 100)
