"""When a run counts as stuck. Pure."""

from __future__ import annotations

from typing import Final

from orchestrator.domain.queue import Waiting
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import Phase, RunState

NO_STEP_S: Final = 600.0
"""Time without a step that is always allowed."""
PACES: Final = 20.0
"""Steps that should have been made in the meantime."""
WAIT_S: Final = 600.0
"""Time that a run may wait beside a machine of its own that does nothing."""
LEFT_S: Final = 60.0
"""Time that a run may wait for another machine once it has left one that was away for too long."""


def stands_still(still_s: float, step_s: float | None) -> bool:
    """Whether an attempt has gone too long without a step; `step_s` seconds is what one took."""
    return still_s > max(NO_STEP_S, PACES * (step_s or 0.0))


def should_step(run: RunRecord, attempt: AttemptRecord, step: int | None) -> bool:
    """Whether steps are to be expected of an attempt now. Of a command only once it has told of one."""
    running = run.state == RunState.RUNNING and run.stop is None and attempt.phase == Phase.RUNNING
    if not running or run.attempt != attempt.number:
        return False
    trainer = run.spec.trainer
    if step is None:
        return trainer is not None
    return trainer is None or step < trainer.max_steps


def could_start(waiting: Waiting, now: float) -> bool:
    """Whether a run that waits wants to start now, by itself: it is not held back, and waits for nothing of
    its own choice. `now` is Unix time."""
    if waiting.held or (waiting.not_before is not None and waiting.not_before > now):
        return False
    if waiting.hours is not None and not waiting.hours.admits(now):
        return False
    return not (waiting.shape.best and now < waiting.since + waiting.shape.wait)
