"""Where a new run begins: finds the checkpoint that `resume_from` names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.errors import NotFoundError
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import ObjectStore
from orchestrator.store.records import check_run_id, import_id
from orchestrator.store.runlog import RunLog


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
    checkpoint, `run@step` the one of this step, `run@tag` the one with this tag. `import:name` is what was
    brought in under this name.
    """
    if not resume_from:
        return Origin()
    if "/" in resume_from or resume_from.startswith((".", "~")):
        return Origin(path=resume_from)
    match = re.fullmatch(r"(import:)?([^@:]+)(?:@([^@]+))?", resume_from)
    if match is None:
        raise NotFoundError(
            f"resume_from: {resume_from!r} names no checkpoint",
            remedy="give a run, run@step, run@tag, import:name, or the path of a checkpoint directory",
        )
    imported, ref, word = match.groups()
    if imported:
        run_id, what = check_run_id(import_id(ref)), f"import {ref}"
    else:
        with ledger.read() as transaction:
            run = transaction.find(ref)
        run_id, what = run.id, f"run {run.spec.name} ({run.id})"
    history = RunLog(store, run_id).history()
    if not history.live:
        raise NotFoundError(f"resume_from: {what} has no checkpoint yet")
    try:
        step = history.named(word).step if word else max(record.step for record in history.live)
    except NotFoundError as error:
        raise NotFoundError(f"resume_from: {what}: {error.message}", remedy=error.remedy) from error
    return Origin(run_id=run_id, step=step)
