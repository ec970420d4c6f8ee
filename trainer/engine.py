"""What makes an optimizer update: the part of training that is fast or slow."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.config import TrainerConfig
from trainer.data import Batches
from trainer.device import Hardware
from trainer.graph import GraphedUpdate
from trainer.model_fast import LanguageModel
from trainer.muon import MuonAdamW, build_optimizer
from trainer.optimizer import AdamW, learning_rate
from trainer.ranks import Ranks
from trainer.rng import Stream, stream_seed

NEVER = 1 << 62
"""A step that no run reaches."""


class Engine(Protocol):
    """Changes a model's weights in place, one update after the other."""

    optimizer: AdamW | MuonAdamW
    """Its moments by name, and the number of updates that they have seen."""
    forward: nn.Module
    """What computes losses: the model itself or its compiled form."""
    first_bad: Tensor
    """0-dim int64 on the device: the first step since this was last set to NEVER from which an update led on
    whose loss or gradient norm was not finite; NEVER if there was none. The same on all ranks."""

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """Make the update that leads from `step` to `step` + 1.

        The loss of its batch, of all ranks, and the norm of its gradient before clipping: 0-dim on the
        device, which has not been waited for. The next call may overwrite both.
        """
        ...


class EagerEngine:
    """PyTorch's own kernels; on a GPU, recorded as a CUDA graph where the configuration says so."""

    def __init__(
        self,
        config: TrainerConfig,
        model: LanguageModel,
        batches: Batches,
        hardware: Hardware,
        ranks: Ranks | None = None,
    ) -> None:
        self._config = config
        self._model = model
        self._batches = batches
        self._hardware = hardware
        self._ranks = ranks or Ranks()
        self._step = torch.zeros((), dtype=torch.int64, device=hardware.device)
        self.first_bad = torch.full_like(self._step, NEVER)
        self.forward: nn.Module = _compiled(model) if config.compile else model
        self.optimizer = build_optimizer(model.named_parameters(), config)
        graphed = config.cuda_graph and not config.compile and hardware.device.type == "cuda"
        self._compute = GraphedUpdate(self._eagerly) if graphed else self._eagerly

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Engine`."""
        if isinstance(self.optimizer, MuonAdamW):
            self.optimizer.set_step(step)
        else:
            self.optimizer.set_rate(learning_rate(self._config, step))
        self._step.fill_(step)  # where a recorded update can read it
        seed = stream_seed(self._config.seed, Stream.DROPOUT, step)
        if self._ranks.rank:
            seed = stream_seed(seed, Stream.DROPOUT, self._ranks.rank)
        self._hardware.seed_dropout(seed)
        return self._compute(*self._batches.train(step))

    def _eagerly(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights by the loss of inputs and targets (B, T); that loss and the gradient's norm."""
        parts = min(self._config.micro_batches, len(x))
        total = torch.zeros((), device=x.device)
        for part in range(parts):
            with self._hardware.autocast():
                loss = self.forward(x[part::parts], y[part::parts])[1]
            loss = loss / parts if len(x) % parts == 0 else loss * (len(x[part::parts]) / len(x))
            loss.backward()
            total += loss.detach()
        total = self._over_ranks(total)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._config.grad_clip or math.inf)
        self._watch(total, norm)
        self.optimizer.step()
        return total, norm

    def _over_ranks(self, loss: Tensor) -> Tensor:
        """Average gradients and the loss over the ranks; their parts of the batch are of the same size."""
        if self._ranks.world == 1:
            return loss
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), loss.reshape(1)]) / self._ranks.world
        self._ranks.sum_gradient(flat)
        place = 0
        for gradient in gradients:
            gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient))
            place += gradient.numel()
        return flat[place]

    def _watch(self, loss: Tensor, norm: Tensor) -> None:
        """Note this step as bad where a value is not finite; weights are not written yet."""
        bad = torch.where(loss.isfinite() & norm.isfinite(), NEVER, self._step)
        self.first_bad.copy_(torch.minimum(self.first_bad, bad))


def _compiled(model: LanguageModel) -> nn.Module:
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return compiled
