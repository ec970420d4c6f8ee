"""AdamW with nanoGPT's parameter groups, and its learning-rate schedule.

The update itself is PyTorch's. The `torch.optim.AdamW` class is not used: creating one imports the compiler
(about a second of start-up), and its state is keyed by position instead of by parameter name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trainer.config import TrainerConfig

_EPSILON = 1e-8
_FUSED_DEVICES = ("cpu", "cuda")


def learning_rate(config: TrainerConfig, step: int) -> float:
    """The rate of the update that leads from `step` to `step` + 1; by default nanoGPT's warm-up and cosine.

    Below `warmup_steps` it is `peak * (step + 1) / (warmup_steps + 1)`; then half a cosine, or by
    `lr_schedule` a straight line, down to `min_lr` at `lr_decay_steps`, and `min_lr` after it. Without
    `decay_lr` it is the peak throughout.
    """
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if step > config.decay_steps:
        return config.min_lr
    span = config.decay_steps - config.warmup_steps
    progress = (step - config.warmup_steps) / span if span else 1.0
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.lr_schedule == "cosine" else 1.0 - progress
    return config.min_lr + left * (config.learning_rate - config.min_lr)


@dataclass(frozen=True)
class _Group:
    names: list[str]
    parameters: list[Tensor]
    weight_decay: float

    @classmethod
    def of(cls, named: Mapping[str, nn.Parameter], weight_decay: float) -> _Group:
        return cls(list(named), list(named.values()), weight_decay)


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter, 2019). Matrices and embeddings decay, vectors do not.

    `exp_avg` and `exp_avg_sq` hold the moments by parameter name.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainerConfig) -> None:
        named = dict(named_parameters)
        self._betas = (config.beta1, config.beta2)
        self._groups = [
            _Group.of({name: p for name, p in named.items() if p.dim() >= 2}, config.weight_decay),
            _Group.of({name: p for name, p in named.items() if p.dim() < 2}, 0.0),
        ]
        self._fused = all(p.device.type in _FUSED_DEVICES for p in named.values())
        self.exp_avg = {name: torch.zeros_like(p) for name, p in named.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in named.items()}
        self._steps = {name: torch.zeros((), device=p.device) for name, p in named.items()}
        self._lr: float | Tensor = config.learning_rate
        self._on_gpu = all(p.device.type == "cuda" for p in named.values())
        if self._on_gpu:  # where a recorded update can read it
            self._lr = torch.zeros((), device=next(iter(named.values())).device)

    def set_rate(self, lr: float) -> None:
        """The learning rate of the updates that follow."""
        if isinstance(self._lr, Tensor):
            self._lr.fill_(lr)
        else:
            self._lr = lr

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients, then drop them."""
        for group in self._groups:
            if not group.parameters:
                continue
            adamw(
                group.parameters,
                [p.grad for p in group.parameters if p.grad is not None],
                [self.exp_avg[name] for name in group.names],
                [self.exp_avg_sq[name] for name in group.names],
                [],
                [self._steps[name] for name in group.names],
                fused=self._fused,
                capturable=self._on_gpu,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=self._lr,
                weight_decay=group.weight_decay,
                eps=_EPSILON,
                maximize=False,
            )
            for parameter in group.parameters:
                parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The moments as `exp_avg.NAME` and `exp_avg_sq.NAME`."""
        moments = {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
        return moments | {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}

    def resume_at(self, step: int) -> None:
        """Go on after `step` updates, with the moments that were copied into :meth:`state`."""
        for count in self._steps.values():
            count.fill_(step)

    def decayed(self) -> list[str]:
        """Names of the parameters that decay."""
        return list(self._groups[0].names)
