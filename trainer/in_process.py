"""Compiled steps for a GPU: compiled in the process that uses them, and kept for the next one."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.library import LibraryError
from trainer.orders import Order, Programs, Sources
from trainer.programs import Program, graph_of

_PROGRAMS = ("gradient", "update")
_OPERATORS = tuple(f"{of}_{way}" for of in ("attention", "mlp", "norm") for way in ("forward", "backward"))
"""Of trainer.kernels."""
_COMPILER = ("torch._inductor.standalone_compile", "torch._inductor.compile_fx")
"""With what they import, all that a program needs which the compiler has made, kept or not."""
_CORRECTLY = {"triton.mix_order_reduction": False}
"""PyTorch 2.10 to 2.13 sum a norm's gradient over many rows in a way that loses it where it becomes a part of
a larger tensor: norms then stay as they began, in silence (pytorch/pytorch#193061)."""
_importing_s = 0.0


def in_process(order: Order, folder: Path, *, keeping: bool = False) -> Programs:
    """For a GPU in this process: what `folder` has kept. Where that is nothing or cannot be used, from the
    compiler's cache there, and from the beginning where it has none. With `keeping` compiled anew and kept.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    # With kernels, the programs call our operators.
    _import(*_COMPILER, *(["trainer.kernels"] if order.kernels else []))
    if not keeping and all((folder / f"{name}.made").is_file() for name in _PROGRAMS):
        try:
            return Programs(*(loaded(folder / f"{name}.made", order.device) for name in _PROGRAMS))
        except LibraryError as e:
            print(f"{folder.name}: {e}", file=sys.stderr)
    from torch._inductor import config, standalone_compile

    sources = Sources.of(order)
    if order.kernels:
        _call_as_they_are(_OPERATORS)

    def compiled(program: Program, arguments: tuple[Tensor, ...], file: Path) -> Callable[..., object]:
        graph = graph_of(program, arguments, "real")
        tensors = lift(graph)
        with torch.no_grad(), config.patch(_CORRECTLY):
            made = standalone_compile(graph, [*arguments, *tensors], dynamic_shapes="from_example_inputs")
        if keeping:
            keep(made, tensors, file)
        return lambda *given: made(*given, *tensors)

    try:
        return Programs(
            compiled(sources.gradient, sources.gradient_arguments, folder / "gradient.made"),
            compiled(sources.update, sources.update_arguments, folder / "update.made"),
        )
    except RuntimeError as e:
        raise LibraryError(str(e).strip().partition("\n")[0]) from e


def importing_s() -> float:
    """Seconds that the imports of the compiler have taken in this process so far."""
    return _importing_s


def _import(*modules: str) -> None:
    global _importing_s
    begin = time.perf_counter()
    for module in modules:
        importlib.import_module(module)
    _importing_s += time.perf_counter() - begin


def lift(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make the tensors that belong to a graph, tables of angles say, further inputs of it; returns them.

    The compiler keeps the code of a program without its tensors, and then calls it with too few.
    """
    tensors: list[Tensor] = []
    inputs: dict[str, torch.fx.Node] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op != "get_attr" or not isinstance(tensor := getattr(graph, str(node.target)), Tensor):
            continue
        if node.target not in inputs:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"lifted{len(tensors)}")
            last.meta = dict(node.meta)
            inputs[str(node.target)] = last
            tensors.append(tensor.detach())
        node.replace_all_uses_with(inputs[str(node.target)])
        graph.graph.erase_node(node)
    for name in inputs:
        delattr(graph, name)  # or it would be an input once more
    graph.recompile()
    return tensors


def keep(made: Any, tensors: list[Tensor], file: Path) -> None:
    """Keep a program as the compiler does, and beside it the tensors that it is called with at the end.

    Nothing is left where the compiler knows of none that it could keep.
    """
    try:
        made.save(path=str(file), format="binary")
        save_file({str(n): tensor.contiguous() for n, tensor in enumerate(tensors)}, _tensors_of(file))
    except (RuntimeError, AssertionError) as e:
        print(f"{file.name} is not kept: {e}", file=sys.stderr)  # found again in the compiler's cache
        file.unlink(missing_ok=True)


def loaded(file: Path, device: str) -> Callable[..., object]:
    """A program that was kept.

    Raises:
        LibraryError: the compiler cannot use it.
    """
    from torch._inductor.standalone_compile import CompiledArtifact

    try:
        named = load_file(_tensors_of(file), device=device)
        tensors = [named[str(n)] for n in range(len(named))]
        with torch.no_grad():
            made = CompiledArtifact.load(path=str(file), format="binary")
    except Exception as e:  # pickled objects of the compiler: whatever loading them raises
        raise LibraryError(f"{file.name}: {type(e).__name__}: {e}") from e
    return lambda *given: made(*given, *tensors)


def _tensors_of(file: Path) -> Path:
    return file.with_suffix(".tensors")


def _call_as_they_are(operators: tuple[str, ...]) -> None:
    """Tell the compiler to call our operators.

    It would find that out by itself, but only after it has described everything that they are computed from,
    which takes minutes at six layers.
    """
    from torch._inductor.lowering import make_fallback

    for name in operators:
        make_fallback(getattr(torch.ops.orch, name).default, warn=False)  # type: ignore[no-untyped-call]
