"""Causal attention on c_attn's output, forward and backward, with dropout on the attention weights.

Shapes: B sequences, T tokens, H heads of D channels, C = H * D. ``qkv`` is (B, T, 3C) as the matrix gives it,
``out`` (B, T, C) as c_proj takes it, so that nothing is transposed or concatenated in between. The backward
pass is deterministic: one program owns one block of rows, of dk and dv first and of dq after, and so computes
the weights of a pair of blocks twice rather than adding with atomics.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from trainer.dropout import site_offset, threshold
from trainer.kernels.hashing import dropout_key, kept, row_key, sequence_number

LOG2_E = 1.4426950408889634

# (rows of a program, columns of one turn of its loop, warps, stages), by D; blocks shrink to fit T.
FORWARD = {16: (64, 64, 4, 2), 32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (128, 64, 8, 2)}
BACKWARD = {16: (64, 64, 4, 2), 32: (64, 32, 4, 2), 64: (64, 32, 4, 1), 128: (32, 32, 4, 2)}
SMALLEST_BLOCK = 16


@triton.jit
def _load_rows(base, rows, T, stride, D: tl.constexpr, MASKED: tl.constexpr):
    """Rows of one head, (rows, D); zeros past T."""
    places = base + rows[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(places, mask=rows[:, None] < T, other=0.0) if MASKED else tl.load(places)


@triton.jit
def _attend_block(
    q, k_base, v_base, acc, high, total, rows, start, keys, T, stride,
    D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr,
    DIAGONAL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One turn of the forward loop: columns start to start + BLOCK, softmax on the fly."""
    columns = start + tl.arange(0, BLOCK)
    k = _load_rows(k_base, columns, T, stride, D, DIAGONAL and not EVEN)
    scores = tl.dot(q, tl.trans(k))
    if DIAGONAL:
        scores = tl.where(rows[:, None] >= columns[None, :], scores, float("-inf"))
    higher = tl.maximum(high, tl.max(scores, 1) * SCALE)
    weights = tl.exp2(scores * SCALE - higher[:, None])
    shrink = tl.exp2(high - higher)
    total = total * shrink + tl.sum(weights, 1)
    if THRESHOLD > 0:
        keep = kept(keys[:, None], columns[None, :].to(tl.uint32), THRESHOLD)
        weights = tl.where(keep, weights, 0.0)
    v = _load_rows(v_base, columns, T, stride, D, DIAGONAL and not EVEN)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
    return acc, higher, total


@triton.jit
def _forward_kernel(
    qkv, out, lse, row_keys, noise, offset, T, H,
    D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr, GAIN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Program (block of rows from the last, sequence and head). SCALE has log2(e) in it, for exp2."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    sequence, head = tl.program_id(1) // H, tl.program_id(1) % H
    stride = 3 * H * D
    base = qkv + sequence.to(tl.int64) * T * stride + head * D
    k_base, v_base = base + H * D, base + 2 * H * D
    rows = first + tl.arange(0, ROWS)
    numbered = sequence_number(noise, sequence) * H + head if THRESHOLD > 0 else 0
    keys = row_key(numbered * T + rows.to(tl.uint32), dropout_key(noise, offset)) if THRESHOLD > 0 else 0
    q = _load_rows(base, rows, T, stride, D, not EVEN)
    acc = tl.zeros((ROWS, D), tl.float32)
    high = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, first, COLUMNS):
        acc, high, total = _attend_block(
            q, k_base, v_base, acc, high, total, rows, start, keys, T, stride,
            D, SCALE, THRESHOLD, COLUMNS, False, EVEN,
        )  # fmt: skip
    for start in range(first, tl.minimum(first + ROWS, T), COLUMNS):
        acc, high, total = _attend_block(
            q, k_base, v_base, acc, high, total, rows, start, keys, T, stride,
            D, SCALE, THRESHOLD, COLUMNS, True, EVEN,
        )  # fmt: skip
    acc *= (GAIN / total)[:, None]
    places = out + (sequence.to(tl.int64) * T + rows[:, None]) * (H * D) + head * D + tl.arange(0, D)[None, :]
    place = tl.program_id(1).to(tl.int64) * T + rows
    if THRESHOLD > 0:
        tl.store(row_keys + place, tl.cast(keys, tl.int32, bitcast=True), mask=rows < T)
    logs = lse + place
    if EVEN:
        tl.store(places, acc.to(out.dtype.element_ty))
        tl.store(logs, high + tl.log2(total))
    else:
        tl.store(places, acc.to(out.dtype.element_ty), mask=rows[:, None] < T)
        tl.store(logs, high + tl.log2(total), mask=rows < T)


