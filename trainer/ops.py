"""The operations of the models that a compiled step does in its own way.

Outside a compiled step they are PyTorch's. Inside (see :class:`Inside`), while it is traced:

==============  ==========================================================================================
dropout         masks are a hash of (seed, step, place), see :mod:`trainer.dropout`: the same on every device
                and however a batch is split
attention       on a GPU a kernel of our own where it is installed, see :mod:`trainer.kernels`; on a CPU plain
                matrix products, because the backward of PyTorch's bf16 kernel is slow there
add_norm, mlp   on a GPU kernels of our own: residual, dropout and norm in one, activation within a product
embedding       the gradient of a small table is a matrix product with one-hot rows: atomic additions to few
                rows are slow, and their order differs from run to run; filled up as logits on a GPU
gelu            on a CPU with its derivative computed in the forward pass
logits          on a GPU with the vocabulary filled up to a multiple of 8, which its matrix units want
==============  ==========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.dropout import keep_mask, stored

_ONE_HOT_ROWS = 1024
"""Largest table whose gradient is a matrix product."""
_MULTIPLE = 8
"""Of rows and columns that a GPU's matrix units want."""
_QUERIES = 64
"""Of attention on a CPU that are computed at once."""
_EPSILON = 1e-5
_ERF_SCALE = 0.3275911
_ERF_SERIES = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_NORMAL_PEAK = 1.0 / math.sqrt(2.0 * math.pi)


class Inside:
    """What the operations need to know inside a compiled step.

    `noise` is an int32 tensor (3,): the step's seed for dropout, and which sequences of the whole batch these
    are: the first one's number, and the distance between two. `dtype` is that of matrix products.
    """

    def __init__(self, noise: Tensor, dtype: torch.dtype = torch.float32, kernels: Any = None) -> None:
        self.noise = noise
        self.dtype = dtype
        self.kernels = kernels
        self._sites = 0

    def site(self) -> int:
        """The number of the next place with dropout."""
        self._sites += 1
        return self._sites


_inside: list[Inside] = []


@contextmanager
def inside(step: Inside) -> Iterator[None]:
    """Have the operations do what a compiled step does."""
    _inside.append(step)
    try:
        yield
    finally:
        _inside.pop()


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of x (B, ...) with probability `p`, in training only."""
    if not _inside or not training or not p:
        return F.dropout(x, p, training)
    return _hashed(x, p, _inside[-1])


def _hashed(x: Tensor, p: float, step: Inside) -> Tensor:
    return torch.where(keep_mask(x.shape, step.noise, step.site(), p), x / (1.0 - p), 0.0).to(x.dtype)


def add_norm(
    x: Tensor, z: Tensor | None, weight: Tensor | None, bias: Tensor | None, p: float, *, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """x + dropout(z), and that normalised over C: by layer norm, or if not `centred` by its root mean square.

    x and z are (B, T, C); without z, x itself is normalised. Epsilon is 1e-5.
    """
    if _inside and (kernels := _inside[-1].kernels) is not None and x.dtype == torch.float32:
        step = _inside[-1]
        if z is None:
            return x, kernels.norm(x, weight, bias, step.noise, centred)
        if z.dtype == torch.bfloat16:
            site = step.site()
            pair: tuple[Tensor, Tensor] = kernels.residual_norm(
                x.contiguous(), z.contiguous(), weight, bias, step.noise, site, p, centred
            )
            return pair
    if z is not None:
        x = x + dropout(z, p, True)
    if centred:
        return x, F.layer_norm(x, x.shape[-1:], weight, bias, _EPSILON)
    return x, F.rms_norm(x, x.shape[-1:], weight, _EPSILON)


def mlp(x: Tensor, first: Tensor, second: Tensor, *, squared: bool) -> Tensor:
    """f(x first^T) second^T; x (…, C), first (F, C), second (C, F); f is the exact GELU or squared ReLU."""
    if _inside and (kernels := _inside[-1].kernels) is not None and first.dtype == torch.bfloat16:
        y: Tensor = kernels.mlp(x.to(first.dtype), first, second, squared)
        return y
    hidden = F.linear(x, first)
    return F.linear(F.relu(hidden).square() if squared else gelu(hidden), second)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, x Phi(x)."""
    if not _inside or x.device.type != "cpu":
        return F.gelu(x)
    y: Tensor = _Gelu.apply(x)[0]  # type: ignore[no-untyped-call]
    return y


