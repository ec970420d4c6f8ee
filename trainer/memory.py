"""Too little memory: what the device said, and on a GPU what would have fitted."""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable

import torch

from trainer.config import TrainerConfig
from trainer.data import Batches
from trainer.device import Hardware
from trainer.errors import TrainerError
from trainer.model_fast import LanguageModel


def gpu_shortage(error: RuntimeError, share: int | None = None) -> str | None:
    """The first two sentences of a GPU's out-of-memory error, also where it spoiled the recording of a CUDA
    graph; None for any other error. `share` is how many bytes this process may use, where not all."""
    memory = error if isinstance(error, torch.OutOfMemoryError) else error.__context__
    if not isinstance(memory, torch.OutOfMemoryError):
        return None
    told = ". ".join(str(memory).split(". ")[:2])  # the rest are figures of the allocator
    return told if share is None else f"this run's share is gpu_memory: {share / 2**30:.2f}GiB. {told}"


def explain(error: RuntimeError, config: TrainerConfig) -> None:
    """Raise a TrainerError if it is the processor's memory that is short."""
    reason = str(error).strip().partition("\n")[0]
    if "DefaultCPUAllocator" in reason:
        raise TrainerError(f"out of memory: {reason}; {less_memory(config)}") from error


def what_fits(config: TrainerConfig, model: LanguageModel, batches: Batches, hardware: Hardware) -> str:
    """Advice found by trying: the fewest micro-batches with which an update and an evaluation fit.

    Whoever calls it has let go of everything else that is not needed for an update, the error included.
    """
    gc.collect()
    on_gpu = hardware.device.type == "cuda"

    def attempt(parts: int) -> None:
        if on_gpu:
            torch.cuda.empty_cache()
        try:
            x, y = batches.train(0)
            for _ in range(2):  # the second adds to the first one's gradients
                with hardware.autocast():
                    loss = model(x[::parts], y[::parts])[1]
                loss.backward()
            del loss
            kept = _like_a_graph() if config.cuda_graph and on_gpu else None
            with torch.no_grad(), hardware.autocast():  # evaluations come beside it
                model(x[::parts], y[::parts])
            del kept
        finally:
            model.zero_grad()

    B, parts = config.batch_size, config.micro_batches
    fitting = fitting_parts(B, parts, attempt)
    if fitting is None:
        return f"no number of micro_batches would have fitted; {less_memory(config)}"
    return (
        f"it would have fitted with micro_batches: {fitting}, that is {B // fitting} of the batch's {B} "
        f"sequences at a time instead of {B // parts}"
    )


def _like_a_graph() -> torch.Tensor:
    """As much memory as a recorded update would keep to itself: all that the one before this call took."""
    before = torch.cuda.memory_allocated()
    taken = torch.cuda.memory_reserved() - before
    torch.cuda.empty_cache()
    return torch.empty(taken, dtype=torch.uint8, device="cuda")


def fitting_parts(batch_size: int, parts: int, attempt: Callable[[int], None]) -> int | None:
    """The smallest number of micro-batches above `parts` with which `attempt` fits into memory; None: none.

    `attempt` computes one micro-batch of a batch in that many parts. It is called for a few divisors of
    `batch_size` only, found by bisection.
    """
    divisors = [d for d in range(parts + 1, batch_size + 1) if batch_size % d == 0]

    def fits(candidate: int) -> bool:
        try:
            attempt(candidate)
        except torch.OutOfMemoryError:
            return False
        return True

    place = bisect.bisect_left(divisors, True, key=fits)
    return divisors[place] if place < len(divisors) else None


def less_memory(config: TrainerConfig) -> str:
    """What a user can change."""
    return f"raise micro_batches ({config.micro_batches}) or lower batch_size ({config.batch_size})"
