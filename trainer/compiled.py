"""The compiled step: a gradient and an update as libraries, run by threads or recorded as a CUDA graph.

On a CPU each of the granted threads computes the gradient of its own part of the batch, one after the other
of pieces that stay in its cache, into a row of its own; the update sums the rows. So nothing is added in an
order that depends on chance, and threads wait for each other twice per step instead of at every operation.

On a GPU the whole step is one CUDA graph. What changes from step to step is packed into pinned memory and
sent ahead of it, and nothing waits for the device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.data import Batches
from trainer.device import Hardware
from trainer.dropout import signed
from trainer.flat import Buffers
from trainer.muon import MuonAdamW
from trainer.optimizer import AdamW
from trainer.orders import Order, Programs, machine, settings_of, versions
from trainer.programs import RATES, TAIL, Part, destinations, step_rates
from trainer.ranks import Ranks
from trainer.rng import Stream, stream_seed
from trainer.snapshot import capturing

_CACHED_TOKENS = 2048
"""Tokens that a CPU thread works on at once: their activations stay in its cache."""
_WARM_UP_STEPS = 3
"""Libraries set themselves up in the first steps, which must not be recorded."""
_KERNELS_ON = {(9, 0)}
"""Compute capabilities of the GPUs for which our kernels' blocks were chosen."""
_KERNELS_FROM = 1 << 20
"""Smallest residual stream, in numbers, that is not faster without them."""
_HEADS = (16, 32, 64, 128)
"""Channels of a head that they know."""
_SLOTS = 64
"""Steps whose inputs may be on their way to a GPU."""


def workers(config: TrainerConfig, hardware: Hardware, world: int) -> int:
    """Threads that compute gradients: the largest number that divides this rank's sequences."""
    if hardware.device.type != "cpu":
        return 1
    sequences = config.batch_size // world
    return max(n for n in range(1, min(hardware.threads, sequences) + 1) if sequences % n == 0)


