"""The processes that train one model together: torchrun's environment, gloo on processors, NCCL on GPUs.

A process alone is :class:`Ranks`, whose methods answer at once. Control messages travel over gloo, on GPUs
too, so that they do not wait for the device.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from trainer.errors import LostRank, UserError
from trainer.vigil import Vigil

PATIENCE_S = 300.0
"""How long a rank waits for the others before it ends with an error: longer than to compile a step."""
_ASK_WITHIN_S = 0.5
"""Ranks ask each other whether to stop about this often; see :class:`Accord`."""


class Ranks:
    """One process alone. What several do differently is in :class:`Gang`."""

    rank = 0
    world = 1

    @property
    def is_writer(self) -> bool:
        """Whether this process logs, prints and writes checkpoints: rank 0."""
        return self.rank == 0

    def sum_gradient(self, flat: Tensor) -> None:
        """Replace a flat tensor on the training device by its sum over the ranks, the same bits on each.

        On a GPU it is queued on the current stream and can be recorded in a CUDA graph.
        """

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag

    def totals(self, *values: float) -> list[float]:
        """Each value's sum over the ranks."""
        return list(values)

    def largest(self, *values: float) -> list[float]:
        """Each value's maximum over the ranks."""
        return list(values)

    def mean(self, value: float) -> float:
        """The mean over the ranks."""
        return self.totals(value)[0] / self.world

    def same(self, *values: float) -> bool:
        """Whether each value is the same on all ranks."""
        most = self.largest(*values, *(-value for value in values))
        return all(most[i] == -most[i + len(values)] for i in range(len(values)))

    def broadcast(self, value: float) -> float:
        """Rank 0's value."""
        return value

    def barrier(self) -> None:
        """Return once every rank is here."""

    def close(self) -> None:
        """Leave. No method may be called after it."""


class Gang(Ranks):
    """Several processes.

    Every method must be called by all ranks in the same order. Each raises LostRank when a rank has ended
    or does not answer within the patience, except that a GPU's :meth:`sum_gradient` is only queued: there it
    is the next control message that raises, or the process ends while it waits for its GPU (see
    :mod:`trainer.vigil`).
    """

    def __init__(self, rank: int, world: int, device: torch.device, patience_s: float = PATIENCE_S) -> None:
        import torch.distributed as distributed

        self.rank = rank
        self.world = world
        self._distributed = distributed
        self._patience_s = patience_s
        self._vigil: Vigil | None = None
        if device.type == "cuda":
            _on_gpus.add(self)
            backend = "cpu:gloo,cuda:nccl"
        else:
            # Gloo's threads must end before Python does: one that later lets go of a tensor aborts it all.
            atexit.register(self.close)
            backend = "gloo"
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        with self._translated(f"cannot meet the other ranks at {where}"):
            distributed.init_process_group(
                backend, rank=rank, world_size=world, timeout=timedelta(seconds=patience_s)
            )
            address, gpus = os.environ["MASTER_ADDR"], device.type == "cuda"
            self._vigil = Vigil(rank, world, address, self.broadcast, patience_s) if gpus else None

    def sum_gradient(self, flat: Tensor) -> None:
        """See :class:`Ranks`."""
        with self._translated():
            self._distributed.all_reduce(flat)

    def agree(self, flag: bool) -> bool:
        """See :class:`Ranks`."""
        return self.largest(float(flag))[0] > 0.0

    def totals(self, *values: float) -> list[float]:
        """See :class:`Ranks`."""
        return self._reduce(values, self._distributed.ReduceOp.SUM)

    def largest(self, *values: float) -> list[float]:
        """See :class:`Ranks`."""
        return self._reduce(values, self._distributed.ReduceOp.MAX)

    def broadcast(self, value: float) -> float:
        """See :class:`Ranks`."""
        message = torch.tensor([value], dtype=torch.float64)
        with self._translated():
            self._distributed.broadcast(message, src=0)
        return float(message.item())

    def barrier(self) -> None:
        """See :class:`Ranks`."""
        self.totals(0.0)  # distributed.barrier() would wait for the GPUs as well

    def close(self) -> None:
        """See :class:`Ranks`."""
        if self._vigil is not None:
            self._vigil.leave()
        if self._distributed.is_initialized():
            self._distributed.destroy_process_group()
        _on_gpus.discard(self)

    def _reduce(self, values: tuple[float, ...], operation: Any) -> list[float]:
        message = torch.tensor(values, dtype=torch.float64)
        with self._translated():
            self._distributed.all_reduce(message, op=operation)
        result: list[float] = message.tolist()
        return result

    @contextmanager
    def _translated(self, what: str = "lost another rank") -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:  # torch.distributed's own errors, and gloo's, are RuntimeErrors
            reason = str(e).strip().partition("\n")[0]
            raise LostRank(
                f"rank {self.rank} of {self.world} {what}: it has ended, or did not answer within "
                f"{self._patience_s:.0f} s ({reason})"
            ) from e


