"""The optimizer of ``recipe: fast``: Muon for the blocks' matrices, AdamW for everything else.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces a matrix's momentum by roughly the
nearest matrix whose singular values are all 1, found by a few steps of a Newton-Schulz iteration.
:func:`muon_update` is plain tensor arithmetic without decisions on values, so that it can be part of a
compiled step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trainer.config import TrainerConfig
from trainer.optimizer import AdamW, learning_rate

EPSILON = 1e-8
"""AdamW's."""
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)
"""Of each step's a s + b s^3 + c s^5, applied to singular values: the first three of Polar Express (Amsel et
al., 2025, arXiv 2505.16932). The loss is as low as after Jordan's five, for three fifths of the work."""
_NORM_MARGIN = 1.01
_NORM_FLOOR = 1e-7
_MOMENTUM_START = 0.85
_MOMENTUM_STEPS = 100


@dataclass(frozen=True)
class Plan:
    """How the parameters of the fast model are trained, by name."""

    muon: tuple[str, ...]
    """Matrices of the blocks."""
    adamw: tuple[str, ...]
    """Embeddings, the head and vectors."""
    parts: Mapping[str, int]
    """For each name in `muon`, of how many matrices above each other it consists: c_attn holds 3."""
    decayed: tuple[str, ...]
    """Names, of either kind, whose weights decay."""

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Plan:
        """The plan for parameters of these names and shapes."""
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        muon = tuple(name for name in matrices if name.startswith("h."))
        parts = {name: 3 if name.endswith("c_attn.weight") else 1 for name in muon}
        rest = tuple(name for name in shapes if name not in parts)
        return cls(muon, rest, parts, tuple(matrices))


class Rates(NamedTuple):
    """What changes from step to step."""

    adamw: float
    """Learning rate of AdamW."""
    muon: float
    """Learning rate of Muon."""
    momentum: float
    """Of Muon."""


def rates(config: TrainerConfig, step: int) -> Rates:
    """Those of the update that leads from `step` to `step` + 1.

    Both learning rates follow :func:`trainer.optimizer.learning_rate`. The momentum grows linearly from 0.85
    to `muon_momentum` over the first 100 steps: early gradients are soon out of date.
    """
    lr = learning_rate(config, step)
    start = min(_MOMENTUM_START, config.muon_momentum)
    momentum = start + (config.muon_momentum - start) * min(1.0, step / _MOMENTUM_STEPS)
    return Rates(lr, lr * (config.muon_lr / config.learning_rate), momentum)


@torch.no_grad()
def muon_update(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    parts: Sequence[int],
    lr: Tensor | float,
    momentum: Tensor | float,
    weight_decay: float,
) -> None:
    """Update matrices and their momenta in place by Nesterov momentum with orthogonal steps.

    The i-th weight, gradient and momentum are (rows, columns), and consist of ``parts[i]`` matrices above
    each other, each of which gets a step of its own: `lr` times an orthogonal matrix, times
    sqrt(rows / columns) where that is above 1. Matrices of equal shape are worked on in one batch.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (weight, count) in enumerate(zip(weights, parts, strict=True)):
        rows, columns = weight.shape[0] // count, weight.shape[1]
        groups.setdefault((min(rows, columns), max(rows, columns)), []).append(i)
    for members in groups.values():
        flattened = []
        for i in members:
            momenta[i].lerp_(grads[i], 1 - momentum)
            ahead = torch.lerp(grads[i], momenta[i], momentum)
            flattened.append(_wide(ahead.view(parts[i], -1, ahead.shape[1])))
        steps = torch.split(orthogonalise(torch.cat(flattened)), [parts[i] for i in members])
        for i, step in zip(members, steps, strict=True):
            rows, columns = weights[i].shape[0] // parts[i], weights[i].shape[1]
            step = (step.mT if rows > columns else step).reshape(weights[i].shape)
            if weight_decay:
                weights[i].mul_(1 - lr * weight_decay)
            weights[i].sub_(step * (lr * math.sqrt(max(1.0, rows / columns))))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (N, rows, columns) with rows <= columns: about the nearest ones with singular values of 1.

    The three steps bring singular values above 0.006 of the norm to 0.2 to 1.9, with a median near 1.

    fp32 comes back, whatever the iteration is done in: bf16 on a GPU, fp32 elsewhere.
    """
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) * _NORM_MARGIN + _NORM_FLOOR)
    if x.device.type == "cuda":
        return _newton_schulz(x.bfloat16()).float()
    return _newton_schulz(x) if x.shape[-2] == x.shape[-1] else _gram_newton_schulz(x)


