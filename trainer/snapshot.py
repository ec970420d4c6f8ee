"""Checkpoints in the background: a copy of weights and moments, and the thread that writes it.

Training waits for the copy only, and on a GPU not even for that: it is made on the device, in the order of
the stream. Everything else happens in the writer thread, beside training: on a GPU the copy travels to pinned
memory on a stream of its own, and the loss of the probe batch is computed from the copied weights, not from
those that move on.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.contract import yield_processor
from trainer.model_fast import LanguageModel

capturing = threading.Lock()
"""Held by whoever records a CUDA graph and by whoever calls CUDA from another thread: a recording forbids
other threads the calls that could block, such as allocations."""
_ALIGNMENT = 16
"""In numbers of 4 bytes: a cache line, at which PyTorch's own tensors begin."""
_DENSE = 1.25
"""Tensors that share a storage are copied as one block if gaps make it no more than so much larger."""


class Taken(NamedTuple):
    """A snapshot in the processor's memory. Its tensors are overwritten by the next :meth:`Snapshot.take`."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    probe_loss: float
    """The probe batch's fp32 loss with these weights, without dropout."""
    first_bad: int


class Snapshot:
    """Weights and moments as they were at :meth:`take`, in buffers that are allocated once and reused.

    `moments` and the model's parameters must stay where they are in memory.
    """

    def __init__(
        self, model: LanguageModel, moments: Mapping[str, Tensor], probe: tuple[Tensor, Tensor]
    ) -> None:
        self._model = model
        self._weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._moments = dict(moments)
        self._probe = probe
        self._twin: LanguageModel | None = None
        self._stream: torch.cuda.Stream | None = None

    def take(self, first_bad: Tensor) -> None:
        """Copy weights, moments and the engine's note of a bad step. Not while :meth:`collect` runs."""
        if self._twin is None:
            self._twin = self._allocate()
            self._first_bad = first_bad.clone()
        torch._foreach_copy_(self._held, self._live)
        self._first_bad.copy_(first_bad)
        if self._stream is not None:
            self._taken.record()

    def put_back(self) -> None:
        """The model's weights and the moments become those that were taken."""
        torch._foreach_copy_(self._live, self._held)

    def collect(self) -> Taken:
        """What was taken. May be called in another thread."""
        assert self._twin is not None
        with capturing if self._stream is not None else nullcontext(), self._aside(), torch.no_grad():
            if self._host is not self._flat:
                self._host.copy_(self._flat, non_blocking=True)
            loss: Tensor = self._twin(*self._probe)[1]
            first_bad = int(self._first_bad.item())
            probe_loss = float(loss.item())
            if self._stream is not None:
                self._stream.synchronize()
        weights, moments = self._views(self._host, self._weights), self._views(self._host, self._moments)
        return Taken(weights, moments, probe_loss, first_bad)

    def _aside(self) -> AbstractContextManager[object]:
        """On the snapshot's own stream, after the copy."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_event(self._taken)
        return torch.cuda.stream(self._stream)

    def _allocate(self) -> LanguageModel:
        """Buffers, and a model whose weights are those in the buffer."""
        tensors = [*self._weights.values(), *self._moments.values()]
        self._live = _blocks(tensors)
        device = tensors[0].device
        size = sum(_padded(block.numel()) for block in self._live)
        self._flat = self._host = torch.zeros(size, device=device)
        if device.type == "cuda":
            self._host = torch.zeros(size, pin_memory=True)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._taken = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._begins: list[int] = []
        place = 0
        for block in self._live:
            self._begins.append(place)
            place += _padded(block.numel())
        self._held = [
            self._flat[begin : begin + block.numel()]
            for begin, block in zip(self._begins, self._live, strict=True)
        ]
        twin = copy.deepcopy(self._model).eval().requires_grad_(False)
        held = self._views(self._flat, self._weights)
        for name, parameter in twin.named_parameters():
            parameter.data = held[name]
        return twin

    def _views(self, flat: Tensor, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The copies of some tensors in a buffer."""
        return {name: self._view(flat, tensor) for name, tensor in named.items()}

    def _view(self, flat: Tensor, tensor: Tensor) -> Tensor:
        address = tensor.data_ptr()
        for begin, block in zip(self._begins, self._live, strict=True):
            offset = (address - block.data_ptr()) // block.element_size()
            if 0 <= offset < block.numel():
                return flat[begin + offset : begin + offset + tensor.numel()].view(tensor.shape)
        raise AssertionError("a tensor that is in no block")


class Writer:
    """Does one piece of work at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=yield_processor)
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; waits for the work before, and raises what that raised."""
        self.wait()
        self._work = self._thread.submit(work)

    def poll(self) -> None:
        """Raise what the work raised, if it has ended."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Return once the work is done; raises what it raised."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> BaseException | None:
        """Wait for the work; what it raised, if that was not told yet. Nothing can be started after it."""
        self._thread.shutdown(wait=True)
        work, self._work = self._work, None
        return work.exception() if work is not None else None


def _blocks(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Flat views that cover the tensors: one for those that lie together in a storage, else one for each.

    So a few large copies do where weights and moments are views of flat buffers.
    """
    shared: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        shared.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    blocks = []
    for group in shared.values():
        begin = min(tensor.storage_offset() for tensor in group)
        size = max(tensor.storage_offset() + tensor.numel() for tensor in group) - begin
        if size <= _DENSE * sum(tensor.numel() for tensor in group):
            blocks.append(group[0].as_strided((size,), (1,), begin))
        else:
            blocks += [tensor.view(-1) for tensor in group]
    return blocks


def _padded(numbers: int) -> int:
    return -(-numbers // _ALIGNMENT) * _ALIGNMENT
