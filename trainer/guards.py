"""What keeps a run from being lost or wasted: divergence and overfitting. Decisions only.

A run that rewinds goes back to its last checkpoint and leaves out the batches from there to the bad one; the
sequence of the data goes on after them. Which batches were left out is part of the checkpoint's state, so
that a resumed run sees the same sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from trainer.config import StopWhen, TrainerConfig

NOT_FINITE = "the training loss or gradient is not finite"


class Skip(BaseModel):
    """From the update at `step` on, the next `batches` of the sequence are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Annotated[int, Field(ge=0)]
    batches: Annotated[int, Field(gt=0, le=1 << 48)]


def batch_index(step: int, skipped: Sequence[Skip]) -> int:
    """Which batch of the sequence the update from `step` to `step` + 1 takes; `step` itself without skips."""
    return step + sum(skip.batches for skip in skipped if skip.step <= step)


def rewound(skipped: Sequence[Skip], to: int, bad: int) -> tuple[Skip, ...]:
    """The skips of a run that goes back to step `to`, because the batch of the update at step `bad` was bad.

    Skips that began later than `to` cannot be in `skipped`: a run goes back to the newest checkpoint only.
    """
    assert to <= bad
    return (*skipped, Skip(step=to, batches=bad + 1 - to))


def non_finite(loss: float, norm: float) -> str | None:
    """What is wrong with the values of an update, None if nothing is."""
    if not math.isfinite(loss):
        return f"the training loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient norm is {norm}"
    return None


def unsound(first_bad: int, probe_loss: float, step: int) -> tuple[str, int] | None:
    """What is wrong with a state that is to be saved, and since which step; None if nothing is."""
    if first_bad < step:
        return NOT_FINITE, first_bad
    if not math.isfinite(probe_loss):
        return f"the probe loss is {probe_loss}", step
    return None


def divergence(what: str, step: int, config: TrainerConfig, rewinds: int = 0) -> str:
    """The explanation of a run that ends because it diverged."""
    after = f" after {rewinds} rewinds (max_rewinds {config.max_rewinds})" if rewinds else ""
    return (
        f"{what} at step {step}: training diverged{after}, and this step was not saved; lower "
        f"learning_rate ({config.learning_rate}) or set grad_clip ({config.grad_clip})"
    )


def enough(rule: StopWhen | None, val_loss: float | None, since_best: int) -> str | None:
    """Why training may end early; None: it goes on.

    `val_loss` is the newest evaluation's, `since_best` the number of evaluations after the best one.
    """
    if rule is None or val_loss is None:
        return None
    if rule.val_loss is not None and val_loss <= rule.val_loss:
        return f"val loss {val_loss:.4f} is at most {rule.val_loss}"
    if rule.patience is not None and since_best >= rule.patience:
        return f"no lower val loss in {since_best} evaluations"
    return None
