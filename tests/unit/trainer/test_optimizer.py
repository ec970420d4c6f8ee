"""The learning-rate schedule at points worked out by hand, and AdamW against its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.support import tiny
from trainer.model import GPT
from trainer.optimizer import AdamW, learning_rate

SCHEDULE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "warmup_steps": 100,
    "max_steps": 2000,
}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-3 / 101),
        (49, 1e-3 * 50 / 101),
        (99, 1e-3 * 100 / 101),
        (100, 1e-3),
        (1050, 5.5e-4),
        (575, 1e-4 + 0.5 * (1 + math.sqrt(0.5)) * 9e-4),
        (2000, 1e-4),
        (2001, 1e-4),
        (9999, 1e-4),
    ],
)
def test_schedule(step: int, expected: float) -> None:
    assert learning_rate(tiny(Path("unused"), **SCHEDULE), step) == pytest.approx(expected, rel=1e-12)


def test_schedule_follows_lr_decay_steps_not_max_steps() -> None:
    config = tiny(Path("unused"), **{**SCHEDULE, "lr_decay_steps": 1000})
    assert learning_rate(config, 1000) == pytest.approx(1e-4)
    assert learning_rate(config, 1500) == 1e-4


def test_schedule_without_decay_is_the_peak() -> None:
    config = tiny(Path("unused"), **SCHEDULE, decay_lr=False)
    assert {learning_rate(config, step) for step in (0, 50, 100, 5000)} == {1e-3}


def test_schedule_without_a_decay_phase() -> None:
    config = tiny(Path("unused"), **{**SCHEDULE, "warmup_steps": 10, "max_steps": 10})
    assert learning_rate(config, 10) == 1e-4


def test_matrices_and_embeddings_decay_and_vectors_do_not() -> None:
    model = GPT(tiny(Path("unused"), bias=True), 20)
    decayed = set(AdamW(model.named_parameters(), tiny(Path("unused"))).decayed())
    expected = {
        name for name, _ in model.named_parameters() if name.endswith(("c_attn.weight", "c_fc.weight"))
    }
    expected |= {name for name, _ in model.named_parameters() if name.endswith("c_proj.weight")}
    assert decayed == expected | {"wte.weight", "wpe.weight"}


def test_updates_follow_the_definition() -> None:
    """Algorithm 2 of "Decoupled Weight Decay Regularization", in double precision."""
    config = tiny(Path("unused"), beta1=0.9, beta2=0.99, weight_decay=0.1)
    matrix = torch.nn.Parameter(torch.tensor([[0.5, -1.0]]))
    vector = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = AdamW([("matrix", matrix), ("vector", vector)], config)
    expected = {"matrix": [0.5, -1.0], "vector": [2.0]}
    m = {name: [0.0] * len(values) for name, values in expected.items()}
    v = {name: [0.0] * len(values) for name, values in expected.items()}
    for t, lr in enumerate((0.1, 0.05, 0.02), start=1):
        gradients = {"matrix": [0.3 * t, -2.0], "vector": [1.0 / t]}
        matrix.grad, vector.grad = torch.tensor([gradients["matrix"]]), torch.tensor(gradients["vector"])
        optimizer.set_rate(lr)
        optimizer.step()
        for name, decay in (("matrix", 0.1), ("vector", 0.0)):
            for i, g in enumerate(gradients[name]):
                m[name][i] = 0.9 * m[name][i] + 0.1 * g
                v[name][i] = 0.99 * v[name][i] + 0.01 * g * g
                unbiased = m[name][i] / (1 - 0.9**t), v[name][i] / (1 - 0.99**t)
                expected[name][i] *= 1 - lr * decay
                expected[name][i] -= lr * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
    assert matrix.tolist()[0] == pytest.approx(expected["matrix"], rel=1e-5)
    assert vector.tolist() == pytest.approx(expected["vector"], rel=1e-5)
    assert matrix.grad is None