@triton.jit
def _load_gradient(out_base, dout_base, lse_base, rows, T, stride, D: tl.constexpr, MASKED: tl.constexpr):
    """Of some rows: dout (rows, D), its product with out summed over D, and lse in base 2."""
    dout = _load_rows(dout_base, rows, T, stride, D, MASKED)
    out = _load_rows(out_base, rows, T, stride, D, MASKED)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    lse = tl.load(lse_base + rows, mask=rows < T, other=0.0) if MASKED else tl.load(lse_base + rows)
    return dout, delta, lse


@triton.jit
def _key_block(
    base, out_base, dout_base, lse_base, key_base, k, v, dk, dv, columns, start, T, stride, width,
    D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr, GAIN: tl.constexpr,
    BLOCK: tl.constexpr, DIAGONAL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What rows start to start + BLOCK add to dk and dv of the columns. Scores are (columns, rows)."""
    rows = start + tl.arange(0, BLOCK)
    q = _load_rows(base, rows, T, stride, D, not EVEN)
    dout, delta, lse = _load_gradient(out_base, dout_base, lse_base, rows, T, width, D, not EVEN)
    weights = tl.exp2(tl.dot(k, tl.trans(q)) * SCALE - lse[None, :])
    if DIAGONAL:
        weights = tl.where(rows[None, :] >= columns[:, None], weights, 0.0)
    dweights = tl.dot(v, tl.trans(dout))
    dropped = weights
    if THRESHOLD > 0:
        keys = tl.load(key_base + rows, mask=rows < T, other=0).to(tl.uint32, bitcast=True)
        keep = kept(keys[None, :], columns[:, None].to(tl.uint32), THRESHOLD)
        dropped = tl.where(keep, weights, 0.0)
        dweights = tl.where(keep, dweights, 0.0) * GAIN
    dv = tl.dot(dropped.to(dout.dtype), dout, dv)
    dscores = weights * (dweights - delta[None, :])
    dk = tl.dot(dscores.to(q.dtype), q, dk)
    return dk, dv


@triton.jit
def _query_block(
    k_base, v_base, q, dout, delta, lse, dq, rows, start, keys, T, stride,
    D: tl.constexpr, SCALE: tl.constexpr, THRESHOLD: tl.constexpr, GAIN: tl.constexpr,
    BLOCK: tl.constexpr, DIAGONAL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What columns start to start + BLOCK add to dq of the rows. Scores are (rows, columns)."""
    columns = start + tl.arange(0, BLOCK)
    k = _load_rows(k_base, columns, T, stride, D, DIAGONAL and not EVEN)
    v = _load_rows(v_base, columns, T, stride, D, DIAGONAL and not EVEN)
    weights = tl.exp2(tl.dot(q, tl.trans(k)) * SCALE - lse[:, None])
    if DIAGONAL:
        weights = tl.where(rows[:, None] >= columns[None, :], weights, 0.0)
    dweights = tl.dot(dout, tl.trans(v))
    if THRESHOLD > 0:
        keep = kept(keys[:, None], columns[None, :].to(tl.uint32), THRESHOLD)
        dweights = tl.where(keep, dweights, 0.0) * GAIN
    dscores = weights * (dweights - delta[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq)


@triton.jit
def _store_rows(base, values, rows, T, stride, D: tl.constexpr, EVEN: tl.constexpr):
    places = base + rows[:, None] * stride + tl.arange(0, D)[None, :]
    if EVEN:
        tl.store(places, values.to(base.dtype.element_ty))
    else:
        tl.store(places, values.to(base.dtype.element_ty), mask=rows[:, None] < T)


@triton.jit
def _backward_kernel(
    dout, qkv, out, lse, row_keys, dqkv, T, H,
    D: tl.constexpr, SCALE: tl.constexpr, ROOT: tl.constexpr, THRESHOLD: tl.constexpr, GAIN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Program (block, sequence and head): dk and dv of the block, then dq; as long for every block.

    SCALE has log2(e) in it, for exp2; ROOT is 1 / sqrt(D).
    """
    first = tl.program_id(0) * ROWS
    sequence, head = tl.program_id(1) // H, tl.program_id(1) % H
    stride, width = 3 * H * D, H * D
    place = sequence.to(tl.int64) * T
    base = qkv + place * stride + head * D
    k_base, v_base = base + width, base + 2 * width
    out_base, dout_base = out + place * width + head * D, dout + place * width + head * D
    lse_base = lse + tl.program_id(1).to(tl.int64) * T
    dbase = dqkv + place * stride + head * D
    block = first + tl.arange(0, ROWS)
    key_base = row_keys + tl.program_id(1).to(tl.int64) * T

    k = _load_rows(k_base, block, T, stride, D, not EVEN)
    v = _load_rows(v_base, block, T, stride, D, not EVEN)
    dk = tl.zeros((ROWS, D), tl.float32)
    dv = tl.zeros((ROWS, D), tl.float32)
    for start in range(first, tl.minimum(first + ROWS, T), COLUMNS):
        dk, dv = _key_block(
            base, out_base, dout_base, lse_base, key_base, k, v, dk, dv, block, start, T, stride, width,
            D, SCALE, THRESHOLD, GAIN, COLUMNS, True, EVEN,
        )  # fmt: skip
    for start in range(first + ROWS, T, COLUMNS):
        dk, dv = _key_block(
            base, out_base, dout_base, lse_base, key_base, k, v, dk, dv, block, start, T, stride, width,
            D, SCALE, THRESHOLD, GAIN, COLUMNS, False, EVEN,
        )  # fmt: skip
    _store_rows(dbase + width, dk * ROOT, block, T, stride, D, EVEN)
    _store_rows(dbase + 2 * width, dv * GAIN, block, T, stride, D, EVEN)

    q = _load_rows(base, block, T, stride, D, not EVEN)
    gradient, delta, logs = _load_gradient(out_base, dout_base, lse_base, block, T, width, D, not EVEN)
    keys = (
        tl.load(key_base + block, mask=block < T, other=0).to(tl.uint32, bitcast=True) if THRESHOLD > 0 else 0
    )
    dq = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, first, COLUMNS):
        dq = _query_block(
            k_base, v_base, q, gradient, delta, logs, dq, block, start, keys, T, stride,
            D, SCALE, THRESHOLD, GAIN, COLUMNS, False, EVEN,
        )  # fmt: skip
    for start in range(first, tl.minimum(first + ROWS, T), COLUMNS):
        dq = _query_block(
            k_base, v_base, q, gradient, delta, logs, dq, block, start, keys, T, stride,
            D, SCALE, THRESHOLD, GAIN, COLUMNS, True, EVEN,
        )  # fmt: skip
    _store_rows(dbase, dq * ROOT, block, T, stride, D, EVEN)


def _launch(
    T: int, D: int, defaults: dict[int, tuple[int, int, int, int]], chosen: list[int]
) -> tuple[int, int, int, int]:
    """(rows, columns, warps, stages): the chosen ones or the defaults, with blocks no larger than T needs."""
    rows, columns, warps, stages = chosen or defaults[D]
    limit = max(SMALLEST_BLOCK, triton.next_power_of_2(T))
    rows = min(rows, limit)
    return rows, min(columns, rows), warps, stages


def _sizes(qkv: Tensor, heads: int) -> tuple[int, int, int]:
    """(B, T, D). ValueError for a layout or a head's width that the kernels do not know."""
    B, T, width = qkv.shape
    D = width // (3 * heads)
    if D not in FORWARD or D * heads * 3 != width:
        raise ValueError(
            f"{width} columns are not q, k and v of {heads} heads with {sorted(FORWARD)} channels"
        )
    if not qkv.is_contiguous():
        raise ValueError("qkv must be contiguous")
    return B, T, D


@custom_op("orch::attention_forward", mutates_args=())
def attention_forward(
    qkv: Tensor,
    heads: int,
    noise: Tensor,
    site: int,
    p: float,
    launch: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out (B, T, C), lse (B, H, T) fp32 in base 2, dropout's keys of the rows (B, H, T) int32).

    `launch` overrides rows, columns, warps, stages.
    """
    B, T, D = _sizes(qkv, heads)
    rows, columns, warps, stages = _launch(T, D, FORWARD, launch or [])
    out = torch.empty((B, T, heads * D), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((B, heads, T), dtype=torch.float32, device=qkv.device)
    keys = torch.empty((B, heads, T if p else 0), dtype=torch.int32, device=qkv.device)
    _forward_kernel[(triton.cdiv(T, rows), B * heads)](
        qkv, out, lse, keys, noise, site_offset(site), T, heads,
        D=D, SCALE=LOG2_E / math.sqrt(D), THRESHOLD=threshold(p), GAIN=1.0 / (1.0 - p),
        ROWS=rows, COLUMNS=columns, EVEN=T % rows == 0, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out, lse, keys


@custom_op("orch::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    keys: Tensor,
    heads: int,
    p: float,
    launch: list[int] | None = None,
) -> Tensor:
    """The gradient (B, T, 3C) with respect to qkv. `launch` overrides rows, columns, warps, stages."""
    B, T, D = _sizes(qkv, heads)
    rows, columns, warps, stages = _launch(T, D, BACKWARD, launch or [])
    dqkv = torch.empty_like(qkv)
    _backward_kernel[(triton.cdiv(T, rows), B * heads)](
        dout, qkv, out, lse, keys, dqkv, T, heads,
        D=D, SCALE=LOG2_E / math.sqrt(D), ROOT=1.0 / math.sqrt(D), THRESHOLD=threshold(p),
        GAIN=1.0 / (1.0 - p), ROWS=rows, COLUMNS=columns, EVEN=T % rows == 0,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return dqkv


@attention_forward.register_fake
def _(
    qkv: Tensor, heads: int, noise: Tensor, site: int, p: float, launch: list[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, D = _sizes(qkv, heads)
    return (
        qkv.new_empty(B, T, heads * D),
        qkv.new_empty((B, heads, T), dtype=torch.float32),
        qkv.new_empty((B, heads, T if p else 0), dtype=torch.int32),
    )


@attention_backward.register_fake
def _(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    keys: Tensor,
    heads: int,
    p: float,
    launch: list[int] | None = None,
) -> Tensor:
    return torch.empty_like(qkv)


class Attention(torch.autograd.Function):
    """`attention` with its gradient. Returns (out, lse, keys); the last two have none."""

    @staticmethod
    def forward(qkv: Tensor, heads: int, noise: Tensor, site: int, p: float) -> tuple[Tensor, Tensor, Tensor]:
        out, lse, keys = torch.ops.orch.attention_forward(qkv, heads, noise, site, p)
        return out, lse, keys

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        qkv, ctx.heads, _, _, ctx.p = inputs
        out, lse, keys = output
        ctx.mark_non_differentiable(lse, keys)
        ctx.save_for_backward(qkv, out, lse, keys)

    @staticmethod
    def backward(ctx: Any, dout: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        with torch.no_grad():  # an operator has no second gradient
            dqkv = torch.ops.orch.attention_backward(dout.contiguous(), *ctx.saved_tensors, ctx.heads, ctx.p)
        return dqkv, None, None, None, None


def attention(qkv: Tensor, heads: int, noise: Tensor, site: int, p: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over earlier positions, (B, T, C) in qkv's type.

    Args:
        qkv: (B, T, 3C), contiguous, bf16 (other floating types work): q, k and v, each H x D; D is 16, 32,
            64 or 128.
        noise, site, p: As in `trainer.dropout.keep_mask`, for weights (B, H, T, T).
    """
    out: Tensor = Attention.apply(qkv, heads, noise, site, p)[0]
    return out
