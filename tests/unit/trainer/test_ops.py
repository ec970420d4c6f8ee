"""Operations that a compiled step does in its own way give what PyTorch's give."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import ops

NOISE = torch.zeros(3, dtype=torch.int32)


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
