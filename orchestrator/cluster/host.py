"""What the supervisor does to the machine: start a service, look at its processes, end them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.agent.identity import identify
from orchestrator.agent.ports import bindable, pick_port
from orchestrator.clock import SYSTEM, Clock
from orchestrator.cluster.machine import listening_ports, port_holder
from orchestrator.cluster.processes import (
    MARKER,
    Member,
    collect_exits,
    end_sessions,
    members,
    signal_process,
)
from orchestrator.cluster.ray_command import FREE_PORT, NOW_MS
from orchestrator.cluster.services import Service
from orchestrator.cluster.state import Process
from orchestrator.errors import SetupError
from orchestrator.settings import Home

log = logging.getLogger(__name__)

LOG_BYTES: Final = 10_000_000
"""A service's log is moved aside once it is longer; one older log is kept."""
GRACE_S: Final = 8.0
"""Time between SIGTERM and SIGKILL; Ray needs 1 s, MLflow 1 s, the controller as long as a request."""
_DROPPED_PREFIXES: Final = ("RAY_", "_MLFLOW_")
_DROPPED: Final = (
    "ORCH_TOKEN",
    "ORCH_TOKEN_FILE",
    "ORCH_URL",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    MARKER,
)


class Host:
    """The real machine. Only one thread uses it."""

    def __init__(self, home: Home, stack: str, clock: Clock = SYSTEM) -> None:
        self._home = home
        self._stack = stack
        self.clock = clock
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._exits: dict[int, int] = {}

    def start(self, service: Service) -> Process:
        """Start it in a session of its own, with its output in its log."""
        if service.temp_dir:
            fresh_temp_dir(Path(service.temp_dir))
        log_file = self.log_file(service.name)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._home.empty.mkdir(parents=True, exist_ok=True)
        env = {**service_environment(os.environ), **service.env, MARKER: f"{self._stack}/{service.name}"}
        bound_log(log_file)
        with log_file.open("ab") as out:
            out.write(f"--- {self.clock.now():%Y-%m-%d %H:%M:%S} starting {service.name}\n".encode())
            out.flush()
            child = subprocess.Popen(
                [self._fill(word) for word in service.argv],
                env=env,
                cwd=self._home.empty,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        who = identify(child.pid)
        assert who is not None, "our own child exists until we collect it"
        return Process(pid=who.pid, create_time=who.create_time)

    def exit_code(self, process: Process) -> int | None:
        """How it ended; None while it runs, and where nobody knows because somebody else was its parent."""
        for pid, code in collect_exits().items():
            child = self._children.pop(pid, None)
            if child is not None:
                child.returncode = code
                self._exits[pid] = code
        return self._exits.get(process.pid)

    def alive(self, process: Process) -> bool:
        """Whether it runs."""
        self.exit_code(process)
        # A process looks dead from the moment its first thread ends; a child's exit code comes with the last.
        return process.pid in self._children or process.id.alive()

    def members(self, leader: Process) -> list[Member]:
        """Living processes of the session that it began."""
        return members(leader.pid, leader.create_time)

    def end(self, leader: Process) -> None:
        """End the whole session. Agents are not part of it."""
        left = end_sessions({leader.pid: leader.create_time}, GRACE_S, self.clock)
        self.exit_code(leader)
        self._exits.pop(leader.pid, None)
        if left:
            log.error("these processes cannot be ended: %s", [member.pid for member in left])

    def port_problem(self, host: str, port: int) -> str | None:
        """Why nobody can listen there; None where one can."""
        if bindable(host, port):
            return None
        return f"port {port} is taken by {port_holder(port)}"

    def listens(self, leader: Process, port: int) -> bool:
        """Whether a process of its session listens on the port."""
        return any(port in listening_ports(member.pid) for member in self.members(leader))

    def kill(self, member: Member) -> None:
        """End one process at once."""
        signal_process(member.id, signal.SIGKILL)

    def log_file(self, name: str) -> Path:
        """Where a service's output goes."""
        return self._home.service_logs / f"{name}.log"

    def _fill(self, word: str) -> str:
        if FREE_PORT in word:
            return word.replace(FREE_PORT, str(pick_port("127.0.0.1")))
        return word.replace(NOW_MS, str(int(self.clock.now().timestamp() * 1000)))


def service_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment without the token and without settings that were meant for something else."""
    return {
        name: value
        for name, value in base.items()
        if not name.startswith(_DROPPED_PREFIXES) and name not in _DROPPED
    }


def fresh_temp_dir(path: Path) -> None:
    """An empty folder that only we can read; what was there moves aside, and its predecessor goes.

    Ray refuses to start a head over the files of an earlier one while a raylet of that one still runs.
    """
    make_private(path.parent)
    before = path.with_name(path.name + ".1")
    shutil.rmtree(before, ignore_errors=True)
    if path.exists():
        path.rename(before)
    path.mkdir(mode=0o700)


def make_private(path: Path) -> None:
    """A folder of ours in /tmp. SetupError where somebody else has made it, or could have."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SetupError(
            f"{path} exists, but is not a private folder of this user",
            remedy="Remove it if it is yours, or ask its owner.",
        )


def bound_log(path: Path) -> None:
    """Keep a log below LOG_BYTES, also under a writer that appends: the file is copied, then emptied."""
    try:
        if path.stat().st_size <= LOG_BYTES:
            return
    except FileNotFoundError:
        return
    shutil.copyfile(path, path.with_name(path.name + ".1"))
    os.truncate(path, 0)