def embedding(rows: Tensor, table: Tensor) -> Tensor:
    """The rows (…) of a table (R, C), (…, C)."""
    if not _inside or table.shape[0] > _ONE_HOT_ROWS:
        return F.embedding(rows, table)
    found: Tensor = _Embedding.apply(rows, table, _inside[-1].dtype)  # type: ignore[no-untyped-call]
    return found


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, C) times the transpose of weight (V, C)."""
    V = weight.shape[0]
    if not _inside or x.device.type != "cuda" or V % _MULTIPLE == 0:
        return F.linear(x, weight)
    return F.linear(x, F.pad(weight, (0, 0, 0, -V % _MULTIPLE)))[..., :V]


def self_attention(heads: Tensor, p: float) -> Tensor:
    """Causal attention of (B, T, 3, head, D), queries, keys and values, with dropout `p`: (B, T, C)."""
    B, T, _, H, D = heads.shape
    if _inside and (kernels := _inside[-1].kernels) is not None and heads.dtype == torch.bfloat16:
        step = _inside[-1]
        y: Tensor = kernels.attention(heads.reshape(B, T, 3 * H * D), H, step.noise, step.site(), p)
        return y
    heads = heads.permute(2, 0, 3, 1, 4)  # (3, B, head, T, D)
    if _inside and heads.device.type == "cpu":
        heads = heads.contiguous()  # once for all products
    q, k, v = heads.unbind()
    return attention(q, k, v, p)


def attention(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over earlier positions, with dropout `p` on the softmax: (B, T, C).

    All are (B, head, T, D).
    """
    B, H, T, D = q.shape
    if _inside and q.device.type == "cpu":
        y = _attend_by_products(q, k, v, p)
    elif q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # The CPU kernel's bf16 backward is several times slower than the fp32 one.
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), dropout_p=p, is_causal=True)
    else:
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, H * D)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """In blocks of queries, each with the keys up to its end: later ones count for nothing."""
    T = q.shape[-2]
    kept = keep_mask((*q.shape[:-1], T), _inside[-1].noise, _inside[-1].site(), p) if p else None
    found = []
    for begin in range(0, T, _QUERIES):
        end = min(begin + _QUERIES, T)
        mask = None if kept is None else kept[..., begin:end, :end]
        found.append(_attend_from(begin, q[..., begin:end, :], k[..., :end, :], v[..., :end, :], mask, p))
    return found[0] if len(found) == 1 else torch.cat(found, -2)


def _attend_from(begin: int, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None, p: float) -> Tensor:
    """Of the queries from number `begin` on."""
    scores = (q @ k.mT).float() * (1.0 / math.sqrt(q.shape[-1]))  # (B, head, queries, keys)
    keys = torch.arange(k.shape[-2], dtype=torch.int32, device=q.device)
    queries = keys[begin:, None]
    weights = scores.masked_fill(queries < keys, -torch.inf).softmax(-1)
    if kept is not None:
        weights = torch.where(kept, weights * (1.0 / (1.0 - p)), 0.0)
    return weights.to(v.dtype) @ v


class _Gelu(torch.autograd.Function):
    """GELU with its derivative Phi(x) + x phi(x) computed beside it: both need exp(-x^2 / 2), and a backward
    pass of its own would compute that twice more.

    The error function is Abramowitz and Stegun's 7.1.26, as in PyTorch's vectorised kernels: within 1.5e-7.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float()
        z = wide.abs() * math.sqrt(0.5)
        t = 1.0 / (1.0 + _ERF_SCALE * z)
        series = torch.zeros_like(t)
        for coefficient in _ERF_SERIES:
            series = (series + coefficient) * t
        bell = torch.exp(-z * z)
        half = 0.5 * series * bell  # Phi(-|x|)
        share = torch.where(wide < 0, half, 1.0 - half)  # Phi(x)
        slope = share + wide * bell * _NORMAL_PEAK
        return (wide * share).to(x.dtype), stored(slope.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        gradient: Tensor = gradients[0] * slope
        return gradient


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(rows, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype], output: Tensor) -> None:
        rows, table, ctx.dtype = inputs
        ctx.save_for_backward(rows)
        ctx.size = table.shape[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (rows,) = ctx.saved_tensors
        (gradient,) = gradients
        flat = gradient.reshape(-1, gradient.shape[-1]).to(ctx.dtype)
        filled = ctx.size + (-ctx.size % _MULTIPLE if rows.device.type == "cuda" else 0)
        places = torch.arange(filled, device=rows.device)
        one_hot = (rows.reshape(-1, 1) == places).to(flat.dtype)  # (rows, R)
        return None, (one_hot.T @ flat)[: ctx.size].to(gradient.dtype), None
