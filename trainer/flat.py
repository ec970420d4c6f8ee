"""All weights in one buffer, and all moments in two: what a compiled step works on.

Each parameter of the model becomes a view of the buffer, and so does each moment of the optimizer, so that
whoever asks them by name sees what the compiled step did, and an uncompiled update changes the same memory.

The order is: matrices that Muon trains, then what AdamW trains and decays, then what it does not decay.
Every tensor begins at a multiple of 16 numbers; the gaps are zero and stay so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.muon import MuonAdamW
from trainer.optimizer import AdamW

_ALIGNMENT = 16
"""In numbers of 4 bytes: a cache line, at which PyTorch's own tensors begin."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is in the buffer."""

    begin: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Where each tensor is: (P,) numbers in all."""

    places: Mapping[str, Place]
    muon_end: int
    """Up to here everything is trained by Muon."""
    decayed_end: int
    """From `muon_end` to here AdamW decays; after it, it does not."""
    size: int

    @classmethod
    def of(cls, model: nn.Module, optimizer: AdamW | MuonAdamW) -> Layout:
        """The layout for a model's parameters and how they are trained."""
        muon = set(optimizer.plan.muon) if isinstance(optimizer, MuonAdamW) else set()
        decayed = set(optimizer.decayed())
        named = dict(model.named_parameters())

        def group(name: str) -> int:
            return 0 if name in muon else 1 if name in decayed else 2

        places: dict[str, Place] = {}
        ends = [0, 0, 0]
        begin = 0
        for number in range(3):
            for name in (n for n in named if group(n) == number):
                places[name] = Place(begin, tuple(named[name].shape))
                begin += -(-named[name].numel() // _ALIGNMENT) * _ALIGNMENT
            ends[number] = begin
        return cls(places, ends[0], ends[1], begin)

    def views(self, flat: Tensor, begin: int = 0) -> dict[str, Tensor]:
        """The tensors by name, as views of a buffer whose first number is number `begin` of the layout."""
        return {
            name: flat[place.begin - begin : place.end - begin].view(place.shape)
            for name, place in self.places.items()
            if place.begin >= begin
        }

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The same as :meth:`views` of a whole buffer, in one operation that is cheap to differentiate."""
        places = list(self.places.items())
        ends = [place.begin for _, place in places[1:]] + [self.size]
        lengths = [end - place.begin for end, (_, place) in zip(ends, places, strict=True)]
        return {
            name: part[: math.prod(place.shape)].view(place.shape)
            for part, (name, place) in zip(torch.split(flat, lengths), places, strict=True)
        }


class Buffers:
    """A model's weights and its optimizer's moments, moved into buffers.

    `weights` and `first` (momentum, or AdamW's first moment) are (P,); `second` is (P - muon_end,).
    """

    def __init__(self, model: nn.Module, optimizer: AdamW | MuonAdamW) -> None:
        self.layout = layout = Layout.of(model, optimizer)
        device = next(model.parameters()).device
        self.weights = torch.zeros(layout.size, device=device)
        self.first = torch.zeros(layout.size, device=device)
        self.second = torch.zeros(layout.size - layout.muon_end, device=device)
        self._adopt(model)
        self._adopt_moments(optimizer)

    @torch.no_grad()
    def _adopt(self, model: nn.Module) -> None:
        views = self.layout.views(self.weights)
        for name, parameter in model.named_parameters():
            views[name].copy_(parameter)
            parameter.data = views[name]

    @torch.no_grad()
    def _adopt_moments(self, optimizer: AdamW | MuonAdamW) -> None:
        first = self.layout.views(self.first)
        second = self.layout.views(self.second, self.layout.muon_end)
        held = [(optimizer.exp_avg, first), (optimizer.exp_avg_sq, second)]
        if isinstance(optimizer, MuonAdamW):
            held.append((optimizer.momenta, first))
        for moments, views in held:
            for name in moments:
                views[name].copy_(moments[name])
                moments[name] = views[name]
