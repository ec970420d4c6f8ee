from __future__ import annotations

import pytest

from orchestrator.agent.verdict import MAX_MESSAGE, Ending, Stop, judge, judge_opening
from orchestrator.domain.states import Reason
from orchestrator.errors import (
    DamagedError,
    FencedError,
    OrchError,
    Problem,
    SetupError,
    SpecError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from trainer.config import TrainerConfig
from trainer.guards import NOT_FINITE, divergence, non_finite

NET = TrainerConfig(dataset="x")
MOVE = Stop(Reason.MOVED, "ordered", 60.0)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (Ending(0), Reason.COMPLETED),
        (Ending(0, stop=MOVE), Reason.COMPLETED),
        (Ending(75, stop=MOVE), Reason.MOVED),
        (Ending(75), Reason.SHUTDOWN),
        (Ending(75, at_rung=True), Reason.RUNG),
        (Ending(75, stop=MOVE, at_rung=True), Reason.MOVED),
        (Ending(0, at_rung=True), Reason.COMPLETED),
        (Ending(1, at_rung=True), Reason.PROGRAM_FAILED),
        (Ending(0, stop=Stop(Reason.PRUNED, "pruned", 5)), Reason.PRUNED),
        (Ending(78), Reason.USER_ERROR),
        (Ending(78, stop=MOVE), Reason.USER_ERROR),
        (Ending(1), Reason.PROGRAM_FAILED),
        (Ending(1, stop=MOVE), Reason.MOVED),
        (Ending(-15, stop=MOVE), Reason.MOVED),
        (Ending(-9, stop=MOVE, overran=True), Reason.MOVED),
        (Ending(-9), Reason.PROGRAM_KILLED),
        (Ending(137), Reason.PROGRAM_KILLED),
        (Ending(-11), Reason.PROGRAM_KILLED),
        (Ending(200), Reason.PROGRAM_FAILED),
        (Ending(-9, out_of_memory=True), Reason.HOST_MEMORY),
        (Ending(-11, out_of_memory=True), Reason.PROGRAM_KILLED),
        (Ending(78, last_lines=("trainer: out of GPU memory: CUDA out of memory",)), Reason.GPU_MEMORY),
        (Ending(1, last_lines=("torch.OutOfMemoryError: CUDA out of memory. Tried",)), Reason.GPU_MEMORY),
        (Ending(1, last_lines=("CUDA out of memory, retrying", *"abc")), Reason.PROGRAM_FAILED),
        (Ending(0, last_lines=("CUDA out of memory",)), Reason.COMPLETED),
        (Ending(1, last_lines=(f"trainer: {divergence(NOT_FINITE, 7, NET)}",)), Reason.NOT_FINITE),
        (Ending(1, last_lines=(f"trainer: {non_finite(float('nan'), 1.0)}",)), Reason.NOT_FINITE),
        (Ending(1, last_lines=("the loss is 3.2",)), Reason.PROGRAM_FAILED),
        (Ending(None, spawn_error="no such file"), Reason.USER_ERROR),
        (Ending(None, stop=MOVE), Reason.MOVED),
        (Ending(0, stop=Stop(Reason.FENCED, "taken", 5)), Reason.FENCED),
        (Ending(0, stop=Stop(Reason.CANCELLED, "cancelled", 5)), Reason.CANCELLED),
        (Ending(75, stop=Stop(Reason.TIME_LIMIT, "over", 60)), Reason.TIME_LIMIT),
        (Ending(0, unsaved=(7, StoreFullError("full"))), Reason.STORE_FULL),
        (Ending(0, unsaved=(7, StoreUnavailableError("away"))), Reason.STORE_FAILED),
        (Ending(0, unsaved=(7, StoreError("no files"))), Reason.USER_ERROR),
        (Ending(75, stop=MOVE, unsaved=(7, StoreUnavailableError("away"))), Reason.MOVED),
    ],
)
def test_reasons(ending: Ending, reason: Reason) -> None:
    assert judge(ending).reason is reason


def test_messages_say_what_a_person_needs() -> None:
    assert judge(Ending(78, last_lines=("a", "set dataset"))).message == "set dataset"
    assert "ran out of memory" in judge(Ending(-9, out_of_memory=True)).message
    assert "SIGSEGV" in judge(Ending(139)).message
    assert "did not end within 60 s" in judge(Ending(-9, stop=MOVE, overran=True)).message
    assert "did not say that it saved (ended by SIGTERM)" in judge(Ending(-15, stop=MOVE)).message
    assert "step 7 could not be stored: away" in judge(Ending(0, unsaved=(7, OrchError("away")))).message
    assert judge(Ending(1, last_lines=("x", "ValueError: y"))).message == "exit code 1: x\nValueError: y"


def test_messages_are_bounded_and_keep_their_end() -> None:
    message = judge(Ending(1, last_lines=("x" * 10_000, "ValueError: y"))).message
    assert len(message) <= MAX_MESSAGE
    assert message.endswith("ValueError: y")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FencedError("x"), Reason.FENCED),
        (StoreFullError("x"), Reason.STORE_FULL),
        (StoreUnavailableError("x"), Reason.STORE_FAILED),
        (DamagedError("x"), Reason.STORE_FAILED),
        (SpecError([Problem("", 0, 0, "resume_from", "no such run")]), Reason.USER_ERROR),
        (SetupError("x"), Reason.NOT_STARTED),
        (OrchError("x"), Reason.NOT_STARTED),
    ],
)
def test_reasons_of_a_failed_beginning(error: OrchError, reason: Reason) -> None:
    assert judge_opening(error).reason is reason


def test_the_remedy_is_part_of_the_message() -> None:
    assert judge_opening(StoreUnavailableError("away.", remedy="Mount it.")).message == "away. Mount it."
