"""How much arithmetic training takes, and how much the device could do."""

from __future__ import annotations

import time

import torch

from trainer.config import TrainerConfig

A100_BF16_FLOPS = 312e12
"""Dense bf16 peak of an NVIDIA A100, which nanoGPT measures every device against (NVIDIA A100 data sheet)."""

# Dense peaks in TFLOP/s as (bf16 tensor cores, fp32), from the vendors' data sheets and whitepapers. The first entry
# whose words all occur in the device's name counts, so longer names come first.
_GPU_TFLOPS: tuple[tuple[str, float, float], ...] = (
    ("H200", 989.4, 66.9),
    ("H100 PCIe", 756.4, 51.2),
    ("H100 NVL", 835.5, 60.0),
    ("H100", 989.4, 66.9),
    ("A100", 312.0, 19.5),
    ("A10G", 70.0, 31.5),
    ("A10", 125.0, 31.2),
    ("L40S", 362.1, 91.6),
    ("L4", 121.0, 30.3),
    ("T4", 0.0, 8.1),
    ("V100", 0.0, 15.7),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 4080 SUPER", 104.4, 52.2),
    ("RTX 4080", 97.5, 48.7),
    ("RTX 4070 Ti SUPER", 88.2, 44.1),
    ("RTX 4070 Ti", 80.2, 40.1),
    ("RTX 4070", 58.3, 29.1),
    ("RTX 3090", 71.0, 35.6),
    ("RTX 3080", 59.5, 29.8),
    ("RTX 3070", 40.6, 20.3),
    ("RTX 3060", 25.6, 12.7),
)


def flops_per_step(config: TrainerConfig, parameters: int) -> float:
    """Floating-point operations of one forward and backward pass over B x T tokens.

    ``6 N + 12 L H Q T`` per token: PaLM (arXiv 2204.02311), appendix B. N is `parameters`, without the position
    embeddings as nanoGPT counts them; H Q = n_embd.
    """
    T = config.block_size
    per_token = 6 * parameters + 12 * config.n_layer * config.n_embd * T
    return float(per_token * T * config.batch_size)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Dense peak of the device for matrices of `dtype`, in FLOP/s: published for known GPUs, else measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).replace("-", " ")
        for words, bf16, fp32 in _GPU_TFLOPS:
            published = bf16 if dtype == torch.bfloat16 else fp32
            if published and all(word in name.split() for word in words.split()):
                return published * 1e12
    return measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, budget_s: float = 0.15) -> float:
    """The best rate of a square matrix product (2 n^3 operations) seen within about `budget_s` seconds."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.full((n, n), 0.5, device=device, dtype=dtype)
    best = float("inf")
    begin = time.perf_counter()
    with torch.no_grad():
        for round_number in range(50):
            start = time.perf_counter()
            torch.mm(a, a)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            end = time.perf_counter()
            if round_number:  # the first one sets up threads and caches
                best = min(best, end - start)
            if end - begin > budget_s and round_number:
                break
    return 2.0 * n**3 / best
