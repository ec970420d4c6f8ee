"""A training loop that somebody else paces through two pipes, so that programs can be timed in turn.

The program under test is a process of its own: it makes some steps when it is told to, answers with the time
that they took, and sleeps until the next command. Commands and answers are lines of JSON on stdin and stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Handler = Callable[..., Any]


@dataclass(frozen=True)
class Slice:
    """Steps that were made without a break."""

    steps: int
    wall_s: float
    cpu_s: float
    """Processor time of all threads of the process."""

    @property
    def ms(self) -> float:
        """Wall time of one step in milliseconds."""
        return self.wall_s / self.steps * 1000

    @property
    def cpu_ms(self) -> float:
        """Processor time of one step in milliseconds."""
        return self.cpu_s / self.steps * 1000


class Channel:
    """The program's end of the pipes. What it prints goes to stderr instead."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any] | None:
        """The next command; None when there will be none."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, answer: object) -> None:
        """Answer the last command."""
        self._answers.write(json.dumps({"answer": answer}) + "\n")
        self._answers.flush()

    def fail(self, reason: str) -> None:
        """Say that the program cannot go on."""
        self._answers.write(json.dumps({"error": reason}) + "\n")
        self._answers.flush()


class Pacer:
    """Tells a loop how many steps to make, and times them."""

    def __init__(
        self, channel: Channel, synchronize: Callable[[], None], handlers: Mapping[str, Handler]
    ) -> None:
        self._channel = channel
        self._synchronize = synchronize
        self._handlers = handlers
        self._steps = 0
        self._begin = (0.0, 0.0)

    def next_slice(self) -> int:
        """How many steps to make now, at least one; 0 means "end". Ends the slice before and answers it.

        The clocks stop when the device has finished the slice's work, and start when this returns.
        """
        if self._steps:
            self._channel.send(asdict(self._measured()))
            self._steps = 0
        while command := self._channel.receive():
            name = command.pop("do")
            if name == "steps":
                self._steps = max(1, command["n"])
                self._begin = (time.perf_counter(), time.process_time())
                return self._steps
            self._channel.send(self._handlers[name](**command))
        return 0

    def _measured(self) -> Slice:
        self._synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        return Slice(self._steps, wall - self._begin[0], cpu - self._begin[1])
