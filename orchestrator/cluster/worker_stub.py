"""What a raylet starts as a Python worker: has the node's template fork one, and ends.

A worker that starts by itself imports Ray for half a second. That happens where there is no template.
Run as a script, with the arguments of Ray's own worker program.
"""

from __future__ import annotations

import fcntl
import os
import sys

from orchestrator.agent.template import WORKER, TemplateError, ask, own_template

ROOM = 256
"""Bytes of a template's command line that are there for the command lines of what it forks."""


def main() -> None:
    """Hand everything over, or become Ray's worker."""
    path = own_template()
    if path is not None:
        try:
            ask(path, WORKER, [sys.executable, *sys.argv[1:]], os.environ, os.getcwd(), (0, 1, 2))
            os._exit(0)
        except TemplateError as error:
            print(f"{error}; starting without it", file=sys.stderr)
            start_template(path)
    os.execv(sys.executable, [sys.executable, worker_program(), *sys.argv[1:]])


def start_template(path: str) -> None:
    """For those who come after this one, with the settings of Ray that this one has."""
    if _is_starting(path):
        return
    if os.fork():
        os.wait()
        return
    # Forked again, and in a group of its own: Ray ends the children and the group of a worker that ends.
    if os.fork() == 0:
        os.setpgid(0, 0)
        command = [sys.executable, "-P", "-m", "orchestrator.cluster.template", path, " " * ROOM]
        os.execv(sys.executable, command)
    os._exit(0)


def _is_starting(path: str) -> bool:
    """Whether another one is about to be there. Without this, it would notice that by itself."""
    with open(f"{path}.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def worker_program() -> str:
    """Ray's own program of a worker. Does not import Ray."""
    from importlib.util import find_spec

    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return os.path.join(os.path.dirname(spec.origin), "_private", "workers", "default_worker.py")


if __name__ == "__main__":
    main()
