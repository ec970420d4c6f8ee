"""Compiled steps: made in a process of their own beside training, and kept for later runs on this node.

An entry is the folder ``compiled/KEY`` in the cache folder (see :func:`trainer.corpus.cache_root`):

=================  =============================================================================
``gradient.pt2``   for a CPU: the gradient of one part of a batch, see :mod:`trainer.library`
``update.pt2``     for a CPU: the change of all weights
``inductor/``      for a GPU: the compiler's own cache, from which it gives the programs in seconds
``entry.json``     what it was made for, and the SHA-256 of the two files, which is checked first
=================  =============================================================================

KEY is a hash of everything that the programs depend on, so entries can be copied between like machines. An
entry counts once its ``entry.json`` is there, which is written last. One that is damaged is removed and made
again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from trainer import processor
from trainer.config import TrainerConfig
from trainer.corpus import cache_root
from trainer.flat import Buffers
from trainer.library import Library, LibraryError, build
from trainer.model_fast import build_model
from trainer.muon import MuonAdamW, build_optimizer
from trainer.programs import (
    NEVER,
    RATES,
    TAIL,
    Part,
    Program,
    gradient_program,
    graph_of,
    update_program,
)

GRADIENT, UPDATE, ENTRY = "gradient.pt2", "update.pt2", "entry.json"
_FORMAT = 2
_SETTINGS = (
    "recipe",
    "ngrams",
    "n_layer",
    "n_head",
    "n_embd",
    "block_size",
    "dropout",
    "bias",
    "beta1",
    "beta2",
    "weight_decay",
    "grad_clip",
)
"""Settings that are part of a program. It is made from a configuration that has only these."""
_OPERATORS = tuple(f"{of}_{way}" for of in ("attention", "mlp", "norm") for way in ("forward", "backward"))
"""Of trainer.kernels."""
_SOURCES = ("dropout", "flat", "library", "model", "model_fast", "muon", "ops", "programs", "compiling")


class Order(BaseModel):
    """What is to be compiled."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    vocab_size: int
    tokens: str
    """Type of the tokens."""
    length: int
    """Number of the tokens to train on: places are checked against it."""
    device: str
    dtype: str
    part: Part
    rows: int
    """Gradients that the update sums."""
    kernels: bool
    """Whether to use our own kernels for GPUs."""
    threads: int
    """Of the update; a gradient is computed by one."""
    machine: str
    """What the compiler compiles for."""
    versions: str
    """PyTorch's version, and a hash of our own code."""

    @property
    def key(self) -> str:
        """A name for the entry."""
        return hashlib.sha256(f"{_FORMAT} {self.model_dump_json()}".encode()).hexdigest()[:32]


def settings_of(config: TrainerConfig) -> dict[str, Any]:
    """The settings that programs depend on."""
    return {name: getattr(config, name) for name in _SETTINGS}


def machine(device: torch.device, name: str) -> str:
    """What decides whether a library made on one machine runs on another."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{name} sm_{major}{minor}"
    features = hashlib.sha256(" ".join(sorted(processor.flags())).encode()).hexdigest()[:8]
    return f"{name} {torch.backends.cpu.get_cpu_capability()} {features} {' '.join(platform.libc_ver())}"


@cache
def versions() -> str:
    """Of what the compiled code follows from."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in (*(here / f"{name}.py" for name in _SOURCES), *sorted((here / "kernels").glob("*.py"))):
        digest.update(source.read_bytes())
    return f"torch {torch.__version__}, {digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class Programs:
    """The two programs of an order; both take tensors and change them."""

    gradient: Callable[..., object]
    update: Callable[..., object]


