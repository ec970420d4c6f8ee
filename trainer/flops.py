"""How much arithmetic training takes, and how much a data sheet promises."""

from __future__ import annotations

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
    the position embeddings as nanoGPT does; H Q = n_embd. Attention counts as if each token attended to all
    T, though half of them are masked; the optimizer and what is computed twice to save memory do not count.
    """
    T = config.block_size
    per_token = 6 * parameters + 12 * config.n_layer * config.n_embd * T
    return float(per_token * T * config.batch_size)


def published_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Dense peak of a GPU for matrices of `dtype` by its data sheet, in FLOP/s; None for a GPU not listed.

    The fp32 peak is that of the fp32 units: the trainer does not let fp32 fall back to TF32.
    """
    published = _GPU_TFLOPS.get(device_name)
    if published is None or dtype not in (torch.bfloat16, torch.float32):
        return None
    return published[0 if dtype == torch.bfloat16 else 1] * 1e12
