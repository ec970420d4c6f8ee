"""The Triton kernels against plain PyTorch: on a GPU, or anywhere with TRITON_INTERPRET=1 and triton."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels import difference, dropped, plain_attention, plain_norm

pytest.importorskip("triton", reason="triton comes with CUDA builds of PyTorch")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

# Triton's interpreter takes numbers out of NumPy arrays in a way that NumPy will give up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:triton")

kernels: Any = importlib.import_module("trainer.kernels")
DEVICE = "cpu" if INTERPRETED else "cuda"
P = 0.2
HALF = torch.float16 if INTERPRETED else torch.bfloat16
"""The interpreter has no products of bf16."""


def noise(first: int = 0, distance: int = 1) -> Tensor:
    return torch.tensor([-1234567891, first, distance], dtype=torch.int32, device=DEVICE)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest expected value."""
    assert found.shape == expected.shape
    assert difference(found, expected) < tolerance


def tolerance(dtype: torch.dtype) -> float:
    """fp32 products on a GPU are done in TF32."""
    if dtype == HALF:
        return 2e-2
    return 2e-5 if INTERPRETED else 5e-3


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize(
    ("B", "T", "H", "D", "dtype"),
    [
        (2, 64, 2, 32, torch.float32),
        (1, 160, 3, 16, torch.float32),  # T no multiple of the blocks
        (1, 256, 1, 64, HALF),
        (1, 40, 1, 128, torch.float32),
    ],
)
def test_attention_and_its_gradient(B: int, T: int, H: int, D: int, dtype: torch.dtype, p: float) -> None:
    qkv, dout = normal(B, T, 3 * H * D, dtype=dtype), normal(B, T, H * D, seed=1, dtype=dtype)
    step = noise(first=1, distance=2)
    ours, plain = (x.detach().requires_grad_() for x in (qkv, qkv.float()))
    found, expected = kernels.attention(ours, H, step, 7, p), plain_attention(plain, H, step, 7, p)
    (dfound,) = torch.autograd.grad(found, ours, dout)
    (dexpected,) = torch.autograd.grad(expected, plain, dout.float())
    assert found.dtype == dfound.dtype == dtype
    assert_near(found, expected, tolerance(dtype))
    assert_near(dfound, dexpected, tolerance(dtype))


@pytest.mark.parametrize("blocks", [[16, 16, 4, 2], [32, 16, 4, 2], [64, 64, 4, 2]])
def test_attention_with_other_blocks(blocks: list[int]) -> None:
    qkv, dout, step = normal(1, 64, 3 * 32), normal(1, 64, 32, seed=1), noise()
    plain = qkv.detach().requires_grad_()
    expected = plain_attention(plain, 2, step, 3, P)
    (dexpected,) = torch.autograd.grad(expected, plain, dout)
    out, lse, keys = torch.ops.orch.attention_forward(qkv, 2, step, 3, P, blocks)
    dqkv = torch.ops.orch.attention_backward(dout, qkv, out, lse, keys, 2, P, blocks)
    assert_near(out, expected, tolerance(torch.float32))
    assert_near(dqkv, dexpected, tolerance(torch.float32))


def test_attention_of_two_ranks_is_that_of_one() -> None:
    qkv = normal(4, 32, 3 * 32)
    whole = kernels.attention(qkv, 2, noise(), 5, P)
    for rank in range(2):
        part = kernels.attention(qkv[rank::2].contiguous(), 2, noise(rank, 2), 5, P)
        assert torch.equal(part, whole[rank::2])


def test_attention_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="not q, k and v"):
        kernels.attention(normal(1, 16, 3 * 24), 1, noise(), 1, 0.0)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.attention(normal(16, 1, 3 * 16).transpose(0, 1).expand(2, 16, 48), 1, noise(), 1, 0.0)