def load(order: Order, callers: int) -> Programs | None:
    """The programs of an order from the cache; None where they are not there.

    Raises:
        LibraryError: they were there, but cannot be used; they have been removed.
    """
    folder = _entries() / order.key
    if not (folder / ENTRY).is_file():
        return None
    try:
        if order.device == "cuda":
            return _in_process(order, folder)
        sums = json.loads((folder / ENTRY).read_bytes())["sha256"]
        for name in (GRADIENT, UPDATE):
            if _sha256(folder / name) != sums[name]:
                raise LibraryError(f"{name} is damaged")
        return Programs(Library(folder / GRADIENT, callers), Library(folder / UPDATE))
    except (OSError, ValueError, KeyError, LibraryError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise LibraryError(f"the compiled step in {folder} could not be used and was removed: {e}") from e


class Compiler:
    """Compiles one order in another process, at low priority."""

    def __init__(self, order: Order) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer.compiling"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "1"},
            )
        except OSError as e:
            raise LibraryError(f"cannot start the compiler: {e}") from e
        assert self._process.stdin is not None
        self._process.stdin.write(order.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()  # and stays open: its end tells the other process that this one is gone

    def done(self) -> bool:
        """Whether it has ended well.

        Raises:
            LibraryError: it failed; the message is the reason.
        """
        code = self._process.poll()
        if code is None:
            return False
        self.close()
        if code:
            self._errors.seek(0)
            if code < 0:
                raise LibraryError(f"compiling it, or trying it out, was ended by {_signal_name(-code)}")
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
            raise LibraryError(next((line for line in reversed(lines) if _is_reason(line)), lines[-1]))
        return True

    def wait(self) -> None:
        """Return when it has ended well; raises as :meth:`done`."""
        while not self.done():
            try:
                self._process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.terminate()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _is_reason(line: str) -> bool:
    return "Error" in line or "error:" in line


def main() -> int:
    """The other process: compiles the order on its standard input, unless it is there already."""
    order = Order.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(10)
    folder = _entries() / order.key
    with _alone(order.key):
        if (folder / ENTRY).is_file():
            return 0
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        if order.device == "cuda":
            _try_out(order, _in_process(order, folder))
        else:
            _into_libraries(order, folder)
        sums = {path.name: _sha256(path) for path in folder.glob("*.pt2")}
        entry = {"order": order.model_dump(mode="json"), "sha256": sums}
        aside = folder / f".{ENTRY}"
        aside.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        aside.rename(folder / ENTRY)
    return 0


@dataclass(frozen=True)
class _Sources:
    """The programs before they are compiled, each with tensors like those that it will be given."""

    gradient: Program
    gradient_arguments: tuple[Tensor, ...]
    update: Program
    update_arguments: tuple[Tensor, ...]

    @classmethod
    def of(cls, order: Order) -> _Sources:
        device, dtype = torch.device(order.device), getattr(torch, order.dtype)
        config = TrainerConfig.model_validate(order.settings)
        model = build_model(config, order.vocab_size).to(device)
        optimizer = build_optimizer(model.named_parameters(), config)
        buffers = Buffers(model, optimizer)
        layout = buffers.layout
        kernels = importlib.import_module("trainer.kernels") if order.kernels else None  # needs triton
        plan = optimizer.plan if isinstance(optimizer, MuonAdamW) else None
        numbers = layout.size + TAIL
        tokens = torch.empty(order.length, dtype=getattr(torch, order.tokens), device=device)
        tokens[: config.block_size + 1] = 0
        return cls(
            gradient_program(model, layout, config, order.part, dtype, kernels),
            (
                buffers.weights,
                tokens,
                torch.zeros(order.part.sequences, dtype=torch.int64, device=device),
                torch.zeros(3, dtype=torch.int32, device=device),
                torch.zeros(1, device=device),
                torch.zeros(numbers, device=device),
            ),
            update_program(layout, config, plan),
            (
                buffers.weights,
                torch.zeros(order.rows, numbers, device=device),
                buffers.first,
                buffers.second,
                torch.full((RATES,), 0.5, device=device),
                torch.zeros(1, dtype=torch.int64, device=device),
                torch.full((), NEVER, device=device),
                torch.zeros(2, device=device),
            ),
        )


def _into_libraries(order: Order, folder: Path) -> None:
    """Compile for a CPU."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    sources = _Sources.of(order)
    for name, program, arguments, threads in (
        (GRADIENT, sources.gradient, sources.gradient_arguments, 1),
        (UPDATE, sources.update, sources.update_arguments, order.threads),
    ):
        torch.set_num_threads(threads)
        build(graph_of(program, arguments, "fake"), arguments, folder / name, threads)
        Library(folder / name)(*arguments)  # should it crash, then here
    shutil.rmtree(folder / "inductor")


def _in_process(order: Order, folder: Path) -> Programs:
    """Compile for a GPU in this process, which takes seconds where `folder` has the compiler's cache."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    from torch._inductor import standalone_compile

    sources = _Sources.of(order)
    if order.kernels:
        _call_as_they_are(_OPERATORS)

    def compiled(program: Program, arguments: tuple[Tensor, ...]) -> Callable[..., object]:
        graph = graph_of(program, arguments, "real")
        with torch.no_grad():
            made = standalone_compile(graph, list(arguments), dynamic_shapes="from_example_inputs")
        return lambda *tensors: made(*tensors)

    try:
        return Programs(
            compiled(sources.gradient, sources.gradient_arguments),
            compiled(sources.update, sources.update_arguments),
        )
    except RuntimeError as e:
        raise LibraryError(str(e).strip().partition("\n")[0]) from e


def _call_as_they_are(operators: tuple[str, ...]) -> None:
    """Tell the compiler to call our operators.

    It would find that out by itself, but only after it has described everything that they are computed from,
    which takes minutes at six layers.
    """
    from torch._inductor.lowering import make_fallback

    for name in operators:
        make_fallback(getattr(torch.ops.orch, name).default, warn=False)  # type: ignore[no-untyped-call]


def _try_out(order: Order, programs: Programs) -> None:
    """Call them: the compiler picks its kernels' variants then, and keeps its choice."""
    sources = _Sources.of(order)
    with torch.no_grad():
        programs.gradient(*sources.gradient_arguments)
        programs.update(*sources.update_arguments)
    torch.cuda.synchronize()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not the buffered reader, whose lock would be held at the end
    os._exit(1)


@contextmanager
def _alone(key: str) -> Iterator[None]:
    """Until the end, no other process on this node compiles the same."""
    with (_entries() / f".{key}.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entries() -> Path:
    folder = cache_root() / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
