"""The model is the one that nanoGPT trains: shapes, number of parameters, first weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.unit.trainer.support import tiny
from trainer.flops import flops_per_step
from trainer.model import GPT

V = 65


def parameters_in_closed_form(L: int, C: int, T: int, bias: bool) -> int:
    matrices = L * 12 * C * C + (V + T) * C
    norms = (2 * L + 1) * C
    biases = L * (3 * C + C + 4 * C + C) + norms if bias else 0
    return matrices + norms + biases


@pytest.mark.parametrize("bias", [False, True])
def test_parameter_count(bias: bool) -> None:
    config = tiny(Path("unused"), n_layer=3, n_head=4, n_embd=32, block_size=16, bias=bias)
    model = GPT(config, V)
    assert model.parameter_count() == parameters_in_closed_form(3, 32, 16, bias)
    assert model.parameter_count(positions=False) == model.parameter_count() - 16 * 32


def test_the_laptop_configuration_has_the_published_size() -> None:
    model = GPT(tiny(Path("unused"), n_layer=4, n_head=4, n_embd=128, block_size=64), V)
    assert model.parameter_count(positions=False) == 795_904  # nanoGPT prints 0.80M


def test_shapes_and_first_loss() -> None:
    model = GPT(tiny(Path("unused"), block_size=8, dropout=0.0), V)
    tokens = torch.arange(24).view(3, 8)
    logits, loss = model(tokens, tokens + 30)
    assert logits.shape == (3, 8, V)
    assert loss is not None
    assert loss.item() == pytest.approx(math.log(V), abs=0.1)
    last, nothing = model(tokens)
    assert nothing is None
    assert torch.allclose(last[:, 0], logits[:, -1], atol=1e-6)


def test_initial_weights_have_the_published_spread() -> None:
    model = GPT(tiny(Path("unused"), n_layer=8, n_head=4, n_embd=64, block_size=64, bias=True), V, seed=3)
    for name, parameter in model.named_parameters():
        std, mean = parameter.std().item(), parameter.mean().item()
        if name.endswith("c_proj.weight"):
            assert std == pytest.approx(0.02 / math.sqrt(16), rel=0.05), name
        elif parameter.dim() == 2:
            assert std == pytest.approx(0.02, rel=0.05), name
            assert abs(mean) < 0.002, name
        else:
            assert std == 0.0, name
            assert mean == (1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0), name


def test_the_seed_decides_the_weights() -> None:
    config = tiny(Path("unused"))
    first, again, other = (GPT(config, V, seed).wte.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_position_sees_a_later_one() -> None:
    model = GPT(tiny(Path("unused"), dropout=0.0), V)
    tokens = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % V
    before, after = model(tokens, tokens)[0], model(changed, tokens)[0]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_attention_is_the_textbook_formula() -> None:
    config = tiny(Path("unused"), n_head=2, n_embd=16, dropout=0.0)
    attention = GPT(config, V, seed=1).h[0].attn
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    q, k, v = (part.view(2, 8, 2, 8).transpose(1, 2) for part in attention.c_attn(x).split(16, dim=2))
    scores = (q @ k.transpose(-2, -1) / math.sqrt(8)).masked_fill(torch.ones(8, 8).triu(1) == 1, -torch.inf)
    expected = F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 8, 16), attention.c_proj.weight)
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_bf16_on_a_cpu_stays_near_fp32() -> None:
    model = GPT(tiny(Path("unused"), dropout=0.0), V)
    tokens = torch.arange(32).view(4, 8)
    exact = model(tokens, tokens)[1]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens, tokens)[1]
    assert exact is not None
    assert rounded is not None
    assert rounded.item() == pytest.approx(exact.item(), rel=5e-3)


def test_dropout_only_while_training() -> None:
    model = GPT(tiny(Path("unused"), dropout=0.5), V)
    tokens = torch.arange(8).view(1, 8)
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_flops_of_a_step() -> None:
    config = tiny(Path("unused"), n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12)
    expected = (6 * 795_904 + 12 * 4 * 4 * 32 * 64) * 64 * 12
    assert flops_per_step(config, 795_904) == expected