_on_gpus: set[Gang] = set()


def entangled() -> bool:
    """Whether this process has not left its ranks on GPUs, because it failed or they did.

    Then it can only end at once: its GPU may be waiting for another rank, and NCCL would wait for its GPU.
    """
    return bool(_on_gpus)


def join(device: torch.device, env: Mapping[str, str] | None = None, patience_s: float = PATIENCE_S) -> Ranks:
    """The ranks that the environment describes; on a GPU, this rank's GPU becomes the current one.

    Raises:
        UserError: the environment names several ranks but not how to reach them.
        LostRank: they do not come within the patience.
    """
    env = os.environ if env is None else env
    world = _number(env, "WORLD_SIZE", 1)
    if world <= 1:
        return Ranks()
    missing = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not env.get(key)]
    if missing:
        raise UserError(f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set; start it with torchrun")
    rank = _number(env, "RANK", 0)
    if not 0 <= rank < world:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is {world}")
    if device.type == "cuda" and (visible := torch.cuda.device_count()) > 1:
        local = _number(env, "LOCAL_RANK", 0)
        if local >= visible:
            raise UserError(f"LOCAL_RANK is {local}, but this machine shows {visible} GPUs")
        torch.cuda.set_device(local)
    return Gang(rank, world, device, patience_s)


def _number(env: Mapping[str, str], key: str, default: int) -> int:
    text = env.get(key) or str(default)
    try:
        return int(text)
    except ValueError as e:
        raise UserError(f"{key} is {text!r}, expected a whole number") from e


@dataclass
class Accord:
    """When and what ranks decide together: to stop, and to save because time has passed.

    One process decides at each step. Several ask each other at steps that all of them know beforehand, spaced
    so that about half a second passes between two of them however long a step takes: a message at every step
    would keep a fast GPU waiting.
    """

    ranks: Ranks
    clock: Callable[[], float] = time.monotonic
    stop: bool = False
    """Whether the ranks have agreed to stop; it stays so."""
    _next: int = 0
    _spacing: int = 1
    _asked_at: float = field(default=0.0)

    def ask(self, step: int, stop: bool, save: bool) -> bool:
        """Whether to save now; `stop` and `save` are this rank's own wishes. Sets :attr:`stop`."""
        if self.ranks.world == 1:
            self.stop = self.stop or stop
            return save
        if step < self._next:
            return False
        now = self.clock()
        stopping, saving, took_s = self.ranks.largest(float(stop), float(save), now - self._asked_at)
        self._asked_at = now
        if took_s > 2 * _ASK_WITHIN_S:
            self._spacing = max(1, self._spacing // 2)
        elif took_s < _ASK_WITHIN_S:
            self._spacing *= 2
        self._next = step + self._spacing
        self.stop = self.stop or stopping > 0.0
        return saving > 0.0

    def rewound(self, step: int) -> None:
        """The next question is at `step`."""
        self._next = step
