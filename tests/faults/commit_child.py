"""Kills a process that works on a store at each of its system calls in turn; run by test_commit_crashes.

``python -m tests.faults.commit_child BASE SCENARIO`` copies ``BASE/template`` to ``BASE/<n>`` for n = 1, 2,
… and lets a child do the scenario there that is killed at its n-th call, until one comes through. Prints
one JSON line per child: the call that it died at, None for the last.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.store.checkpoints import CheckpointWriter
from orchestrator.store.objects import ObjectStore, open_store
from orchestrator.store.runlog import RunLog
from tests.unit.store.helpers import RUN

CALLS = (
    "open",
    "write",
    "fsync",
    "close",
    "link",
    "replace",
    "mkdir",
    "unlink",
    "rmdir",
    "preadv",
    "scandir",
)
"""What the store asks of the system; each call is a moment to die at."""
MOST = 500


class Killer:
    """Ends the process without any clean-up just before its n-th call; a write is cut off in its middle."""

    def __init__(self, at: int) -> None:
        self._left = at

    def install(self) -> None:
        """From now on calls count."""
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._left = 1 << 30
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call


def commit(store: ObjectStore, source: Path) -> Callable[[], object]:
    """Attempt 2 commits step 200."""
    to = CheckpointWriter(store, RunLog(store, RUN).claim(2, node="n"))
    return lambda: to.commit(source, 200, metrics={}, device="cpu", node="n", points=b"point 200\n")


def claim(store: ObjectStore, source: Path) -> Callable[[], object]:
    """Attempt 2 takes the run."""
    return lambda: RunLog(store, RUN).claim(2, node="n")


def retain(store: ObjectStore, source: Path) -> Callable[[], object]:
    """Attempt 2 commits step 200 and then keeps only that."""
    commit(store, source)()
    to = CheckpointWriter(store, RunLog(store, RUN).claim(3, node="n"))
    return lambda: to.retain(1, 0, "x", "min")


SCENARIOS = {"commit": commit, "claim": claim, "retain": retain}


def child(base: Path, scenario: str, at: int) -> int:
    """Carry the scenario out in a process of its own; its wait status."""
    folder = base / str(at)
    shutil.copytree(base / "template", folder)
    pid = os.fork()
    if pid == 0:
        act = SCENARIOS[scenario](open_store(folder), base / "source")
        Killer(at).install()
        act()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main(base: Path, scenario: str) -> int:
    """Go through all moments; 0 where the last child came through and all others were killed."""
    for at in range(1, MOST):
        status = child(base, scenario, at)
        if os.WIFEXITED(status):
            print(json.dumps({"at": at, "exit": os.WEXITSTATUS(status)}))
            return os.WEXITSTATUS(status)
        print(json.dumps({"at": at, "signal": os.WTERMSIG(status)}))
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
