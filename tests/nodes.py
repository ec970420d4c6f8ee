"""A node of a test's stack meets with an accident: all its processes are stopped, or killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.stack import Stack


def family(stack: Stack, name: str) -> list[psutil.Process]:
    """Every process of a node: Ray, agents, programs."""
    home, found = str(stack.home / "nodes" / name), set[psutil.Process]()
    for process in psutil.process_iter(["pid"]):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("ORCH_NODE_HOME") == home:
                found |= {process, *process.children(recursive=True)}
    assert found
    return list(found)


@contextmanager
def asleep(stack: Stack, name: str) -> Iterator[None]:
    """The node sleeps within the block."""
    stopped: dict[int, psutil.Process] = {}
    try:
        for _ in range(2):  # what was started while the first round went on is found by the second
            for process in family(stack, name):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
                    stopped[process.pid] = process
        yield
    finally:
        for process in stopped.values():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def kill(stack: Stack, name: str) -> None:
    """Everything on the node gets SIGKILL: its raylet first, then agents and programs."""
    for process in sorted(family(stack, name), key=lambda one: one.name() != "raylet"):
        with suppress(psutil.NoSuchProcess):
            process.kill()
