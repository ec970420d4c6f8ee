"""Compiled steps for a GPU: compiled in the process that uses them, and kept for the next one."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.library import LibraryError
from trainer.orders import Order, Programs, Sources
from trainer.programs import Program, graph_of

_MADE = ("gradient.made", "update.made")
_OPERATORS = tuple(f"{of}_{way}" for of in ("attention", "mlp", "norm") for way in ("forward", "backward"))
"""Of trainer.kernels."""


def in_process(order: Order, folder: Path, *, keeping: bool = False) -> Programs:
    """For a GPU in this process: what `folder` has kept. Where that is nothing or cannot be used, from the
    compiler's cache there, and from the beginning where it has none. With `keeping` compiled anew and kept.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    if order.kernels:
        importlib.import_module("trainer.kernels")  # the programs call its operators
    if not keeping and all((folder / name).is_file() for name in _MADE):
        try:
            return Programs(*(loaded(folder / name) for name in _MADE))
        except LibraryError as e:
            print(f"{folder.name}: {e}", file=sys.stderr)
    from torch._inductor import standalone_compile

    sources = Sources.of(order)
    if order.kernels:
        _call_as_they_are(_OPERATORS)

    def compiled(program: Program, arguments: tuple[Tensor, ...], file: Path) -> Callable[..., object]:
        graph = graph_of(program, arguments, "real")
        with torch.no_grad():
            made = standalone_compile(graph, list(arguments), dynamic_shapes="from_example_inputs")
        if keeping:
            keep(made, file)
        return lambda *tensors: made(*tensors)

    try:
        return Programs(
            compiled(sources.gradient, sources.gradient_arguments, folder / _MADE[0]),
            compiled(sources.update, sources.update_arguments, folder / _MADE[1]),
        )
    except RuntimeError as e:
        raise LibraryError(str(e).strip().partition("\n")[0]) from e


def keep(made: Any, file: Path) -> None:
    """Keep a program as the compiler does, or leave none where it knows none that it could keep."""
    try:
        made.save(path=str(file), format="binary")
    except (RuntimeError, AssertionError) as e:
        print(f"{file.name} is not kept: {e}", file=sys.stderr)  # found again in the compiler's cache
        file.unlink(missing_ok=True)


def loaded(file: Path) -> Callable[..., object]:
    """A program that was kept.

    Raises:
        LibraryError: the compiler cannot use it.
    """
    from torch._inductor.standalone_compile import CompiledArtifact

    try:
        with torch.no_grad():
            made = CompiledArtifact.load(path=str(file), format="binary")
    except Exception as e:  # pickled objects of the compiler: whatever loading them raises
        raise LibraryError(f"{file.name}: {type(e).__name__}: {e}") from e
    return lambda *tensors: made(*tensors)


def _call_as_they_are(operators: tuple[str, ...]) -> None:
    """Tell the compiler to call our operators.

    It would find that out by itself, but only after it has described everything that they are computed from,
    which takes minutes at six layers.
    """
    from torch._inductor.lowering import make_fallback

    for name in operators:
        make_fallback(getattr(torch.ops.orch, name).default, warn=False)  # type: ignore[no-untyped-call]


def try_out(order: Order, programs: Programs) -> None:
    """Call them: the compiler picks its kernels' variants then, and keeps its choice."""
    sources = Sources.of(order)
    with torch.no_grad():
        programs.gradient(*sources.gradient_arguments)
        programs.update(*sources.update_arguments)
    torch.cuda.synchronize()
