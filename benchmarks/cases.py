"""What is timed: nanoGPT's two character-level configurations, and the figures to reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config import TrainerConfig

Device = Literal["cpu", "cuda"]

LAPTOP: dict[str, Any] = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "block_size": 64,
    "batch_size": 12,
    "dropout": 0.0,
    "max_steps": 2000,
}
"""nanoGPT's README, "I only have a macbook"."""
GPU: dict[str, Any] = {
    "n_layer": 6,
    "n_head": 6,
    "n_embd": 384,
    "block_size": 256,
    "batch_size": 64,
    "dropout": 0.2,
    "max_steps": 5000,
}
"""nanoGPT's config/train_shakespeare_char.py."""
QUIET: dict[str, Any] = {
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "warmup_steps": 100,
    "beta2": 0.99,
    "weight_decay": 0.1,
    "grad_clip": 1.0,
    "log_interval": 10,
    "sample_tokens": 0,
}
"""nanoGPT's hyperparameters in both configurations; nothing but training."""
ENGINE: dict[str, Any] = {"compile": True}
"""How ours is timed: fully compiled."""


def settings(shape: dict[str, Any], device: Device, dtype: str, **more: Any) -> dict[str, Any]:
    """Settings of a run of ours."""
    return {**shape, **QUIET, **ENGINE, "device": device, "dtype": dtype, **more}


def hyperparameters(shape: dict[str, Any]) -> TrainerConfig:
    """The configuration that nanoGPT has to be given as well."""
    return TrainerConfig.model_validate({**shape, **QUIET})


@dataclass(frozen=True)
class Case:
    """Two programs on one configuration, and by which factor ours should be faster."""

    name: str
    device: Device
    shape: dict[str, Any]
    dtype: Literal["float32", "bfloat16"]
    """Of ours. nanoGPT trains in fp32 on a CPU, and in bf16 on a GPU."""
    goals: dict[str, float | None]
    """By peer, ``eager`` or ``compiled``; None: reported without a goal."""
    steps: int
    """Per slice."""
    rounds: int
    warm_up: int
    """Steps before the first slice, compiling included."""
    quick: dict[str, Any] = field(default_factory=dict)
    """What `--quick` has instead; without it the case is left out then."""


CASES = [
    Case(
        "cpu-small-bf16",
        "cpu",
        LAPTOP,
        "bfloat16",
        {"eager": 2.5, "compiled": 2.3},
        steps=20,
        rounds=11,
        warm_up=40,
        quick={"steps": 10, "rounds": 5, "warm_up": 10},
    ),
    Case(
        "cpu-small-fp32",
        "cpu",
        LAPTOP,
        "float32",
        {"eager": 1.3, "compiled": None},
        steps=20,
        rounds=11,
        warm_up=40,
        quick={"steps": 10, "rounds": 5, "warm_up": 10},
    ),
    Case("cpu-large-bf16", "cpu", GPU, "bfloat16", {"eager": 3.0}, steps=1, rounds=3, warm_up=2),
    Case("cpu-large-fp32", "cpu", GPU, "float32", {"eager": None}, steps=1, rounds=3, warm_up=2),
    Case(
        "cuda-small",
        "cuda",
        LAPTOP,
        "bfloat16",
        {"eager": 26.0, "compiled": 18.0},
        steps=200,
        rounds=11,
        warm_up=100,
        quick={"steps": 100, "rounds": 5},
    ),
    Case(
        "cuda-large",
        "cuda",
        GPU,
        "bfloat16",
        {"eager": 4.3, "compiled": 3.5},
        steps=50,
        rounds=9,
        warm_up=30,
        quick={"steps": 30, "rounds": 5},
    ),
]
"""Time per step: the larger configuration takes seconds per step on a CPU."""
