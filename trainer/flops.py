"""How much arithmetic training takes, and how much the device could do."""

from __future__ import annotations

import time

import torch

from trainer.config import TrainerConfig

A100_BF16_FLOPS = 312e12
"""Dense bf16 peak of an A100 (NVIDIA's data sheet), which nanoGPT measures every device against."""

# Dense peaks in TFLOP/s as (bf16 tensor cores with fp32 sums, fp32), from NVIDIA's data sheets and white
# papers, by the whole name that the driver reports: an "RTX 4070" is not an "RTX 4070 Laptop GPU".
_GPU_TFLOPS: dict[str, tuple[float, float]] = {
    "NVIDIA H200": (989.4, 66.9),
    "NVIDIA H100 80GB HBM3": (989.4, 66.9),
    "NVIDIA H100 NVL": (835.5, 60.0),
    "NVIDIA H100 PCIe": (756.4, 51.2),
    "NVIDIA A100-SXM4-40GB": (312.0, 19.5),
    "NVIDIA A100-SXM4-80GB": (312.0, 19.5),
    "NVIDIA A100-PCIE-40GB": (312.0, 19.5),
    "NVIDIA A100 80GB PCIe": (312.0, 19.5),
    "NVIDIA A10": (125.0, 31.2),
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA L4": (121.0, 30.3),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6),
    "NVIDIA GeForce RTX 4080 SUPER": (104.4, 52.2),
    "NVIDIA GeForce RTX 4080": (97.5, 48.7),
    "NVIDIA GeForce RTX 4070 Ti SUPER": (88.2, 44.1),
    "NVIDIA GeForce RTX 4070 Ti": (80.2, 40.1),
    "NVIDIA GeForce RTX 4070": (58.3, 29.1),
    "NVIDIA GeForce RTX 3090": (71.0, 35.6),
    "NVIDIA GeForce RTX 3080": (59.5, 29.8),
    "NVIDIA GeForce RTX 3070": (40.6, 20.3),
}


def flops_per_step(config: TrainerConfig, parameters: int) -> float:
    """Floating-point operations of one forward and backward pass over B x T tokens.

    ``6 N + 12 L H Q T`` per token: PaLM (arXiv 2204.02311), appendix B. N is `parameters`, counted without
    the position embeddings as nanoGPT does; H Q = n_embd.
    """
    T = config.block_size
    per_token = 6 * parameters + 12 * config.n_layer * config.n_embd * T
    return float(per_token * T * config.batch_size)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Dense peak of the device for matrices of `dtype`, in FLOP/s: published for known GPUs, else measured.

    The fp32 peak is that of the fp32 units: the trainer does not let fp32 fall back to TF32.
    """
    if device.type == "cuda":
        published = _GPU_TFLOPS.get(torch.cuda.get_device_name(device))
        if published is not None:
            return published[0 if dtype == torch.bfloat16 else 1] * 1e12
    return measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, budget_s: float = 0.15) -> float:
    """The best rate of a square matrix product (2 n^3 operations) seen within about `budget_s` seconds.

    For a CPU it is the rate of one thread by its own processor time, times the number of threads: other
    programs on the machine do not make the device look slower than it is.
    """
    if device.type != "cpu":
        return _best_rate(device, dtype, 4096, budget_s)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return threads * _best_rate(device, dtype, 512, budget_s)
    finally:
        torch.set_num_threads(threads)


def _best_rate(device: torch.device, dtype: torch.dtype, n: int, budget_s: float) -> float:
    a = torch.full((n, n), 0.5, device=device, dtype=dtype)
    best = float("inf")
    begin = time.perf_counter()
    with torch.no_grad():
        for round_number in range(100):
            start = _busy_s(device)
            torch.mm(a, a)
            seconds = _busy_s(device) - start
            if round_number:  # the first one sets up threads and caches
                best = min(best, seconds)
            if time.perf_counter() - begin > budget_s and round_number:
                break
    return 2.0 * n**3 / best


def _busy_s(device: torch.device) -> float:
    """Seconds that the device has worked: this thread's processor time, or the clock once a GPU is idle."""
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
