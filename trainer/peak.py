"""How fast the device multiplies matrices: measured once per node, then kept in a small file.

The file is ``peaks.json`` in the cache folder (``ORCH_CACHE_DIR``, else the user's cache): FLOP/s by device,
PyTorch version, dtype and threads. See :mod:`trainer.remember`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.device import Hardware
from trainer.flops import published_flops
from trainer.remember import recall, remember

_FILE = "peaks.json"
_CPU_SIZES = (256, 512, 1024)
_GPU_SIZES = (2048, 4096, 8192)
_BUDGET_S = 0.3
_PLAUSIBLE = 1.25
"""A GPU that boosts its clock can exceed its data sheet by some per cent; by more, the clock is wrong."""


def gemm_peak(hardware: Hardware, *, again: bool = False) -> float:
    """The best rate of a square matrix product in the dtype that training uses, in FLOP/s (2 n^3 for n x n).

    It is taken from the node's file, or where that does not have it measured in about 0.3 s and put there.
    `again` measures in any case and keeps the better value: a measurement can be too low, where the machine
    was busy or hot, but hardly too high. A kept value that is not plausible by the data sheet does not count;
    where a measurement is not, the data sheet's counts.
    """
    key, bound = _key(hardware), published_flops(hardware.name(), hardware.dtype)
    known = _known(key)
    if known is not None and bound is not None and known > _PLAUSIBLE * bound:
        known = None
    if known is not None and not again:
        return known
    best = max(measured_flops(hardware), known or 0.0)
    if bound is not None and best > _PLAUSIBLE * bound:
        best = bound
    remember(_FILE, key, best)
    return best


def measured_flops(hardware: Hardware, budget_s: float = _BUDGET_S) -> float:
    """The best rate of a few sizes of square matrices within about `budget_s` seconds, in FLOP/s.

    For a CPU it is the rate of one thread by its own processor time, times the number of threads: other
    programs on the machine do not make the device look slower than it is. Matrices are random: a GPU runs
    faster on constants, whose bits seldom flip. No random numbers of training are used up.
    """
    deadline = time.perf_counter() + budget_s
    if hardware.device.type != "cpu":
        best = max(_gpu_rates(hardware.device, hardware.dtype, deadline))
        torch.cuda.empty_cache()  # up to a gigabyte that training may want in other pieces
        return best
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return hardware.threads * max(_cpu_rates(hardware.dtype, deadline))
    finally:
        torch.set_num_threads(threads)


def _cpu_rates(dtype: torch.dtype, deadline: float) -> Iterator[float]:
    """Rates of one thread for one size after the other; at least one."""
    rate = 0.0
    for n in _CPU_SIZES:
        a, b = _matrices(n, torch.device("cpu"), dtype)
        expected_s = 2.0 * n**3 / rate if rate else 0.0
        if time.perf_counter() + 3 * expected_s > deadline and rate:
            return
        torch.mm(a, b)  # sets up caches
        best = math.inf
        for _ in range(8):
            start = time.thread_time()
            torch.mm(a, b)
            best = min(best, time.thread_time() - start)
            if time.perf_counter() + expected_s > deadline:
                break
        rate = 2.0 * n**3 / max(best, 1e-9)
        yield rate


def _gpu_rates(device: torch.device, dtype: torch.dtype, deadline: float) -> Iterator[float]:
    """Rates for one size after the other, as far as time and memory go; at least one."""
    seconds = 0.0
    for n in _GPU_SIZES:
        needed = 3 * n * n * torch.finfo(dtype).bits // 8
        expected_s = seconds * 8
        late = time.perf_counter() + 5 * expected_s > deadline
        if seconds and (late or torch.cuda.mem_get_info(device)[0] < 2 * needed):
            return
        a, b = _matrices(n, device, dtype)
        for _ in range(2):  # picks kernels, raises the clock
            torch.mm(a, b)
        seconds = min(_timed_on_gpu(a, b, 1 if expected_s > 0.01 else 10) for _ in range(3))
        yield 2.0 * n**3 / seconds


def _timed_on_gpu(a: Tensor, b: Tensor, repeats: int) -> float:
    """Seconds per product by the GPU's own clock."""
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeats):
        torch.mm(a, b)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000.0 / repeats


def _matrices(n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, device=device, dtype=dtype, generator=generator)
    return a, a.t().contiguous()


def _key(hardware: Hardware) -> str:
    name = hardware.name()
    if hardware.device.type == "cpu":  # some machines call very different processors by one name
        name = f"{name} ({torch.backends.cpu.get_cpu_capability()})"
    dtype = str(hardware.dtype).removeprefix("torch.")
    threads = hardware.threads if hardware.device.type == "cpu" else 0
    return f"{name}; torch {torch.__version__}; {dtype}; {threads} threads"


def _known(key: str) -> float | None:
    """The kept value, if it is one."""
    value = recall(_FILE).get(key)
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None