@pytest.mark.parametrize("p", [0.0, 0.6])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    ("C", "weighted", "biased"), [(384, True, False), (64, True, True), (72, False, False)]
)
def test_residual_norm_and_its_gradient(
    C: int, weighted: bool, biased: bool, centred: bool, p: float
) -> None:
    B, T, step = 3, 13, noise(first=1, distance=3)
    inputs = {"h": 3 * normal(B, T, C) + 1, "z": normal(B, T, C, seed=1)}
    inputs |= {"weight": 1 + normal(C, seed=2) / 5} if weighted else {}
    inputs |= {"bias": normal(C, seed=3)} if biased else {}
    dh2, da = normal(B, T, C, seed=4), normal(B, T, C, seed=5)

    def gradients(which: str) -> list[Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        weight, bias = leaves.get("weight"), leaves.get("bias")
        if which == "ours":
            h2, a = kernels.residual_norm(leaves["h"], leaves["z"], weight, bias, step, 9, p, centred)
        else:
            h2 = leaves["h"] + dropped(leaves["z"], step, 9, p)
            a = plain_norm(h2, weight, bias, centred)
        return [h2, a, *torch.autograd.grad((h2, a), list(leaves.values()), (dh2, da))]

    for found, expected in zip(gradients("ours"), gradients("plain"), strict=True):
        assert_near(found, expected, 1e-5)


def test_programs_of_several_turns_give_the_same_gradients() -> None:
    h2, da, weight, step = normal(2, 13, 48), normal(2, 13, 48, seed=1), normal(48, seed=2), noise()
    _, _, mean, rstd = torch.ops.orch.norm_forward(h2, None, weight, None, step, 0, 0.0, True, h2.dtype)
    few, many = (
        torch.ops.orch.norm_backward(
            da, h2, h2, weight, mean, rstd, step, 4, P, True, True, True, [2, 4, programs]
        )
        for programs in (3, 64)
    )
    for found, expected in zip(few, many, strict=True):
        assert_near(found, expected, 1e-5)


def test_sums_of_more_rows_than_one_turn_takes() -> None:
    parts = normal(600, 40)
    found = importlib.import_module("trainer.kernels.norm")._summed(parts)
    assert_near(found, parts.sum(0), 1e-5)


@pytest.mark.parametrize("centred", [True, False])
def test_norm_without_a_residual(centred: bool) -> None:
    h, weight, da = normal(2, 8, 48), 1 + normal(48, seed=1) / 5, normal(2, 8, 48, seed=2)
    leaves = [x.detach().requires_grad_() for x in (h, weight)]
    found = kernels.norm(leaves[0], leaves[1], None, noise(), centred, torch.float32)
    expected = plain_norm(leaves[0], leaves[1], None, centred)
    assert_near(found, expected, 1e-5)
    for ours, plain in zip(
        torch.autograd.grad(found, leaves, da), torch.autograd.grad(expected, leaves, da), strict=True
    ):
        assert_near(ours, plain, 1e-5)


def test_residual_norm_in_bf16_keeps_the_stream_in_fp32() -> None:
    h, z = normal(2, 16, 64), normal(2, 16, 64, seed=1, dtype=torch.bfloat16)
    h2, a = kernels.residual_norm(h, z, torch.ones(64, device=DEVICE), None, noise(), 2, P)
    assert (h2.dtype, a.dtype) == (torch.float32, torch.bfloat16)
    assert_near(h2, h + dropped(z.float(), noise(), 2, P), 1e-6)
    assert_near(a, plain_norm(h2, None, None, True), 2e-2)


def test_a_stream_that_nothing_follows_needs_no_gradient() -> None:
    h, z = normal(1, 8, 32).requires_grad_(), normal(1, 8, 32, seed=1)
    _, a = kernels.residual_norm(h, z, None, None, noise(), 2, 0.0)
    plain = plain_norm(h + z, None, None, True)
    da = normal(1, 8, 32, seed=2)
    assert_near(torch.autograd.grad(a, h, da)[0], torch.autograd.grad(plain, h, da)[0], 1e-5)


def test_gradients_under_torch_func() -> None:
    weight, step = torch.ones(32, device=DEVICE), noise()

    def loss(qkv: Tensor, weight: Tensor, ours: bool) -> Tensor:
        if ours:
            z = kernels.attention(qkv, 2, step, 1, P)
            h2, a = kernels.residual_norm(z, z, weight, None, step, 2, P)
        else:
            z = plain_attention(qkv, 2, step, 1, P)
            h2 = z + dropped(z, step, 2, P)
            a = plain_norm(h2, weight, None, True)
        total: Tensor = (h2 * a.sin()).sum()
        return total

    qkv = normal(2, 16, 96)
    gradients = [torch.func.grad(loss, argnums=(0, 1))(qkv, weight, ours) for ours in (True, False)]
    for found, expected in zip(*gradients, strict=True):
        assert_near(found, expected, 20 * tolerance(torch.float32))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("B", "T", "C"), [(2, 16, 32), (3, 13, 48)])
def test_mlp_and_its_gradient(B: int, T: int, C: int, squared: bool) -> None:
    inputs = [2 * normal(B, T, C), normal(4 * C, C, seed=1) / C**0.5, normal(C, 4 * C, seed=2) / C**0.5]
    dz = normal(B, T, C, seed=3)

    def gradients(ours: bool) -> list[Tensor]:
        x, first, second = (tensor.detach().requires_grad_() for tensor in inputs)
        if ours:
            z = kernels.mlp(x, first, second, squared)
        else:
            u = F.linear(x, first)
            z = F.linear(F.relu(u).square() if squared else F.gelu(u), second)
        return [z, *torch.autograd.grad(z, (x, first, second), dz)]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert_near(found, expected, tolerance(torch.float32))


def test_gelu_is_exact() -> None:
    """Also far from zero, where the product with a probability near zero is left."""
    x = torch.linspace(-8, 8, 1024, device=DEVICE).reshape(64, 16)
    eye = torch.eye(16, device=DEVICE)
    pre, u = torch.ops.orch.mlp_forward(x, eye, False)
    assert (u - F.gelu(pre.double())).abs().max() < 1e-6
    leaf = pre.double().requires_grad_()
    (slope,) = torch.autograd.grad(F.gelu(leaf).sum(), leaf)
    found = torch.ops.orch.mlp_backward(torch.ones(64, 16, device=DEVICE), eye, pre, False)
    assert (found - slope).abs().max() < 1e-6


def test_mlp_refuses_odd_widths() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        kernels.mlp(normal(1, 4, 24), normal(96, 24), normal(24, 96))
