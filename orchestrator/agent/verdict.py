"""Why an attempt ended, from what is known at its end. Pure."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from orchestrator.contract import EXIT_LOST_RANK, EXIT_SAVED, EXIT_USER_ERROR
from orchestrator.domain.states import ENDING, Reason
from orchestrator.errors import (
    FencedError,
    NotFoundError,
    OrchError,
    SpecError,
    StoreError,
    StoreFullError,
)
from orchestrator.messages_agent import Outcome

MAX_MESSAGE = 2000
_TELLING_LINES = 3
_GPU_MEMORY = re.compile(r"CUDA out of memory|out of GPU memory|CUDA error: out of memory")
_NOT_FINITE = re.compile(r"\bnot finite\b|\btraining diverged\b|\b(loss|norm) is (nan|-?inf)\b")
_SHELL_SIGNAL = 128
"""A shell answers with this number plus the signal that ended its child."""
_TELLING_SIGNALS = frozenset(
    {
        signal.SIGKILL,
        signal.SIGTERM,
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGPIPE,
    }
)


@dataclass(frozen=True)
class Stop:
    """Why the agent wants its program to end."""

    reason: Reason
    message: str
    grace_s: float
    """Time to save before it is killed."""


@dataclass(frozen=True)
class Ending:
    """How a program ended."""

    exit_code: int | None
    """Negative: the signal; None where it was never started."""
    stop: Stop | None = None
    spawn_error: str | None = None
    last_lines: tuple[str, ...] = ()
    """The end of its output."""
    out_of_memory: bool = False
    """The kernel has killed something of this cgroup for lack of memory meanwhile."""
    overran: bool = False
    """It did not end within the grace and was killed for that."""
    disk_full: bool = False
    """The disk that it writes to was full when it ended."""
    ranks: int = 1
    """Of the attempt."""
    at_rung: bool = False
    """It has reached the step at which it was to save and end."""
    unsaved: tuple[int, OrchError] | None = None
    """Step of its newest checkpoint where that could not be stored, and why."""


def judge(ending: Ending) -> Outcome:
    """The outcome of an attempt whose program was started, or could not be."""
    reason, message = _reason(ending)
    if ending.disk_full and ending.exit_code not in (0, EXIT_SAVED, None):
        message = f"the disk of this machine is full; {message}"
    if ending.unsaved is not None:
        step, error = ending.unsaved
        message = f"{message}; " if message else ""
        message += f"the checkpoint of step {step} could not be stored: {error.message}"
        if reason is Reason.COMPLETED:
            # A checkpoint that no store would take, such as an empty one, would be the same next time.
            reason = Reason.USER_ERROR if type(error) is StoreError else _store_reason(error)
    return Outcome(reason=reason, message=_cut(message), exit_code=ending.exit_code)


def judge_opening(error: OrchError) -> Outcome:
    """The outcome of an attempt that could not claim its run or bring back its checkpoint."""
    message = f"{error.message} {error.remedy}" if error.remedy else error.message
    return Outcome(reason=_opening_reason(error), message=_cut(message))


def _opening_reason(error: OrchError) -> Reason:
    if isinstance(error, FencedError):
        return Reason.FENCED
    if isinstance(error, SpecError | NotFoundError):
        return Reason.USER_ERROR
    if isinstance(error, StoreError):
        return _store_reason(error)
    return Reason.NOT_STARTED


def _store_reason(error: OrchError) -> Reason:
    return Reason.STORE_FULL if isinstance(error, StoreFullError) else Reason.STORE_FAILED


def _reason(ending: Ending) -> tuple[Reason, str]:
    code, stop = ending.exit_code, ending.stop
    if stop is not None and (stop.reason == Reason.FENCED or stop.reason in ENDING):
        return stop.reason, stop.message
    if ending.spawn_error is not None:
        return Reason.USER_ERROR, f"the program cannot be started: {ending.spawn_error}"
    if code == 0:
        return Reason.COMPLETED, "finished while it was being stopped" if stop else ""
    if code == EXIT_USER_ERROR:
        return _told(ending) or Reason.USER_ERROR, _last_line(ending) or f"exit code {EXIT_USER_ERROR}"
    if stop is not None:
        return stop.reason, _stopped(ending, stop)
    if code == EXIT_SAVED and ending.at_rung:
        return Reason.RUNG, ""
    if code == EXIT_SAVED:
        return Reason.SHUTDOWN, f"the program saved and ended without being asked (exit code {EXIT_SAVED})"
    if code == EXIT_LOST_RANK and ending.ranks > 1:
        return Reason.RANK_LOST, _last_line(ending)
    return _failure(ending)


def _stopped(ending: Ending, stop: Stop) -> str:
    if ending.exit_code in (EXIT_SAVED, None):
        return stop.message
    how = f"killed, because it did not end within {stop.grace_s:g} s" if ending.overran else _how(ending)
    return f"{stop.message}; the program did not say that it saved ({how})"


def _failure(ending: Ending) -> tuple[Reason, str]:
    number = _signal(ending.exit_code)
    if number is None:
        lines = "\n".join(ending.last_lines)
        return _told(ending) or Reason.PROGRAM_FAILED, f"{_how(ending)}: {lines}" if lines else _how(ending)
    message = f"the program was {_how(ending)}"
    if number == signal.SIGKILL:
        message += "; " + (
            "the machine ran out of memory" if ending.out_of_memory else "possibly because memory ran out"
        )
    last = _last_line(ending)
    starved = number == signal.SIGKILL and ending.out_of_memory
    reason = Reason.HOST_MEMORY if starved else Reason.PROGRAM_KILLED
    return reason, f"{message}; its last line was: {last}" if last else message


def _told(ending: Ending) -> Reason | None:
    """What the end of a program's output says of its end, where that is certain: PyTorch's words for a GPU
    without memory, the trainer's for numbers that are not finite."""
    end = "\n".join(ending.last_lines[-_TELLING_LINES:])
    if _GPU_MEMORY.search(end):
        return Reason.GPU_MEMORY
    return Reason.NOT_FINITE if _NOT_FINITE.search(_last_line(ending)) else None


def _how(ending: Ending) -> str:
    number = _signal(ending.exit_code)
    return f"ended by {number.name}" if number is not None else f"exit code {ending.exit_code}"


def _signal(code: int | None) -> signal.Signals | None:
    if code is None:
        return None
    if code < 0:
        return _known(-code)
    number = _known(code - _SHELL_SIGNAL) if code > _SHELL_SIGNAL else None
    return number if number in _TELLING_SIGNALS else None


def _known(number: int) -> signal.Signals | None:
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def _last_line(ending: Ending) -> str:
    return ending.last_lines[-1].strip() if ending.last_lines else ""


def _cut(message: str) -> str:
    """The end matters most: that is where a traceback names the error."""
    return message if len(message) <= MAX_MESSAGE else f"{message[:300]} … {message[-(MAX_MESSAGE - 310) :]}"
