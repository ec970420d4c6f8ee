"""Residual addition, dropout and normalisation in one pass, forward and backward.

Shapes: N = B * T rows of C channels. The residual stream is fp32, what enters and leaves the matrices bf16. A
row lies in two pieces whose widths are powers of two (384 = 256 + 128), so that no lane is idle at the usual
widths. The gradients of weight and bias are sums per program and then over programs, in a fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from trainer.dropout import site_offset, threshold
from trainer.kernels.hashing import dropout_key, kept, row_key, sequence_number

EPSILON = 1e-5
FORWARD = (8, 8)
"""Rows of a program, warps."""
BACKWARD = (1, 1, 2112)
"""Rows of one turn of a program, warps, programs."""
SUM = (256, 8, 8)
"""Rows and columns of one turn of a program that adds up theirs, warps."""


@triton.jit
def _row_keys(noise, offset, rows, T):
    """The dropout keys of rows, by their numbers in the whole batch."""
    number = sequence_number(noise, rows // T) * T + (rows % T).to(tl.uint32)
    return row_key(number, dropout_key(noise, offset))


@triton.jit
def _stream(
    h, z, h2, keys, rows, columns, mask,
    C: tl.constexpr, THRESHOLD: tl.constexpr, GAIN: tl.constexpr, HAS_Z: tl.constexpr,
):  # fmt: skip
    """h + dropout(z), which is stored; without z it is h."""
    places = rows.to(tl.int64)[:, None] * C + columns[None, :]
    x = tl.load(h + places, mask=mask, other=0.0).to(tl.float32)
    if HAS_Z:
        y = tl.load(z + places, mask=mask, other=0.0).to(tl.float32)
        if THRESHOLD > 0:
            y = tl.where(kept(keys[:, None], columns[None, :].to(tl.uint32), THRESHOLD), y * GAIN, 0.0)
        x += y
        tl.store(h2 + places, x.to(h2.dtype.element_ty), mask=mask)
    return x


@triton.jit
def _store_normed(
    a, weight, bias, x, rows, columns, mask, valid, C: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    if HAS_WEIGHT:
        x *= tl.load(weight + columns, mask=valid, other=0.0)[None, :]
    if HAS_BIAS:
        x += tl.load(bias + columns, mask=valid, other=0.0)[None, :]
    places = rows.to(tl.int64)[:, None] * C + columns[None, :]
    tl.store(a + places, x.to(a.dtype.element_ty), mask=mask)


@triton.jit
def _forward_kernel(
    h, z, weight, bias, h2, a, mean, rstd, noise, offset, N, T,
    C: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, THRESHOLD: tl.constexpr, GAIN: tl.constexpr,
    EPS: tl.constexpr, HAS_Z: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    left, right = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    left_valid, right_valid = left < C, right < C
    left_mask = (rows < N)[:, None] & left_valid[None, :]
    right_mask = (rows < N)[:, None] & right_valid[None, :]
    keys = _row_keys(noise, offset, rows, T) if THRESHOLD > 0 else 0
    x = _stream(h, z, h2, keys, rows, left, left_mask, C, THRESHOLD, GAIN, HAS_Z)
    y = _stream(h, z, h2, keys, rows, right, right_mask, C, THRESHOLD, GAIN, HAS_Z)
    if CENTRED:
        average = (tl.sum(x, 1) + tl.sum(y, 1)) / C
        x -= average[:, None]
        y = tl.where(right_valid[None, :], y - average[:, None], 0.0)
        tl.store(mean + rows, average, mask=rows < N)
    scale = 1.0 / tl.sqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / C + EPS)
    tl.store(rstd + rows, scale, mask=rows < N)
    x *= scale[:, None]
    y *= scale[:, None]
    _store_normed(a, weight, bias, x, rows, left, left_mask, left_valid, C, HAS_WEIGHT, HAS_BIAS)
    _store_normed(a, weight, bias, y, rows, right, right_mask, right_valid, C, HAS_WEIGHT, HAS_BIAS)


@triton.jit
def _load_piece(
    da, h2, weight, average, scale, rows, columns, mask, valid,
    C: tl.constexpr, HAS_WEIGHT: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """(da, da * weight, the normalised row)."""
    places = rows.to(tl.int64)[:, None] * C + columns[None, :]
    gradient = tl.load(da + places, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(h2 + places, mask=mask, other=0.0).to(tl.float32)
    if CENTRED:
        x = tl.where(valid[None, :], x - average[:, None], 0.0)
    x *= scale[:, None]
    inner = gradient
    if HAS_WEIGHT:
        inner = gradient * tl.load(weight + columns, mask=valid, other=0.0)[None, :]
    return gradient, inner, x


@triton.jit
def _store_gradient(
    dh, dz, dh2, keys, inner, rows, columns, mask, C: tl.constexpr, THRESHOLD: tl.constexpr,
    GAIN: tl.constexpr, HAS_Z: tl.constexpr, HAS_DH2: tl.constexpr,
):  # fmt: skip
    places = rows.to(tl.int64)[:, None] * C + columns[None, :]
    if HAS_DH2:
        inner += tl.load(dh2 + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(dh + places, inner.to(dh.dtype.element_ty), mask=mask)
    if HAS_Z:
        if THRESHOLD > 0:
            inner = tl.where(
                kept(keys[:, None], columns[None, :].to(tl.uint32), THRESHOLD), inner * GAIN, 0.0
            )
        tl.store(dz + places, inner.to(dz.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    da, dh2, h2, weight, mean, rstd, dh, dz, dweight, dbias, noise, offset, N, T,
    C: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, THRESHOLD: tl.constexpr, GAIN: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_DH2: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    CENTRED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each program takes every so-many-th block of rows; dweight and dbias are (programs, C)."""
    left, right = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    left_valid, right_valid = left < C, right < C
    left_weight = tl.zeros((ROWS, HEAD), tl.float32)
    right_weight = tl.zeros((ROWS, TAIL), tl.float32)
    left_bias = tl.zeros((ROWS, HEAD), tl.float32)
    right_bias = tl.zeros((ROWS, TAIL), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        rows = block * ROWS + tl.arange(0, ROWS)
        left_mask = (rows < N)[:, None] & left_valid[None, :]
        right_mask = (rows < N)[:, None] & right_valid[None, :]
        keys = _row_keys(noise, offset, rows, T) if THRESHOLD > 0 else 0
        average = tl.load(mean + rows, mask=rows < N, other=0.0) if CENTRED else 0.0
        scale = tl.load(rstd + rows, mask=rows < N, other=0.0)
        left_da, u, x = _load_piece(
            da, h2, weight, average, scale, rows, left, left_mask, left_valid, C, HAS_WEIGHT, CENTRED
        )
        right_da, v, y = _load_piece(
            da, h2, weight, average, scale, rows, right, right_mask, right_valid, C, HAS_WEIGHT, CENTRED
        )
        if HAS_WEIGHT:
            left_weight += left_da * x
            right_weight += right_da * y
        if HAS_BIAS:
            left_bias += left_da
            right_bias += right_da
        along = ((tl.sum(u * x, 1) + tl.sum(v * y, 1)) / C)[:, None]
        if CENTRED:
            shared = ((tl.sum(u, 1) + tl.sum(v, 1)) / C)[:, None]
            u -= shared
            v -= shared
        u = (u - x * along) * scale[:, None]
        v = (v - y * along) * scale[:, None]
        _store_gradient(dh, dz, dh2, keys, u, rows, left, left_mask, C, THRESHOLD, GAIN, HAS_Z, HAS_DH2)
        _store_gradient(dh, dz, dh2, keys, v, rows, right, right_mask, C, THRESHOLD, GAIN, HAS_Z, HAS_DH2)
    first = tl.program_id(0) * C
    if HAS_WEIGHT:
        tl.store(dweight + first + left, tl.sum(left_weight, 0), mask=left_valid)
        tl.store(dweight + first + right, tl.sum(right_weight, 0), mask=right_valid)
    if HAS_BIAS:
        tl.store(dbias + first + left, tl.sum(left_bias, 0), mask=left_valid)
        tl.store(dbias + first + right, tl.sum(right_bias, 0), mask=right_valid)


@triton.jit
def _sum_kernel(parts, total, N, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each program adds up some columns of parts (N, C)."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, N, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (columns < C)[None, :]
        acc += tl.load(parts + rows[:, None] * C + columns[None, :], mask=mask, other=0.0)
    tl.store(total + columns, tl.sum(acc, 0), mask=columns < C)


def _summed(parts: Tensor) -> Tensor:
    """The sum (C) of parts (N, C). PyTorch's takes three times as long for as few columns."""
    N, C = parts.shape
    total = torch.empty(C, dtype=torch.float32, device=parts.device)
    rows, columns, warps = SUM
    if C:
        _sum_kernel[(triton.cdiv(C, columns),)](
            parts, total, N, C, ROWS=rows, COLUMNS=columns, num_warps=warps
        )
    return total


def _pieces(C: int) -> tuple[int, int]:
    """Two powers of two that hold a row: 384 in 256 + 128, 512 in 256 + 256, 400 in 256 + 256."""
    head = 1 << (C - 1).bit_length() - 1
    return head, triton.next_power_of_2(C - head)


@custom_op("orch::norm_forward", mutates_args=())
def norm_forward(
    h: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    noise: Tensor,
    site: int,
    p: float,
    centred: bool,
    dtype: torch.dtype,
    launch: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(h2 (B, T, C), a (B, T, C) in `dtype`, mean and rstd (B, T) fp32); h2 is empty without z.

    `launch` overrides rows and warps.
    """
    B, T, C = h.shape
    head, tail = _pieces(C)
    rows, warps = launch or FORWARD
    h2 = torch.empty_like(h) if z is not None else h.new_empty(0)
    a = torch.empty(h.shape, dtype=dtype, device=h.device)
    mean = torch.empty((B, T) if centred else (0,), dtype=torch.float32, device=h.device)
    rstd = torch.empty((B, T), dtype=torch.float32, device=h.device)
    _forward_kernel[(triton.cdiv(B * T, rows),)](
        h, h if z is None else z, h if weight is None else weight, h if bias is None else bias,
        h2, a, mean, rstd, noise, site_offset(site), B * T, T,
        C=C, HEAD=head, TAIL=tail, THRESHOLD=threshold(p) if z is not None else 0, GAIN=1.0 / (1.0 - p),
        EPS=EPSILON, HAS_Z=z is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        CENTRED=centred, ROWS=rows, num_warps=warps,
    )  # fmt: skip
    return h2, a, mean, rstd


@custom_op("orch::norm_backward", mutates_args=())
def norm_backward(
    da: Tensor,
    dh2: Tensor | None,
    h2: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    noise: Tensor,
    site: int,
    p: float,
    centred: bool,
    has_z: bool,
    has_bias: bool,
    launch: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dh as h2, dz as da, dweight (C), dbias (C)); the last three are empty where there is no such input.

    `launch` overrides rows, warps and programs.
    """
    B, T, C = h2.shape
    head, tail = _pieces(C)
    rows, warps, programs = launch or BACKWARD
    programs = min(programs, triton.cdiv(B * T, rows))
    dh = torch.empty_like(h2)
    dz = torch.empty_like(da) if has_z else da.new_empty(0)
    dweight = torch.empty((programs, C if weight is not None else 0), dtype=torch.float32, device=h2.device)
    dbias = torch.empty((programs, C if has_bias else 0), dtype=torch.float32, device=h2.device)
    _backward_kernel[(programs,)](
        da, da if dh2 is None else dh2, h2, h2 if weight is None else weight, mean, rstd,
        dh, dz, dweight, dbias, noise, site_offset(site), B * T, T,
        C=C, HEAD=head, TAIL=tail, THRESHOLD=threshold(p) if has_z else 0, GAIN=1.0 / (1.0 - p),
        HAS_Z=has_z, HAS_DH2=dh2 is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=has_bias,
        CENTRED=centred, ROWS=rows, num_warps=warps,
    )  # fmt: skip
    return dh, dz, _summed(dweight), _summed(dbias)


@norm_forward.register_fake
def _(
    h: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    noise: Tensor,
    site: int,
    p: float,
    centred: bool,
    dtype: torch.dtype,
    launch: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, _ = h.shape
    return (
        torch.empty_like(h) if z is not None else h.new_empty(0),
        torch.empty(h.shape, dtype=dtype, device=h.device),
        torch.empty((B, T) if centred else (0,), dtype=torch.float32, device=h.device),
        torch.empty((B, T), dtype=torch.float32, device=h.device),
    )


@norm_backward.register_fake
def _(
    da: Tensor,
    dh2: Tensor | None,
    h2: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    noise: Tensor,
    site: int,
    p: float,
    centred: bool,
    has_z: bool,
    has_bias: bool,
    launch: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    C = h2.shape[2]
    return (
        torch.empty_like(h2),
        torch.empty_like(da) if has_z else da.new_empty(0),
        torch.empty(C if weight is not None else 0, dtype=torch.float32, device=h2.device),
        torch.empty(C if has_bias else 0, dtype=torch.float32, device=h2.device),
    )


class ResidualNorm(torch.autograd.Function):
    """`residual_norm` with its gradient. Returns (h2, a, mean, rstd); the last two have none."""

    @staticmethod
    def forward(
        h: Tensor,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        noise: Tensor,
        site: int,
        p: float,
        centred: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h2, a, mean, rstd = torch.ops.orch.norm_forward(h, z, weight, bias, noise, site, p, centred, z.dtype)
        return h2, a, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, weight, bias, noise, ctx.site, ctx.p, ctx.centred = inputs
        h2, _, mean, rstd = output
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h2, weight, mean, rstd, noise)

    @staticmethod
    def backward(ctx: Any, dh2: Tensor | None, da: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        h2, weight, mean, rstd, noise = ctx.saved_tensors
        if da is None:
            raise ValueError("the normalised output of residual_norm is not used")
        with torch.no_grad():  # an operator has no second gradient
            dh, dz, dweight, dbias = torch.ops.orch.norm_backward(
                da.contiguous(), None if dh2 is None else dh2.contiguous(), h2, weight, mean, rstd, noise,
                ctx.site, ctx.p, ctx.centred, True, ctx.has_bias,
            )  # fmt: skip
        return (
            dh,
            dz,
            dweight if weight is not None else None,
            dbias if ctx.has_bias else None,
            *(None,) * 4,
        )


class Norm(torch.autograd.Function):
    """`norm` with its gradient. Returns (a, mean, rstd); the last two have none."""

    @staticmethod
    def forward(
        h: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        noise: Tensor,
        centred: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _, a, mean, rstd = torch.ops.orch.norm_forward(h, None, weight, bias, noise, 0, 0.0, centred, dtype)
        return a, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        h, weight, bias, noise, ctx.centred, _ = inputs
        _, mean, rstd = output
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(h, weight, mean, rstd, noise)

    @staticmethod
    def backward(ctx: Any, da: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        h, weight, mean, rstd, noise = ctx.saved_tensors
        with torch.no_grad():
            dh, _, dweight, dbias = torch.ops.orch.norm_backward(
                da.contiguous(), None, h, weight, mean, rstd, noise, 0, 0.0, ctx.centred, False, ctx.has_bias
            )
        return dh, dweight if weight is not None else None, dbias if ctx.has_bias else None, None, None, None


def residual_norm(
    h: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    noise: Tensor,
    site: int,
    p: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """(h2, a): h2 = h + dropout(z), and a is h2 normalised over C, in z's type.

    Args:
        h: (B, T, C), contiguous, fp32.
        z: (B, T, C), contiguous, bf16 (other floating types work).
        weight, bias: (C) fp32, each may be left out.
        noise, site, p: As in `trainer.dropout.keep_mask`.
        centred: Subtract the mean (LayerNorm); false: divide by the root of the mean square only (RMSNorm).
            Epsilon is 1e-5.
    """
    h2, a, _, _ = ResidualNorm.apply(h, z, weight, bias, noise, site, p, centred)
    return h2, a


def norm(
    h: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    noise: Tensor,
    centred: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """h (B, T, C) normalised over C, in `dtype`; see `residual_norm`. `noise` is not read."""
    a: Tensor = Norm.apply(h, weight, bias, noise, centred, dtype)[0]
    return a
