"""Losses that are measured, not trained on: estimates, the whole split, and the probe batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.checkpoint import Evaluation
from trainer.data import Batches, Split
from trainer.device import Hardware
from trainer.model import GPT


class Evaluator:
    """Measures a model between its updates and leaves it in training mode.

    `forward` is what computes the losses: the model itself or its compiled form. Evaluations give up once
    `stop` says so.
    """

    def __init__(
        self, model: GPT, forward: nn.Module, batches: Batches, hardware: Hardware, stop: Callable[[], bool]
    ) -> None:
        self._model = model
        self._forward = forward
        self._batches = batches
        self._hardware = hardware
        self._stop = stop

    def estimate(self, step: int) -> Evaluation | None:
        """Mean losses over `eval_batches` random batches of each split; None when asked to stop meanwhile.

        The batches depend on the seed and the step only: repeated after a resume, it gives the same numbers.
        """
        train = self._mean_loss("train", self._batches.evaluation("train", step))
        val = self._mean_loss("val", self._batches.evaluation("val", step))
        if train is None or val is None:
            return None
        return Evaluation(step=step, train=train, val=val)

    def whole_val(self) -> float | None:
        """Mean loss over consecutive sequences of the whole val split; None when asked to stop meanwhile."""
        return self._mean_loss("val", self._batches.whole("val"))

    @torch.no_grad()
    def batch_loss(self, step: int) -> float:
        """Loss of the batch of the update that would come next, without making it."""
        with self._hardware.autocast():
            loss: Tensor = self._forward(*self._batches.train(step))[1]
        return loss.item()

    @torch.no_grad()
    def probe(self) -> float:
        """fp32 loss of the probe batch, without dropout and not compiled."""
        self._model.eval()
        loss = self._model(*self._batches.probe())[1]
        self._model.train()
        return float(loss.item())

    @torch.no_grad()
    def _mean_loss(self, split: Split, batches: list[Tensor]) -> float | None:
        self._forward.eval()
        total, count = 0.0, 0
        for starts in batches:
            if self._stop():
                break
            with self._hardware.autocast():
                loss: Tensor = self._forward(*self._batches.at(split, starts))[1]
            total += loss.item() * len(starts)
            count += len(starts)
        self._forward.train()
        return total / count if count == sum(map(len, batches)) else None
