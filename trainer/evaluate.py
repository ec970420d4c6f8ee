"""Losses that are measured, not trained on: estimates, the whole split, and the probe batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.checkpoint import Evaluation
from trainer.data import Batches, Split
from trainer.device import Hardware
from trainer.model_fast import LanguageModel
from trainer.ranks import Ranks


class Evaluator:
    """Measures a model between its updates and leaves it in training mode.

    `forward` is what computes the losses: the model itself or its compiled form. Each rank measures its share
    of the sequences; all get the mean over all. Evaluations give up on all ranks once `stop` says so on one.
    A batch is computed in `parts`, to need no more memory than training does.
    """

    def __init__(
        self,
        model: LanguageModel,
        forward: nn.Module,
        batches: Batches,
        hardware: Hardware,
        stop: Callable[[], bool],
        *,
        ranks: Ranks,
        parts: int = 1,
    ) -> None:
        self._model = model
        self._forward = forward
        self._batches = batches
        self._hardware = hardware
        self._stop = stop
        self._ranks = ranks
        self._parts = parts

    def estimate(self, step: int) -> Evaluation | None:
        """Mean losses over `eval_batches` random batches of each split; None when asked to stop meanwhile.

        The batches depend on the seed and the step only: repeated after a resume, it gives the same numbers.
        """
        train = self._mean_loss("train", self._batches.evaluation("train", step))
        val = self._mean_loss("val", self._batches.evaluation("val", step)) if train is not None else None
        if train is None or val is None:
            return None
        return Evaluation(step=step, train=train, val=val)

    def whole_val(self) -> float | None:
        """Mean loss over consecutive sequences of the whole val split; None when asked to stop meanwhile."""
        return self._mean_loss("val", self._batches.whole("val"))

    @torch.no_grad()
    def batch_loss(self, step: int) -> float:
        """Loss of the batch of the update that would come next, without making it."""
        x, y = self._batches.train(step)
        parts = min(self._parts, len(x))
        total = 0.0
        for part in range(parts):
            with self._hardware.autocast():
                loss: Tensor = self._forward(x[part::parts], y[part::parts])[1]
            total += loss.item() * (len(x[part::parts]) / len(x))
        return self._ranks.mean(total)

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
        total = torch.zeros((), dtype=torch.float64, device=self._hardware.device)
        count, stopped = 0, False
        for starts in (part for batch in batches for part in batch.tensor_split(self._parts) if len(part)):
            stopped = stopped or self._stop()
            if stopped:
                break
            with self._hardware.autocast():
                loss: Tensor = self._forward(*self._batches.at(split, starts))[1]
            total += loss.double() * len(starts)
            count += len(starts)
        self._forward.train()
        # In one message, and with what this rank was asked: so all ranks give up or none.
        losses, counts, stops = self._ranks.totals(total.item(), float(count), float(stopped))
        return losses / counts if not stops else None
