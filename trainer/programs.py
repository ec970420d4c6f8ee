"""What is compiled: the gradient of a part of a batch, and the update of all weights, as pure functions.

Everything that changes from step to step comes in tensors, see :class:`Inputs`; everything else is part of
the program. Both write their results into buffers that they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from trainer import ops
from trainer.config import TrainerConfig
from trainer.flat import Layout
from trainer.model_fast import LanguageModel
from trainer.muon import EPSILON, Plan, muon_update, rates
from trainer.optimizer import learning_rate

NEVER = 1 << 62
"""A step that no run reaches."""
TAIL = 16
"""Numbers after a gradient, all of them the loss: that it is summed with the gradient."""
RATES = 6
"""Numbers of :func:`step_rates`."""
_CLIP_FLOOR = 1e-6  # clip_grad_norm_'s

Program = Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """How a step's batch of B sequences is computed: `ranks` x `units` parts of `sequences` each."""

    sequences: int
    units: int
    """Parts of this process: by its threads, or one after the other to need less memory."""
    ranks: int = 1
    adds: bool = False
    """Whether the gradient is added to what the buffer holds, unless told to begin anew."""


def gradient_program(
    model: LanguageModel, layout: Layout, config: TrainerConfig, part: Part, dtype: torch.dtype, kernels: Any
) -> Program:
    """``(weights (P,), tokens (n,), starts (m,) int64, noise (3,) int32, keep (1,), *out)``, which returns
    this part's share of the loss.

    `out` is :func:`destinations` of a row (P + TAIL,). The row becomes its share of the gradient of the whole
    batch's mean loss, and of that loss; what lies between tensors stays. With `part.adds` it is added to the
    row where `keep` is 1, and replaces it where `keep` is 0.
    """
    T = config.block_size
    scale = 1.0 / (part.units * part.ranks)

    def operands(weights: Tensor) -> dict[str, Tensor]:
        named = layout.split(weights)
        if dtype != torch.float32:
            small = layout.split(weights.to(dtype))  # one kernel for all matrices
            named |= {name: small[name] for name in named if _only_multiplied(name, named[name])}
        return named

    def loss_of(named: dict[str, Tensor], x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        context: Any = nullcontext()
        if dtype != torch.float32:
            context = torch.autocast(x.device.type, dtype, cache_enabled=False)
        with ops.inside(ops.Inside(noise, dtype, kernels)), context:
            loss: Tensor = functional_call(model, named, (x, y))[1]
        return loss * scale

    def gradient(
        weights: Tensor, tokens: Tensor, starts: Tensor, noise: Tensor, keep: Tensor, *out: Tensor
    ) -> Tensor:
        window = torch.arange(T + 1, device=starts.device)
        sequences = tokens[starts[:, None] + window].long()
        x, y = sequences[:, :-1], sequences[:, 1:]
        loss: Tensor
        named, loss = grad_and_value(loss_of)(operands(weights), x, y, noise)
        shares = [*(named[name] for name in layout.places), loss.expand(TAIL)]
        if part.adds:
            shares = [torch.where(keep > 0, p, 0.0) + share for p, share in zip(out, shares, strict=True)]
        torch._foreach_copy_(list(out), shares)  # on a GPU by one kernel
        return loss

    return gradient


def destinations(layout: Layout, row: Tensor) -> tuple[Tensor, ...]:
    """Where a gradient program writes: views of a row for each tensor and for the loss.

    The gradient of all weights as one tensor would be filled with zeros, joined and copied by the compiler:
    two kernels for each on a GPU.
    """
    return (*layout.views(row).values(), row[layout.size :])


def _only_multiplied(name: str, weight: Tensor) -> bool:
    """Whether a parameter is used in matrix products only, for which the small type does."""
    return weight.dim() == 2 and name.startswith(("h.", "lm_head."))


def update_program(layout: Layout, config: TrainerConfig, plan: Plan | None) -> Program:
    """``(weights (P,), gradients (rows, P + TAIL), first (P,), second (P - muon_end,), rates (RATES,),
    step (1,) int64, first_bad () int64, results (2,)) -> norm``.

    Sums the rows, clips, and changes weights and moments in place by AdamW and, where there is a `plan`, by
    Muon. `results` become the loss and the gradient's norm before clipping.
    """
    muon_end, decayed_end = layout.muon_end, layout.decayed_end

    def update(
        weights: Tensor,
        gradients: Tensor,
        first: Tensor,
        second: Tensor,
        rate: Tensor,
        step: Tensor,
        first_bad: Tensor,
        results: Tensor,
    ) -> Tensor:
        total = gradients[0] if gradients.shape[0] == 1 else gradients.sum(0)
        gradient, loss = total[: layout.size], total[layout.size]
        norm = gradient.square().sum().sqrt()
        results.copy_(torch.stack([loss, norm]))
        bad = torch.where(loss.isfinite() & norm.isfinite(), NEVER, step[0])
        first_bad.copy_(torch.minimum(first_bad, bad))
        if config.grad_clip:
            gradient = gradient * (config.grad_clip / (norm + _CLIP_FLOOR)).clamp(max=1.0)
        rest, moment, square = _adamw(
            weights[muon_end:], gradient[muon_end:], first[muon_end:], second, rate, decayed_end - muon_end
        )
        second.copy_(square)
        if plan is None or not muon_end:
            weights.copy_(rest)
            first.copy_(moment)
            return norm
        matrices, momenta = _muon(weights, gradient, first, rate, plan)
        weights.copy_(torch.cat([matrices, rest]))
        first.copy_(torch.cat([momenta, moment]))
        return norm

    def _adamw(
        w: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: Tensor, decayed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """torch.optim.AdamW's arithmetic; the first `decayed` numbers decay."""
        m = torch.lerp(m, g, 1.0 - config.beta1)
        v = v * config.beta2 + g * g * (1.0 - config.beta2)
        decay = torch.where(torch.arange(w.numel(), device=w.device) < decayed, config.weight_decay, 0.0)
        return w * (1.0 - rate[0] * decay) - rate[3] * (m / (v.sqrt() / rate[4] + EPSILON)), m, v

    def _muon(w: Tensor, g: Tensor, m: Tensor, rate: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        names = [name for name in layout.places if layout.places[name].begin < muon_end]
        pieces = []
        for flat in (w, g, m):
            views = layout.views(flat)
            pieces.append([views[name].clone() for name in names])
        muon_update(
            pieces[0],
            pieces[1],
            pieces[2],
            parts=[plan.parts[name] for name in names],
            lr=rate[1],
            momentum=rate[2],
            weight_decay=config.weight_decay,
        )
        return _joined(pieces[0]), _joined(pieces[2])

    return update


def _joined(tensors: list[Tensor]) -> Tensor:
    """Side by side as in a buffer, with the gaps."""
    flat = []
    for tensor in tensors:
        flat.append(tensor.reshape(-1))
        if gap := -tensor.numel() % TAIL:
            flat.append(tensor.new_zeros(gap))
    return torch.cat(flat)


def step_rates(config: TrainerConfig, step: int) -> tuple[float, ...]:
    """What the update that leads from `step` to `step` + 1 multiplies by, RATES numbers: AdamW's and Muon's
    learning rates, Muon's momentum, AdamW's rate over its first bias correction, and the root of its second
    (Kingma and Ba, 2015, section 3)."""
    if config.recipe == "fast":
        adamw, muon, momentum = rates(config, step)
    else:
        adamw, muon, momentum = learning_rate(config, step), 0.0, 0.0
    count = step + 1
    first = 1.0 - config.beta1**count
    return adamw, muon, momentum, adamw / first, math.sqrt(1.0 - config.beta2**count), 0.0


def graph_of(
    program: Program, arguments: tuple[Tensor, ...], mode: Literal["fake", "real"]
) -> torch.fx.GraphModule:
    """The program as a graph of PyTorch's operations, for tensors like the arguments.

    With `mode` "fake" nothing is computed.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        return make_fx(program, tracing_mode=mode, _allow_non_fake_inputs=True)(*arguments)