def order_for(
    config: TrainerConfig, vocab_size: int, tokens: Tensor, hardware: Hardware, ranks: Ranks
) -> Order:
    """What has to be compiled for a run."""
    count = workers(config, hardware, ranks.world)
    sequences = config.batch_size // ranks.world // count
    pieces = config.micro_batches
    if hardware.device.type == "cpu":
        pieces = max(pieces, sequences * config.block_size // _CACHED_TOKENS)
    pieces = min(n for n in range(1, sequences + 1) if sequences % n == 0 and n >= min(pieces, sequences))
    return Order(
        settings=settings_of(config),
        vocab_size=vocab_size,
        tokens=str(tokens.dtype).removeprefix("torch."),
        length=len(tokens),
        device=hardware.device.type,
        dtype=str(hardware.dtype).removeprefix("torch."),
        part=Part(sequences // pieces, count * pieces, ranks.world, adds=pieces > 1),
        rows=count if ranks.world == 1 else 1,
        kernels=_takes_kernels(config, hardware, sequences // pieces),
        threads=hardware.threads if hardware.device.type == "cpu" else 1,
        machine=machine(hardware.device, hardware.name()),
        versions=versions(),
    )


def _takes_kernels(config: TrainerConfig, hardware: Hardware, sequences: int) -> bool:
    """Whether to use our own kernels: they are for bf16, and come with CUDA builds of PyTorch."""
    if not config.gpu_kernels or hardware.device.type != "cuda" or hardware.dtype != torch.bfloat16:
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    if config.gpu_kernels == "auto":
        fits = config.n_embd % 16 == 0 and config.n_embd // config.n_head in _HEADS
        large = sequences * config.block_size * config.n_embd >= _KERNELS_FROM
        return fits and large and torch.cuda.get_device_capability(hardware.device) in _KERNELS_ON
    return True


class CompiledEngine:
    """Makes updates by the programs of an order, on the weights and moments in `buffers`."""

    def __init__(
        self,
        config: TrainerConfig,
        order: Order,
        programs: Programs,
        buffers: Buffers,
        optimizer: AdamW | MuonAdamW,
        batches: Batches,
        hardware: Hardware,
        ranks: Ranks,
        first_bad: Tensor,
    ) -> None:
        self.optimizer = optimizer
        self.first_bad = first_bad
        self._config = config
        self._programs = programs
        self._buffers = buffers
        self._batches = batches
        self._ranks = ranks
        self._part = order.part
        self._workers = workers(config, hardware, ranks.world)
        device = hardware.device
        self._inputs = _Inputs(order.part, device)
        self._gradients = torch.zeros(self._workers, buffers.layout.size + TAIL, device=device)
        self._rows = [destinations(buffers.layout, row) for row in self._gradients]
        self._results = torch.zeros(2, device=device)
        self._keep = (torch.zeros(1, device=device), torch.ones(1, device=device))
        self._tokens = batches.tokens("train")
        self._seeds = device.type == "cuda" and not order.kernels and bool(config.dropout)
        self._hardware = hardware
        if device.type == "cuda":
            self._step: _Threads | _Recorded = _Recorded(self._all_on_device)
        else:
            self._step = _Threads(self._workers, hardware.threads)

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`trainer.engine.Engine`."""
        seed = stream_seed(self._config.seed, Stream.DROPOUT, step)
        if self._seeds:  # PyTorch's attention draws its dropout from the device's generator
            self._hardware.seed_dropout(stream_seed(seed, Stream.DROPOUT, self._ranks.rank))
        self._inputs.fill(
            step,
            self._batches.starts(step, 1)[0].numpy(),
            seed,
            self._ranks,
            step_rates(self._config, step),
        )
        if isinstance(self._step, _Recorded):
            with torch.no_grad():
                self._step()
        else:
            self._step.run(self._gradient_of)
            self._finish()
        return self._results[0], self._results[1]

    def close(self) -> None:
        """End its threads, and let go of what was recorded."""
        self._step.close()

    def _gradient_of(self, worker: int) -> None:
        """The sum over one worker's pieces, in order, in its row."""
        for unit in range(worker, self._part.units, self._workers):
            self._programs.gradient(
                self._buffers.weights,
                self._tokens,
                self._inputs.starts[unit],
                self._inputs.noise[unit],
                self._keep[unit >= self._workers],
                *self._rows[worker],
            )

    def _finish(self) -> None:
        gradients = self._gradients
        if self._ranks.world > 1:
            if self._workers > 1:
                torch.sum(gradients, 0, out=gradients[0])
            gradients = gradients[:1]
            self._ranks.sum_gradient(gradients[0])
        self._programs.update(
            self._buffers.weights,
            gradients,
            self._buffers.first,
            self._buffers.second,
            self._inputs.rates,
            self._inputs.step,
            self.first_bad,
            self._results,
        )

    def _all_on_device(self) -> None:
        self._gradient_of(0)
        self._finish()


class _Inputs:
    """What changes from step to step, on the device: a view for each of the programs' inputs.

    On a GPU, steps are packed into pinned slots in turn and sent in one copy each.
    """

    def __init__(self, part: Part, device: torch.device) -> None:
        self._part = part
        row = -(-part.sequences // 8) * 8  # rows begin at cache lines
        sizes = [part.units * row * 8, part.units * 64, 64, 64]
        ends = np.cumsum(sizes)
        bounds = list(zip([0, *ends], ends, strict=False))
        self._packed = torch.zeros(int(ends[-1]), dtype=torch.uint8, device=device)
        self.starts, self.noise, self.rates, self.step = self._views(self._packed, bounds, row)
        self._pinned = device.type == "cuda"
        slots = _SLOTS if self._pinned else 0
        self._slots = [torch.zeros_like(self._packed, device="cpu", pin_memory=True) for _ in range(slots)]
        self._filled = [self._views(slot, bounds, row) for slot in self._slots]
        self._sent = [torch.cuda.Event() for _ in self._slots]  # type: ignore[no-untyped-call]
        self._count = 0

    def _views(
        self, packed: Tensor, bounds: list[tuple[int, int]], row: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        starts, noise, rates, step = (packed[begin:end] for begin, end in bounds)
        units, sequences = self._part.units, self._part.sequences
        return (
            starts.view(torch.int64).view(units, row)[:, :sequences],
            noise.view(torch.int32).view(units, 16)[:, :3],
            rates.view(torch.float32)[:RATES],
            step.view(torch.int64)[:1],
        )

    def fill(self, step: int, starts: np.ndarray, seed: int, ranks: Ranks, rates: tuple[float, ...]) -> None:
        """Those of the update that leads on from `step`; `starts` (b,) of this rank's sequences."""
        slot = self._count % _SLOTS
        self._count += 1
        if self._pinned and self._count > _SLOTS:
            self._sent[slot].synchronize()
        places, noise, rate, number = (
            self._filled[slot] if self._pinned else (self.starts, self.noise, self.rates, self.step)
        )
        units = self._part.units
        places.numpy()[:] = starts.reshape(-1, units).T  # unit u has the sequences u, u + units, ...
        noise.numpy()[:, 0] = signed(seed)
        noise.numpy()[:, 1] = ranks.rank + ranks.world * np.arange(units)
        noise.numpy()[:, 2] = ranks.world * units
        rate.numpy()[:] = rates
        number.numpy()[:] = step
        if self._pinned:
            self._packed.copy_(self._slots[slot], non_blocking=True)
            self._sent[slot].record()


class _Threads:
    """Threads that compute with one thread each."""

    def __init__(self, count: int, threads: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, "gradient", initializer=torch.set_num_threads, initargs=(1,))
        list(self._pool.map(_meet, range(count)))
        torch.set_num_threads(threads)  # the setting of threads that begin later, too

    def run(self, work: Callable[[int], None]) -> None:
        """Call `work` with 0, 1, ... at once; returns when all are done."""
        list(self._pool.map(work, range(self._count)))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _meet(_: int) -> None:
    torch.get_num_threads()


class _Recorded:
    """Work on a GPU that is recorded when it was called a few times, and replayed from then on."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        self._calls += 1
        if self._calls <= _WARM_UP_STEPS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._work()
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            torch.cuda.empty_cache()  # the graph keeps memory of its own
            with capturing, torch.cuda.graph(self._graph, stream=self._stream):
                self._work()
        self._graph.replay()

    def close(self) -> None:
        """Let go of the record: what it calls, NCCL for one, waits for that before it can end."""
        if self._graph is not None:
            self._graph.reset()
            self._graph = None
