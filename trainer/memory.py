"""Too little memory: what the device said, and on a GPU what would have fitted."""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable

import torch

from trainer.config import TrainerConfig
from trainer.data import Batches
from trainer.device import Hardware
from trainer.engine import EagerEngine
from trainer.errors import TrainerError
from trainer.evaluate import Evaluator
from trainer.graph import UPDATES_UNTIL_RECORDED
from trainer.model_fast import LanguageModel
from trainer.ranks import Ranks


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
    """Advice found by trying: the fewest micro-batches with which updates and an evaluation fit.

    Whoever calls it has let go of everything else that training does not need, the error included, and of the
    engine with its optimizer, which each attempt has of its own. The weights are not what they were.
    """

    def attempt(parts: int) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        tried = config.model_copy(update={"micro_batches": parts})
        engine = EagerEngine(tried, model, batches, hardware)
        evaluator = Evaluator(model, model, batches, hardware, lambda: False, ranks=Ranks(), parts=parts)
        try:
            for step in range(UPDATES_UNTIL_RECORDED):
                engine.update(step)
            evaluator.batch_loss(0)  # beside what was recorded
        finally:
            engine.close()
            model.zero_grad()

    B, parts = config.batch_size, config.micro_batches
    fitting = fitting_parts(B, parts, attempt)
    if fitting is None:
        return f"no number of micro_batches would have fitted; {less_memory(config)}"
    return (
        f"it would have fitted with micro_batches: {fitting}, that is {B // fitting} of the batch's {B} "
        f"sequences at a time instead of {B // parts}"
    )


def fitting_parts(batch_size: int, parts: int, attempt: Callable[[int], None]) -> int | None:
    """The smallest number of micro-batches above `parts` with which `attempt` fits into memory; None: none.

    `attempt` computes one micro-batch of a batch in that many parts. It is called for a few divisors of
    `batch_size` only, found by bisection.
    """
    divisors = [d for d in range(parts + 1, batch_size + 1) if batch_size % d == 0]

    def fits(candidate: int) -> bool:
        try:
            attempt(candidate)
        except RuntimeError as e:
            if gpu_shortage(e) is None:
                raise
            return False
        return True

    place = bisect.bisect_left(divisors, True, key=fits)
    return divisors[place] if place < len(divisors) else None


def less_memory(config: TrainerConfig) -> str:
    """What a user can change."""
    return f"raise micro_batches ({config.micro_batches}) or lower batch_size ({config.batch_size})"
