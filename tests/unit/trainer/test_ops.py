"""Operations that a compiled step does in its own way give what PyTorch's give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import ops
from trainer.dropout import keep_mask, stored

NOISE = torch.zeros(3, dtype=torch.int32)
B, T, H, D = 2, 150, 3, 8
"""Two whole blocks of queries and a part of one."""


def gelu_inside(x: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the derivative at x."""
    x = x.clone().requires_grad_()
    with ops.inside(ops.Inside(NOISE)):
        y = ops.gelu(x)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return y.detach(), x.grad


def test_gelu_is_exact_to_the_precision_of_fp32() -> None:
    x = torch.linspace(-12.0, 12.0, 100_001)
    wide = x.double().requires_grad_()
    F.gelu(wide).sum().backward()  # type: ignore[no-untyped-call]
    assert wide.grad is not None
    y, slope = gelu_inside(x)
    torch.testing.assert_close(y.double(), F.gelu(wide).detach(), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(slope.double(), wide.grad, rtol=0.0, atol=1e-6)


def test_gelu_of_bf16_is_rounded_once() -> None:
    x = torch.linspace(-6.0, 6.0, 10_001).bfloat16()
    y, slope = gelu_inside(x)
    assert y.dtype == slope.dtype == torch.bfloat16
    assert torch.equal(y, gelu_inside(x.float())[0].bfloat16())
    assert torch.equal(slope, gelu_inside(x.float())[1].bfloat16())


def test_gelu_outside_is_pytorchs() -> None:
    x = torch.linspace(-6.0, 6.0, 101)
    assert torch.equal(ops.gelu(x), F.gelu(x))


def plain_attention(heads: Tensor, p: float) -> Tensor:
    """All products whole, by the mask of the first place with dropout."""
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = (q @ k.mT / D**0.5).masked_fill(later, -torch.inf).softmax(-1)
    if p:
        weights = torch.where(keep_mask(weights.shape, NOISE, 1, p), weights / (1.0 - p), 0.0)
    return (weights @ v).transpose(1, 2).reshape(B, T, H * D)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_in_blocks_of_queries_is_attention(p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(B, T, 3, H, D, generator=generator, requires_grad=True)
    toward = torch.randn(B, T, H * D, generator=generator)
    with ops.inside(ops.Inside(NOISE)):
        found = ops.self_attention(heads, p)
    expected = plain_attention(heads, p)
    torch.testing.assert_close(found, expected)
    (ours,) = torch.autograd.grad(found, heads, toward)
    (theirs,) = torch.autograd.grad(expected, heads, toward)
    torch.testing.assert_close(ours, theirs)


def test_what_is_stored_is_what_was_given() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    for given in (x, x.transpose(0, 2), x[:, 1:]):
        assert torch.equal(stored(given), given)
