"""Whether a compiled step computes what the programs say that it was made from.

A compiler's fault can lose a part of a gradient in silence: training goes on, learns most of what it should,
and nobody sees it in a curve (pytorch/pytorch#193061 left norms as they began). So what has been compiled is
compared once, tensor by tensor, before it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.library import LibraryError
from trainer.orders import Order, Programs, Sources
from trainer.programs import Program

_TOKENS = 1 << 16
"""Of the data, as many are filled in to be trained on."""
_SPREAD = 0.02
"""Of what is added to the weights: some begin as zeros, and then others have no gradient."""


@dataclass(frozen=True)
class Tolerance:
    """How far a tensor may be from what it should be: parts of its own norm and of all tensors' together."""

    own: float
    all: float


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(1e-2, 1e-4),
    "bfloat16": Tolerance(0.3, 3e-3),
}
"""By the dtype of products. Far above what rounding in another order does, far below what a lost part is."""


Computed = list[dict[str, Tensor]]
"""Tensors by name, in groups of one kind."""


def verify(order: Order, sources: Sources, programs: Programs) -> None:
    """Call the programs and compare. Their tensors are overwritten.

    Where there is no memory to compute it in both ways, it is not compared.

    Raises:
        LibraryError: they compute something else.
    """
    with torch.no_grad():
        fill(order, sources)
        parts: tuple[tuple[Literal["gradient", "update"], Any, Program, Program], ...] = (
            ("gradient", gradient, programs.gradient, sources.gradient),
            ("update", update, programs.update, sources.update),
        )
        for what, compute, compiled, plain in parts:
            got = compute(sources, compiled)
            try:
                expected = compute(sources, plain)
            except torch.OutOfMemoryError:
                continue
            tolerance = TOLERANCES[coarsest(order, what)]
            wrong = [n for pair in zip(expected, got, strict=True) for n in apart(*pair, tolerance)]
            if wrong:
                named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
                fault = f"by a fault of the compiler of PyTorch {torch.__version__}"
                raise LibraryError(f"the compiled {what} is another than the model's for {named}, {fault}")


def coarsest(order: Order, what: Literal["gradient", "update"]) -> str:
    """The dtype of the products in a program. On a GPU, Muon's are in bf16 whatever the model's are."""
    muon = what == "update" and order.device == "cuda" and order.settings["recipe"] == "fast"
    return "bfloat16" if muon else order.dtype


def gradient(sources: Sources, program: Program) -> Computed:
    """The loss, and the gradient of each tensor, as the program computes them."""
    sources.row.zero_()  # what is not written shows
    torch.manual_seed(1)  # of the GPU too: PyTorch's attention draws its dropout there
    program(*sources.gradient_arguments)
    found = [{"the loss": sources.row[sources.layout.size :]}, sources.layout.views(sources.row)]
    return [{name: tensor.clone() for name, tensor in group.items()} for group in found]


def update(sources: Sources, program: Program) -> Computed:
    """What the program changes in weights, first and second moments."""
    weights, gradients, first, second, *rest = sources.update_arguments
    changed = (weights, first, second)
    before = [tensor.clone() for tensor in changed]
    gradients.zero_()
    gradients[0].copy_(sources.row)
    program(weights, gradients, first, second, *rest)
    found = []
    for what, tensor, old in zip(("", "first moment of ", "second moment of "), changed, before, strict=True):
        begin = sources.layout.size - tensor.numel()
        views = sources.layout.views(tensor - old, begin)
        found.append({what + name: view for name, view in views.items()})
        tensor.copy_(old)
    return found


def apart(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], tolerance: Tolerance) -> list[str]:
    """Of tensors of one kind, the names of those that differ by more than the tolerance."""
    norms = {name: float(tensor.norm()) for name, tensor in expected.items()}
    whole = sum(norm * norm for norm in norms.values()) ** 0.5
    return [
        name
        for name, tensor in expected.items()
        if not float((tensor - got[name]).norm()) <= tolerance.own * norms[name] + tolerance.all * whole
    ]


def fill(order: Order, sources: Sources) -> None:
    """Weights, tokens and places of which everything in the programs has something to do."""
    weights, tokens, starts, noise, *_ = sources.gradient_arguments
    length = min(len(tokens), _TOKENS)
    generator = torch.Generator(weights.device).manual_seed(7)
    weights.add_(torch.randn(weights.shape, generator=generator, device=weights.device), alpha=_SPREAD)
    tokens[:length].random_(0, order.vocab_size, generator=generator)
    block: int = order.settings["block_size"]
    starts.random_(0, length - block, generator=generator)
    noise.copy_(torch.tensor([11, 0, 1], dtype=torch.int32))
