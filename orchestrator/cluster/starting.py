"""Starts the supervisor and waits until everything it keeps answers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.cluster.config import StackConfig
from orchestrator.cluster.host import service_environment
from orchestrator.cluster.keeper import tail
from orchestrator.cluster.services import CONTROLLER, HEAD, MLFLOW, Service, services
from orchestrator.cluster.state import ServiceRecord, load_state
from orchestrator.errors import OrchError, SetupError
from orchestrator.settings import Home

Progress = Callable[[str], None]

SETUP_LOCK_S: Final = 300.0
SUPERVISOR_S: Final = 30.0
READY_S: Final = 300.0
"""Longest wait for all services. The slowest, MLflow's first start, took 25 s on two old cores."""
SLOW_S: Final = 10.0
"""Whoever is still starting is named again and again after this time."""
NODES_S: Final = 60.0
MOST_FAILURES: Final = 3
TAIL_LINES: Final = 15
_POLL_S: Final = 0.1
_WORDS: Final = {HEAD: "Ray", MLFLOW: "MLflow", CONTROLLER: "the controller"}


@contextmanager
def setup_lock(home: Home) -> Iterator[None]:
    """Only one `up`, `down`, `join` or `leave` at a time for a state folder; SetupError after a long wait."""
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = SYSTEM.monotonic() + SETUP_LOCK_S
    with home.setup_lock.open("a") as file:
        while not _try_lock(file.fileno()):
            if SYSTEM.monotonic() > deadline:
                raise SetupError(
                    f"another `orch up` or `orch down` is at work in {home.root}",
                    remedy="Wait for it, or end that process.",
                )
            SYSTEM.sleep(_POLL_S)
        yield


def start_supervisor(home: Home) -> None:
    """Start the daemon and wait until it has taken over."""
    argv = [sys.executable, "-P", "-m", "orchestrator.cluster.supervisor", "--detach", str(home.root)]
    done = subprocess.run(
        argv, env=service_environment(os.environ), capture_output=True, text=True, timeout=SUPERVISOR_S
    )
    deadline = SYSTEM.monotonic() + SUPERVISOR_S
    while done.returncode == 0 and SYSTEM.monotonic() < deadline:
        if load_state(home).supervised():
            return
        SYSTEM.sleep(_POLL_S)
    log_file = home.service_logs / "supervisor.log"
    raise SetupError(
        "the supervisor does not start: " + " | ".join([done.stderr.strip(), *tail(log_file, 3)]),
        remedy=f"See {log_file}.",
    )


def wait_until_ready(home: Home, config: StackConfig, progress: Progress) -> None:
    """Until every service answers, and the controller sees every node of this machine.

    SetupError where a service fails again and again, with the end of its log, or is too slow.
    """
    waiting = {service.name: service for service in services(config, home)}
    began, named_at = SYSTEM.monotonic(), SYSTEM.monotonic()
    failures = {name: record.failures for name, record in load_state(home).services.items()}
    while waiting:
        records = load_state(home).services
        for name in [name for name, service in waiting.items() if _is_ready(service, records.get(name))]:
            del waiting[name]
            progress(f"{words(name)}: ready after {SYSTEM.monotonic() - began:.1f} s")
        for name in waiting:
            _check_failures(home, name, records.get(name), failures.get(name, 0))
        if SYSTEM.monotonic() - began > READY_S and waiting:
            raise _too_slow(home, next(iter(waiting)))
        if SYSTEM.monotonic() - named_at > SLOW_S and waiting:
            named_at = SYSTEM.monotonic()
            progress(f"still starting: {', '.join(words(name) for name in waiting)}")
        SYSTEM.sleep(_POLL_S)
    wait_for_nodes(home, config)


def wait_for_nodes(home: Home, config: StackConfig) -> None:
    """Until the controller counts every node of this machine among its own."""
    wanted = {node.name for node in config.nodes}
    deadline = SYSTEM.monotonic() + NODES_S
    with Client(config.controller_url, home.token_file.read_text().strip(), timeout_s=5.0) as client:
        while True:
            try:
                seen = {node.name for node in client.nodes() if node.state == "ready"}
                why = f"the controller does not see {', '.join(sorted(wanted - seen))}"
            except OrchError as error:
                seen, why = set(), error.message
            if wanted <= seen:
                return
            if SYSTEM.monotonic() > deadline:
                raise SetupError(why, remedy=f"See {home.service_logs / 'ray-gateway.log'}.")
            SYSTEM.sleep(_POLL_S)


def words(name: str) -> str:
    """A service's name for people."""
    return _WORDS.get(name, name.replace("-", " ", 1))


def _is_ready(service: Service, record: ServiceRecord | None) -> bool:
    return record is not None and record.ready and record.fingerprint == service.fingerprint


def _check_failures(home: Home, name: str, record: ServiceRecord | None, before: int) -> None:
    if record is None or record.failures - before < MOST_FAILURES:
        return
    log_file = home.service_logs / f"{name}.log"
    raise SetupError(
        f"{words(name)} does not start: {record.message}\n" + "\n".join(tail(log_file, TAIL_LINES)),
        remedy=f"See {log_file}.",
    )


def _too_slow(home: Home, name: str) -> SetupError:
    log_file = home.service_logs / f"{name}.log"
    return SetupError(
        f"{words(name)} has not answered within {READY_S:.0f} s\n" + "\n".join(tail(log_file, TAIL_LINES)),
        remedy=f"See {log_file}; run `orch up` again to go on waiting.",
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
