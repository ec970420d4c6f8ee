"""Values of logged steps that the device has not been asked for yet.

Asking makes the host wait until the device has done all that it was given, and then the device waits for the
host. So what fast steps log is asked for together, a few times per second.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

HOLD_S = 0.25
"""How long a value may be waited for."""


class Point(NamedTuple):
    """What was measured in the update that leads from `step` to `step` + 1."""

    step: int
    loss: float
    norm: float
    """Of the gradient, before clipping."""


class Points:
    """Points that are held back for up to `hold_s` seconds."""

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self._steps: list[int] = []
        self._values: list[Tensor] = []
        self._taken = float("-inf")

    def add(self, step: int, loss: Tensor, norm: Tensor) -> bool:
        """Hold a point, whose tensors may be overwritten afterwards; whether it is time to take all."""
        self._steps.append(step)
        self._values.append(torch.stack((loss.detach(), norm.detach())))
        return time.monotonic() - self._taken >= self._hold_s

    def take(self) -> list[Point]:
        """All that are held, in order. Waits for the device."""
        if not self._steps:
            return []
        values = torch.stack(self._values).tolist()
        points = [Point(step, *pair) for step, pair in zip(self._steps, values, strict=True)]
        self._steps, self._values = [], []
        self._taken = time.monotonic()
        return points
