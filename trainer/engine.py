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
from trainer.model import GPT
from trainer.optimizer import AdamW, learning_rate
from trainer.rng import Stream, stream_seed


class Engine(Protocol):
    """Changes a model's weights in place, one update after the other."""

    optimizer: AdamW
    """Its moments by name, and the number of updates that they have seen."""
    forward: nn.Module
    """What computes losses: the model itself or its compiled form."""

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """Make the update that leads from `step` to `step` + 1.

        The loss of its batch and the norm of its gradient before clipping, 0-dim on the device, which has
        not been waited for. The next call may overwrite both.
        """
        ...


class EagerEngine:
    """PyTorch's own kernels; on a GPU, recorded as a CUDA graph where the configuration says so."""

    def __init__(self, config: TrainerConfig, model: GPT, batches: Batches, hardware: Hardware) -> None:
        self._config = config
        self._model = model
        self._batches = batches
        self._hardware = hardware
        self.forward: nn.Module = _compiled(model) if config.compile else model
        self.optimizer = AdamW(model.named_parameters(), config)
        graphed = config.cuda_graph and not config.compile and hardware.device.type == "cuda"
        self._compute = GraphedUpdate(self._eagerly) if graphed else self._eagerly

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Engine`."""
        self.optimizer.set_rate(learning_rate(self._config, step))
        self._hardware.seed_dropout(stream_seed(self._config.seed, Stream.DROPOUT, step))
        return self._compute(*self._batches.train(step))

    def _eagerly(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights by the loss of inputs and targets (B, T); that loss and the gradient's norm."""
        parts = self._config.micro_batches
        total = torch.zeros((), device=x.device)
        for part in range(parts):
            with self._hardware.autocast():
                loss = self.forward(x[part::parts], y[part::parts])[1] / parts
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._config.grad_clip or math.inf)
        self.optimizer.step()
        return total, norm


def _compiled(model: GPT) -> nn.Module:
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return compiled
