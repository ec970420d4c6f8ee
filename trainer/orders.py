"""What is to be compiled, by which it is kept, and the programs before they are compiled."""

from __future__ import annotations

import hashlib
import importlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from trainer import processor
from trainer.config import TrainerConfig
from trainer.flat import Buffers, Layout
from trainer.model_fast import build_model
from trainer.muon import MuonAdamW, build_optimizer
from trainer.programs import (
    NEVER,
    RATES,
    TAIL,
    Part,
    Program,
    destinations,
    gradient_program,
    update_program,
)

_FORMAT = 3
_SETTINGS = (
    "recipe",
    "ngrams",
    "n_layer",
    "n_head",
    "n_embd",
    "block_size",
    "dropout",
    "bias",
    "beta1",
    "beta2",
    "weight_decay",
    "grad_clip",
)
"""Settings that are part of a program. It is made from a configuration that has only these."""
_SOURCES = (
    "compiling",
    "dropout",
    "flat",
    "in_process",
    "library",
    "model",
    "model_fast",
    "muon",
    "ops",
    "orders",
    "programs",
)


class Order(BaseModel):
    """What is to be compiled."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    vocab_size: int
    tokens: str
    """Type of the tokens."""
    length: int
    """Number of the tokens to train on: places are checked against it."""
    device: str
    dtype: str
    part: Part
    rows: int
    """Gradients that the update sums."""
    kernels: bool
    """Whether to use our own kernels for GPUs."""
    threads: int
    """Of the update on a CPU; a gradient is computed by one."""
    machine: str
    """What the compiler compiles for."""
    versions: str
    """PyTorch's version, and a hash of our own code."""

    @property
    def key(self) -> str:
        """A name for the entry."""
        return hashlib.sha256(f"{_FORMAT} {self.model_dump_json()}".encode()).hexdigest()[:32]


def settings_of(config: TrainerConfig) -> dict[str, Any]:
    """The settings that programs depend on."""
    return {name: getattr(config, name) for name in _SETTINGS}


def machine(device: torch.device, name: str) -> str:
    """What decides whether a library made on one machine runs on another."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{name} sm_{major}{minor}"
    features = hashlib.sha256(" ".join(sorted(processor.flags())).encode()).hexdigest()[:8]
    return f"{name} {torch.backends.cpu.get_cpu_capability()} {features} {' '.join(platform.libc_ver())}"


@cache
def versions() -> str:
    """Of what the compiled code follows from."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in (*(here / f"{name}.py" for name in _SOURCES), *sorted((here / "kernels").glob("*.py"))):
        digest.update(source.read_bytes())
    return f"torch {torch.__version__}, {digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class Programs:
    """The two programs of an order; both take tensors and change them."""

    gradient: Callable[..., object]
    update: Callable[..., object]


@dataclass(frozen=True)
class Sources:
    """The programs before they are compiled, each with tensors like those that it will be given."""

    gradient: Program
    gradient_arguments: tuple[Tensor, ...]
    update: Program
    update_arguments: tuple[Tensor, ...]
    layout: Layout
    """Of the weights and the gradient."""
    row: Tensor
    """(P + TAIL,): what the gradient's program writes, whole."""

    @classmethod
    def of(cls, order: Order) -> Sources:
        device, dtype = torch.device(order.device), getattr(torch, order.dtype)
        config = TrainerConfig.model_validate(order.settings)
        model = build_model(config, order.vocab_size).to(device)
        optimizer = build_optimizer(model.named_parameters(), config)
        buffers = Buffers(model, optimizer)
        layout = buffers.layout
        kernels = importlib.import_module("trainer.kernels") if order.kernels else None  # needs triton
        plan = optimizer.plan if isinstance(optimizer, MuonAdamW) else None
        row = torch.zeros(layout.size + TAIL, device=device)
        tokens = torch.empty(order.length, dtype=getattr(torch, order.tokens), device=device)
        tokens[: config.block_size + 1] = 0
        return cls(
            gradient_program(model, layout, config, order.part, dtype, kernels),
            (
                buffers.weights,
                tokens,
                torch.zeros(order.part.sequences, dtype=torch.int64, device=device),
                torch.zeros(3, dtype=torch.int32, device=device),
                torch.zeros(1, device=device),
                *destinations(layout, row),
            ),
            update_program(layout, config, plan),
            (
                buffers.weights,
                torch.zeros(order.rows, len(row), device=device),
                buffers.first,
                buffers.second,
                torch.full((RATES,), 0.5, device=device),
                torch.zeros(1, dtype=torch.int64, device=device),
                torch.full((), NEVER, device=device),
                torch.zeros(2, device=device),
            ),
            layout,
            row,
        )
