"""Triton kernels of the training step, for CUDA devices. Needs the package triton: import it only there.

Each is a PyTorch operator ``orch::...`` that a compiled step calls as it is, and on top of it a function with
a gradient. Dropout is `trainer.dropout`'s, bit for bit.
"""

from trainer.kernels.attention import Attention, attention
from trainer.kernels.mlp import MLP, mlp
from trainer.kernels.norm import Norm, ResidualNorm, norm, residual_norm

__all__ = ["MLP", "Attention", "Norm", "ResidualNorm", "attention", "mlp", "norm", "residual_norm"]
