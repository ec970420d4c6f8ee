"""One training update as a CUDA graph: the same kernels with the same results, launched by one call.

A small model's step on a GPU is mostly Python launching several hundred kernels, each of which takes
microseconds. A graph records them once and replays them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.snapshot import capturing

_WARM_UP_CALLS = 3
"""Libraries set themselves up and pick kernels in the first calls, which must not be recorded."""
UPDATES_UNTIL_RECORDED = _WARM_UP_CALLS + 1
"""After so many, an update takes all the memory that it will ever take."""

Compute = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From inputs and targets (B, T) to the loss and the gradient norm; changes weights and moments in place."""


class GraphedUpdate:
    """Calls `compute` a few times, then records it and replays the record.

    `compute` must always do the same to tensors at the same addresses, and decide nothing by their values.
    Random numbers follow the seed that the device's generator was given before the call. The tensors that a
    call returns are overwritten by the next call.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self._calls += 1
        if self._calls <= _WARM_UP_CALLS:
            return self._warm_up(x, y)
        if self._graph is None:
            self._graph = self._record(x, y)
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        return self._results

    def close(self) -> None:
        """Let go of the record: what it calls, NCCL for one, waits for that before it can end."""
        if self._graph is not None:
            self._graph.reset()
            self._graph = None

    def _warm_up(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """On the recording's stream: autograd remembers the stream of a weight's first gradient."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            results = self._compute(x, y)
        torch.cuda.current_stream().wait_stream(self._stream)
        return results

    def _record(self, x: Tensor, y: Tensor) -> torch.cuda.CUDAGraph:
        self._x, self._y = x.clone(), y.clone()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # the graph keeps memory of its own
        with capturing, torch.cuda.graph(graph, stream=self._stream):
            self._results = self._compute(self._x, self._y)
        return graph
