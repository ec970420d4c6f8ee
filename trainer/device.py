"""Where to train and how exactly."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from orchestrator.contract import RunContext, gpu_allowance
from trainer import processor
from trainer.checkpoint import Environment
from trainer.config import TrainerConfig
from trainer.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Hardware:
    """The device of this process and the numerics on it."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    deterministic: bool
    """Whether uncompiled steps can be repeated bit by bit."""

    def autocast(self) -> AbstractContextManager[object]:
        """Runs matrix products in `dtype`; does nothing for fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given in this thread; not for a checkpoint's writer."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def seed_dropout(self, seed: int) -> None:
        """Decide the dropout masks that follow. Only this device's generator is touched."""
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def environment(self, compiled: bool = False, deterministic: bool | None = None) -> Environment:
        """For the checkpoint; how steps are made now."""
        return Environment(
            torch=torch.__version__,
            device=self.device.type,
            device_name=self.name(),
            dtype=str(self.dtype).removeprefix("torch."),
            threads=self.threads,
            compiled=compiled,
            deterministic=self.deterministic if deterministic is None else deterministic,
        )

    def name(self) -> str:
        """What people call the device."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return processor.name()


def choose_hardware(config: TrainerConfig, context: RunContext) -> Hardware:
    """Set this process up for the device that the configuration and the placement allow.

    Raises:
        UserError: the device is not there or was not granted.
    """
    device = _device(config.device, context.device)
    if device.type == "cuda" and context.gpu_memory is not None:
        keep_to_share(context.gpu_memory)
    threads = context.cpus or _all_cores()
    if context.cpus or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    deterministic = _deterministic(device, config.compile is True)
    if device.type == "cpu":
        _keep_memory()
    return Hardware(device, _dtype(config, device), torch.get_num_threads(), deterministic)


def keep_to_share(share: int) -> None:
    """Have this process allocate no more than this many bytes of its GPU, CUDA's own part included."""
    local, count = os.environ.get("LOCAL_RANK", ""), torch.cuda.device_count()
    index = int(local) if local.isdecimal() and int(local) < count else 0
    fraction = gpu_allowance(share) / torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), index)


def _device(wanted: str, granted: str | None) -> torch.device:
    name = (granted or ("cuda" if torch.cuda.is_available() else "cpu")) if wanted == "auto" else wanted
    if name not in ("cpu", "cuda"):
        raise UserError(f"the placement granted the device {name!r}; the trainer knows cpu and cuda")
    if name == "cuda" and granted == "cpu":
        raise UserError(
            "the configuration wants device cuda, but the placement granted no GPU; ask for gpus: 1"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but PyTorch sees no usable GPU on this machine")
    return torch.device(name)


def _dtype(config: TrainerConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        capable = torch.cuda.is_bf16_supported() if device.type == "cuda" else processor.multiplies_bf16()
        return torch.bfloat16 if capable else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def _deterministic(device: torch.device, compiled: bool) -> bool:
    """Ask for repeatable kernels where they cost little; whether steps can be repeated bit by bit."""
    if device.type == "cpu":
        return True
    if compiled:
        return False  # repeatable kernels would take a third more time
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts, later than this
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms() would import the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return True


def _keep_memory() -> None:
    """Have glibc keep memory that was freed, to be used again; other libraries are left as they are.

    By default it gives blocks of 128 KiB and more back to the system and gets new ones, page by page and
    filled with zeros, at every operation of every step: an eighth of a step's time at 4 x 128.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _all_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
