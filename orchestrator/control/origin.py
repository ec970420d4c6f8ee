"""Where a new run begins: finds the checkpoint that `resume_from` names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.errors import NotFoundError
from orchestrator.store.checkpoints import checkpoints
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import ObjectStore


@dataclass(frozen=True)
class Origin:
    """A checkpoint to begin from; empty for a fresh run."""

    run_id: str | None = None
    step: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        return self.path or (f"{self.run_id}@{self.step}" if self.run_id else "")


def resolve_origin(resume_from: str | None, ledger: Ledger, store: ObjectStore) -> Origin:
    """The checkpoint that was meant, fixed at this moment; NotFoundError says what there is instead.

    A text with a slash is the path of a checkpoint directory on the node; `run` is that run's newest
    checkpoint, `run@step` the one of this step.
    """
    if not resume_from:
        return Origin()
    if "/" in resume_from or resume_from.startswith((".", "~")):
        return Origin(path=resume_from)
    match = re.fullmatch(r"([^@]+)(?:@(\d+))?", resume_from)
    if match is None:
        raise NotFoundError(
            f"resume_from: {resume_from!r} names no checkpoint",
            remedy="give a run, run@step, or the path of a checkpoint directory",
        )
    with ledger.read() as transaction:
        run = transaction.find(match[1])
    kept = [record.step for record in checkpoints(store, run.id) if not record.retired]
    if not kept:
        raise NotFoundError(f"resume_from: run {run.spec.name} ({run.id}) has no checkpoint yet")
    step = int(match[2]) if match[2] else max(kept)
    if step not in kept:
        there = ", ".join(map(str, kept))
        raise NotFoundError(
            f"resume_from: run {run.spec.name} has no checkpoint of step {step}", remedy=f"it has: {there}"
        )
    return Origin(run_id=run.id, step=step)
