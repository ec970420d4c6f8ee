"""The two matrices of a block with their activation, whose passes over memory are part of the products.

Shapes: M = B * T rows, C channels, F = 4 C between the matrices. The activation is the exact GELU or ReLU
squared. Products other than these two are left to PyTorch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

LAUNCH = (128, 128, 64, 8, 3)
"""Rows, columns and depth of a block (in bf16; half as deep in fp32), warps, stages."""
GROUP = 8
"""Blocks of rows that are computed together, so that they find what they read in the cache."""
DEPTH_MULTIPLE = 16

ROOT_HALF = tl.constexpr(0.7071067811865476)
HALF_LOG2_E = tl.constexpr(0.7213475204444817)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)


@triton.jit
def _normal(x):
    """Density and distribution function of the normal distribution at x; within 8e-8.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26; its exponential is the density's.
    """
    exponential = tl.exp2(-HALF_LOG2_E * x * x)
    t = 1.0 / (1.0 + 0.3275911 * ROOT_HALF * tl.abs(x))
    series = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    tail = 0.5 * exponential * t * (0.254829592 + t * (-0.284496736 + t * series))
    return DENSITY_AT_0 * exponential, tl.where(x >= 0.0, 1.0 - tail, tail)


@triton.jit
def _activation(x, SQUARED: tl.constexpr):
    if SQUARED:
        positive = tl.maximum(x, 0.0)
        return positive * positive
    _, below = _normal(x)
    return x * below


@triton.jit
def _slope(x, SQUARED: tl.constexpr):
    """The activation's derivative."""
    if SQUARED:
        return 2.0 * tl.maximum(x, 0.0)
    density, below = _normal(x)
    return below + x * density


@triton.jit
def _block(M, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of this program's block; neighbours share rows of blocks, GROUP at a time."""
    down, across = tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    first = group * GROUP
    height = tl.minimum(down - first, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    return (first + within % height) * ROWS, (within // height) * COLUMNS


@triton.jit
def _finish(acc, pre, out, row, column, BACKWARD: tl.constexpr, SQUARED: tl.constexpr):
    """Apply the activation or its derivative to a block of products, and store it."""
    if BACKWARD:
        acc *= _slope(pre.load([row, column]).to(tl.float32), SQUARED)
    else:
        rounded = acc.to(pre.dtype)
        pre.store([row, column], rounded)
        acc = _activation(rounded.to(tl.float32), SQUARED)
    out.store([row, column], acc.to(out.dtype))


@triton.jit
def _kernel(
    x, w, pre, out, M, N, K, BACKWARD: tl.constexpr, SQUARED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Forward: pre = x w^T, out = activation(pre), w (N, K). Backward: out = x w * slope(pre), w (K, N).

    All four are descriptors: what lies outside of a matrix is read as zeros and not written.
    """
    row, column = _block(M, N, ROWS, COLUMNS, GROUP)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, K, DEPTH):
        if BACKWARD:
            acc = tl.dot(x.load([row, k]), w.load([k, column]), acc)
        else:
            acc = tl.dot(x.load([row, k]), tl.trans(w.load([column, k])), acc)
    halves = tl.permute(tl.reshape(acc, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
    left, right = tl.split(halves)  # less shared memory, so that two programs fit
    _finish(left, pre, out, row, column, BACKWARD, SQUARED)
    _finish(right, pre, out, row, column + COLUMNS // 2, BACKWARD, SQUARED)


def _launch(
    x: Tensor, w: Tensor, pre: Tensor, out: Tensor, backward: bool, squared: bool, chosen: Sequence[int]
) -> None:
    (M, N), K = out.shape, x.shape[1]
    rows, columns, depth, warps, stages = chosen
    depth = _depth(K, depth * 2 // x.element_size())
    whole = [depth, columns] if backward else [columns, depth]
    half = [rows, columns // 2]
    _kernel[(triton.cdiv(M, rows) * triton.cdiv(N, columns),)](
        _described(x, [rows, depth]), _described(w, whole), _described(pre, half), _described(out, half),
        M, N, K, BACKWARD=backward, SQUARED=squared,
        ROWS=rows, COLUMNS=columns, DEPTH=depth, GROUP=GROUP, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _described(matrix: Tensor, block: list[int]) -> TensorDescriptor:
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), block)


def _depth(K: int, largest: int) -> int:
    """The largest power of two that divides K and is no larger than wanted. ValueError below 16."""
    depth = min(K & -K, largest)
    if depth < DEPTH_MULTIPLE:
        raise ValueError(f"{K} channels; the products need a multiple of {DEPTH_MULTIPLE}")
    return depth


@custom_op("orch::mlp_forward", mutates_args=())
def mlp_forward(
    x: Tensor, weight: Tensor, squared: bool, launch: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """(pre, activation(pre)) with pre = x weight^T, both (M, F); x (M, C) and weight (F, C) contiguous.

    `launch` overrides rows, columns, depth, warps, stages.
    """
    pre = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    out = torch.empty_like(pre)
    _launch(x, weight, pre, out, False, squared, launch or LAUNCH)
    return pre, out


@custom_op("orch::mlp_backward", mutates_args=())
def mlp_backward(
    dz: Tensor, weight: Tensor, pre: Tensor, squared: bool, launch: list[int] | None = None
) -> Tensor:
    """The gradient (M, F) with respect to pre, from dz (M, C) and the second matrix (C, F), contiguous.

    `launch` overrides rows, columns, depth, warps, stages.
    """
    dpre = torch.empty_like(pre)
    _launch(dz, weight, pre, dpre, True, squared, launch or LAUNCH)
    return dpre


@mlp_forward.register_fake
def _(x: Tensor, weight: Tensor, squared: bool, launch: list[int] | None = None) -> tuple[Tensor, Tensor]:
    pre = x.new_empty(x.shape[0], weight.shape[0])
    return pre, torch.empty_like(pre)


@mlp_backward.register_fake
def _(dz: Tensor, weight: Tensor, pre: Tensor, squared: bool, launch: list[int] | None = None) -> Tensor:
    return torch.empty_like(pre)


class MLP(torch.autograd.Function):
    """`mlp` with its gradient. Returns (z, pre, u); the last two have none."""

    @staticmethod
    def forward(x: Tensor, first: Tensor, second: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
        pre, u = torch.ops.orch.mlp_forward(x.reshape(-1, x.shape[-1]), first, squared)
        return F.linear(u, second).reshape(*x.shape[:-1], second.shape[0]), pre, u

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, first, second, ctx.squared = inputs
        _, pre, u = output
        ctx.mark_non_differentiable(pre, u)
        ctx.save_for_backward(x, first, second, pre, u)

    @staticmethod
    def backward(ctx: Any, dz: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, first, second, pre, u = ctx.saved_tensors
        with torch.no_grad():  # an operator has no second gradient
            rows = dz.contiguous().reshape(-1, dz.shape[-1])
            dpre = torch.ops.orch.mlp_backward(rows, second, pre, ctx.squared)
            dx = (dpre @ first).reshape(x.shape)
            return dx, dpre.T @ x.reshape(-1, x.shape[-1]), rows.T @ u, None


def mlp(x: Tensor, first: Tensor, second: Tensor, squared: bool = False) -> Tensor:
    """activation(x first^T) second^T, shaped like x.

    Args:
        x: (..., C), contiguous, bf16 (other floating types work); C is a multiple of 16.
        first: (F, C) in x's type. There are no biases.
        second: (C, F) in x's type.
        squared: The activation is ReLU squared; otherwise the exact GELU.
    """
    z: Tensor = MLP.apply(x, first, second, squared)[0]
    return z