def _newton_schulz(x: Tensor) -> Tensor:
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _gram_newton_schulz(x: Tensor) -> Tensor:
    """The same on the small matrix x x^T only: less work where columns outnumber rows. Needs fp32."""
    eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    gram = x @ x.mT
    factor = eye
    for i, (a, b, c) in enumerate(COEFFICIENTS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * eye
        factor = polynomial @ factor if i else polynomial
        if i < len(COEFFICIENTS) - 1:
            gram = polynomial @ gram @ polynomial
    return factor @ x


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainerConfig
) -> AdamW | MuonAdamW:
    """The optimizer of the configuration's recipe."""
    return (MuonAdamW if config.recipe == "fast" else AdamW)(named_parameters, config)


class MuonAdamW:
    """Both optimizers over a model's parameters, with the interface of :class:`trainer.optimizer.AdamW`.

    `momenta` holds Muon's momentum, `exp_avg` and `exp_avg_sq` AdamW's moments, by parameter name.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainerConfig) -> None:
        self._named = dict(named_parameters)
        self._config = config
        self.plan = Plan.of({name: p.shape for name, p in self._named.items()})
        rest = {name: self._named[name] for name in self.plan.adamw}
        self.momenta = {name: torch.zeros_like(self._named[name]) for name in self.plan.muon}
        self.exp_avg = {name: torch.zeros_like(p) for name, p in rest.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in rest.items()}
        self._counts = {name: torch.zeros((), device=p.device) for name, p in rest.items()}
        device = next(iter(self._named.values())).device
        self._on_gpu = device.type == "cuda"
        self._rates = torch.zeros(3, device=device)  # where a recorded update can read them

    def set_step(self, step: int) -> None:
        """Take the rates of the update that leads from `step` to `step` + 1."""
        for place, value in zip(self._rates, rates(self._config, step), strict=True):
            place.fill_(value)

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients, then drop them."""
        lr, muon_lr, momentum = self._rates.unbind()
        decayed = set(self.plan.decayed)
        for names, decay in (
            ([name for name in self.plan.adamw if name in decayed], self._config.weight_decay),
            ([name for name in self.plan.adamw if name not in decayed], 0.0),
        ):
            if names:
                self._adamw(names, lr, decay)
        muon_update(
            [self._named[name] for name in self.plan.muon],
            [self._gradient(name) for name in self.plan.muon],
            list(self.momenta.values()),
            parts=list(self.plan.parts.values()),
            lr=muon_lr,
            momentum=momentum,
            weight_decay=self._config.weight_decay,
        )
        for parameter in self._named.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The moments as `momentum.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME`."""
        return (
            {f"momentum.{name}": value for name, value in self.momenta.items()}
            | {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
            | {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}
        )

    def resume_at(self, step: int) -> None:
        """Go on after `step` updates, with the moments that were copied into :meth:`state`."""
        for count in self._counts.values():
            count.fill_(step)

    def decayed(self) -> list[str]:
        """Names of the parameters that decay."""
        return list(self.plan.decayed)

    def _gradient(self, name: str) -> Tensor:
        gradient = self._named[name].grad
        assert gradient is not None
        return gradient

    def _adamw(self, names: list[str], lr: Tensor, weight_decay: float) -> None:
        adamw(
            [self._named[name] for name in names],
            [self._gradient(name) for name in names],
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            [],
            [self._counts[name] for name in names],
            fused=True,
            capturable=self._on_gpu,
            amsgrad=False,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            lr=lr if self._on_gpu else lr.item(),
            weight_decay=weight_decay,
            eps=EPSILON,
            maximize=False,
        )
