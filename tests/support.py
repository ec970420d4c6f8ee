"""What several tests need: bounded waiting with evidence, free ports, processes that are always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from orchestrator.agent.ports import pick_port

T = TypeVar("T")
LEAST_S = 20.0
"""No wait is given up before, because several tests share the machine."""


class WaitError(AssertionError):
    """The condition did not come true in time."""


def wait_until(
    condition: Callable[[], T], timeout: float, evidence: Callable[[], str] | None = None, every: float = 0.05
) -> T:
    """The first truthy answer of `condition`; WaitError with the evidence once `timeout` seconds are over.

    A short timeout is prolonged to :data:`LEAST_S`: it says how long to hope, not how fast something must be.
    """
    timeout = max(timeout, LEAST_S)
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            shown = evidence() if evidence else repr(value)
            raise WaitError(f"not true after {timeout} s: {shown}")
        time.sleep(every)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listened on a moment ago, and that no outgoing connection will have."""
    return pick_port(host)


@contextmanager
def process(argv: list[str], log: Path, **popen: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own that writes to `log`; the group is ended at the end of the block."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **popen,
        )  # type: ignore[call-overload]
    try:
        yield child
    finally:
        end_group(child)


def end_group(child: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """SIGTERM to the process group, SIGKILL after the grace."""
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(wait)
            break
        except subprocess.TimeoutExpired:
            continue
    child.poll()
