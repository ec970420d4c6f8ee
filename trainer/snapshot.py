"""Checkpoints in the background: a copy of weights and moments, and the thread that writes it.

Training waits for the copy only: on a GPU one made on the device, in the order of its stream. Everything else
happens in the writer thread, beside training: on a GPU the copy travels to pinned memory on a stream of its
own, and the loss of the probe batch is computed from the copied weights, not from those that move on.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from trainer.model_fast import LanguageModel

capturing = threading.Lock()
"""Held by whoever records a CUDA graph and by whoever calls CUDA from another thread: a recording forbids
other threads the calls that could block, such as allocations."""
_ALIGNMENT = 16
"""In numbers of 4 bytes: a cache line, at which PyTorch's own tensors begin."""


class Snapshot:
    """Weights and moments as they were at :meth:`take`, in buffers that are allocated once and reused."""

    def __init__(self, model: LanguageModel, probe: tuple[Tensor, Tensor]) -> None:
        self._model = model
        self._probe = probe
        self._twin: LanguageModel | None = None
        self._stream: torch.cuda.Stream | None = None

    def take(self, moments: Mapping[str, Tensor]) -> None:
        """Copy the model's weights and the moments. Not while :meth:`collect` runs."""
        weights = dict(self._model.named_parameters())
        if self._twin is None:
            self._allocate(weights, moments)
        with torch.no_grad():
            torch._foreach_copy_([*self._weights.values(), *self._moments.values()], _all(weights, moments))
        if self._stream is not None:
            self._taken.record()

    def put_back(self, moments: Mapping[str, Tensor]) -> None:
        """The model's weights and the moments become those that were taken."""
        weights = dict(self._model.named_parameters())
        with torch.no_grad():
            torch._foreach_copy_(_all(weights, moments), [*self._weights.values(), *self._moments.values()])

    def collect(self) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
        """The copied weights and moments in the processor's memory, and the probe batch's fp32 loss.

        May be called in another thread. The tensors are overwritten by the next :meth:`take`.
        """
        assert self._twin is not None
        with capturing if self._stream is not None else nullcontext(), self._aside(), torch.no_grad():
            if self._host is not self._flat:
                self._host.copy_(self._flat, non_blocking=True)
            loss: Tensor = self._twin(*self._probe)[1]
            value = float(loss.item())
            if self._stream is not None:
                self._stream.synchronize()
        return _views(self._host, self._weights), _views(self._host, self._moments), value

    def _aside(self) -> AbstractContextManager[object]:
        """On the snapshot's own stream, after the copy."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_event(self._taken)
        return torch.cuda.stream(self._stream)

    def _allocate(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        tensors = _all(weights, moments)
        assert all(tensor.dtype == torch.float32 for tensor in tensors)
        device = tensors[0].device
        size = sum(_padded(tensor) for tensor in tensors)
        self._flat = self._host = torch.empty(size, device=device)
        if device.type == "cuda":
            self._host = torch.empty(size, pin_memory=True)
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._taken = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._weights: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}
        begin = 0
        for views, named in ((self._weights, weights), (self._moments, moments)):
            for name, tensor in named.items():
                views[name] = self._flat[begin : begin + tensor.numel()].view(tensor.shape)
                begin += _padded(tensor)
        twin = copy.deepcopy(self._model).eval().requires_grad_(False)
        for name, parameter in twin.named_parameters():
            parameter.data = self._weights[name]
        self._twin = twin


class Writer:
    """Does one piece of work at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; waits for the work before.

        Raises:
            what the work before raised.
        """
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


def _all(*named: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensor for tensors in named for tensor in tensors.values()]


def _padded(tensor: Tensor) -> int:
    return -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT


def _views(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same places in another buffer."""
    return {
        name: flat[view.storage_offset() : view.storage_offset() + view.numel()].view(view.shape)
        for name, view in like.items()
    }
