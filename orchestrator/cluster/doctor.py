"""Looks at this machine and says what is wrong and what helps: `orch doctor`. Changes nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import httpx

from orchestrator import __version__
from orchestrator.agent import ports
from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.cluster import machine
from orchestrator.cluster.agents import agents
from orchestrator.cluster.config import StackConfig, load_config
from orchestrator.cluster.probes import HttpProbe
from orchestrator.cluster.processes import marked_sessions
from orchestrator.cluster.program import OUTDATED, RENEWING
from orchestrator.cluster.services import services
from orchestrator.cluster.state import ServicePhase, load_state
from orchestrator.errors import OrchError
from orchestrator.messages import Health
from orchestrator.settings import Home
from orchestrator.store.objects import open_store, probe, store_id

LEAST_DISK: Final = 2_000_000_000
LEAST_SHM: Final = 250_000_000
MOST_PENDING: Final = 10_000
MOST_SKEW_S: Final = 5.0
TOKEN_MODE: Final = 0o600


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    remedy: str = ""


def diagnose(home: Home) -> list[Finding]:
    """Everything that was looked at, in order: this machine, its services, the cluster."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += check(home)
        except OrchError as error:
            findings.append(Finding(Level.ERROR, error.message, error.remedy or ""))
    return findings


def _versions(home: Home) -> Iterator[Finding]:
    try:
        yield _ok(f"orch {__version__}, Python {platform.python_version()}, ray {version('ray')}")
    except PackageNotFoundError:
        yield Finding(Level.ERROR, "Ray is not installed", "pip install orch")
    if sys.platform != "linux":
        yield Finding(Level.ERROR, f"{sys.platform} is not supported", "Ray clusters need Linux; use WSL2.")


def _home(home: Home) -> Iterator[Finding]:
    folder = next(path for path in (home.root, *home.root.parents) if path.exists())
    if not os.access(folder, os.W_OK):
        yield Finding(Level.ERROR, f"{folder} cannot be written", "Set ORCH_HOME to a folder of yours.")
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LEAST_DISK:
        yield Finding(Level.WARNING, text, "Checkpoints need room: free some, or move ORCH_HOME.")
    else:
        yield _ok(text)


def _token(home: Home) -> Iterator[Finding]:
    for file in [home.token_file, *home.nodes.glob("*/token")]:
        if file.exists() and file.stat().st_mode & 0o777 != TOKEN_MODE:
            yield Finding(Level.ERROR, f"others can read the token in {file}", f"chmod 600 {file}")


def _shared_memory(home: Home) -> Iterator[Finding]:
    if Path("/dev/shm").exists():
        free = shutil.disk_usage("/dev/shm").free
        if free < LEAST_SHM:
            what = f"/dev/shm has {free / 1e6:.0f} MB free; Ray takes 80 MB for each node, data loaders more"
            yield Finding(Level.WARNING, what, "In a container: docker run --shm-size=1g")


def _gpu(home: Home) -> Iterator[Finding]:
    names = machine.gpu_names()
    if not names:
        yield _ok("no NVIDIA GPU")
        return
    for name in names:
        yield _ok(name.partition(" (UUID")[0])
    script = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        yield Finding(Level.ERROR, "torch hangs when it looks for the GPU", "Restart the machine.")
        return
    if done.returncode:
        what = "there is a GPU, but the installed torch cannot use it"
        yield Finding(Level.ERROR, what, "Install torch with CUDA: https://pytorch.org/get-started/locally")


def _services(home: Home) -> Iterator[Finding]:
    config, state = load_config(home), load_state(home)
    if config is None:
        yield _ok("nothing was started here: `orch up` or `orch join` does")
        return
    if not state.supervised():
        left = marked_sessions(config.id)
        if left:
            what = f"services run without a supervisor (sessions {', '.join(map(str, sorted(left)))})"
            yield Finding(Level.ERROR, what, "orch up goes on with them, orch down ends them.")
        else:
            yield _ok("services are stopped: `orch up` starts them")
            yield from _free_ports(home, config)
        return
    for service in services(config, home):
        record = state.services.get(service.name)
        log_file = home.service_logs / f"{service.name}.log"
        if record is None or record.phase is not ServicePhase.READY:
            phase = record.phase.value if record else "not started"
            message = f": {record.message}" if record and record.message else ""
            yield Finding(Level.ERROR, f"{service.name} is {phase}{message}", f"See {log_file}.")
        elif record.outdated:
            yield Finding(Level.WARNING, f"{service.name} {OUTDATED}", RENEWING)
        elif record.restarts:
            what = f"{service.name} runs, started again {record.restarts} times"
            yield Finding(Level.WARNING, what, f"See {log_file}.")
        else:
            yield _ok(f"{service.name} runs")


def _free_ports(home: Home, config: StackConfig) -> Iterator[Finding]:
    for service in services(config, home):
        if service.listens and not ports.bindable(*service.listens):
            number = service.listens[1]
            what = f"port {number} for {service.name} is taken by {machine.port_holder(number)}"
            yield Finding(Level.ERROR, what, "End that process.")


def _controller(home: Home) -> Iterator[Finding]:
    config = load_config(home)
    if config is None or not load_state(home).supervised():
        return
    token = home.token_file.read_text().strip()
    with Client(config.controller_url, token, timeout_s=10.0) as client:
        health = client.health()
        yield _ok(f"the controller answers at {config.controller_url}")
        yield from _health(health)
        for node in client.nodes():
            if node.state != "ready":
                remedy = "Wake it, or look there with `orch doctor`."
                yield Finding(Level.WARNING, f"node {node.name} is {node.state}", remedy)
    if config.kind == "join":
        yield from _skew(config.controller_url)


def _health(health: Health) -> Iterator[Finding]:
    if not health.ray_connected:
        yield Finding(
            Level.ERROR, "the controller has no connection to Ray", "See logs/ray-gateway.log there."
        )
    if health.mlflow_connected is False:
        what = f"MLflow does not take measurements: {health.mlflow_error or 'it does not answer'}"
        remedy = "Nothing is lost: they are kept and sent later. See logs/mlflow.log."
        yield Finding(Level.WARNING, what, remedy)
    if health.mlflow_pending > MOST_PENDING:
        what = f"{health.mlflow_pending} measurements are not in MLflow yet"
        yield Finding(Level.WARNING, what, "It catches up by itself once MLflow is fast enough.")
    if health.mlflow_url and not HttpProbe(f"{health.mlflow_url}/health")():
        remedy = "It listens on the controller's machine only: ssh -L 7421:127.0.0.1:7421 …"
        yield Finding(Level.WARNING, f"{health.mlflow_url} does not answer from here", remedy)


def _skew(url: str) -> Iterator[Finding]:
    """Compare clocks by the Date header, which has a resolution of one second."""
    before = SYSTEM.now()
    try:
        date = httpx.get(f"{url}/v1/health", timeout=5.0, trust_env=False).headers.get("date")
    except httpx.HTTPError:
        return
    if date is None:
        return
    skew_s = abs((parsedate_to_datetime(date) - before).total_seconds())
    if skew_s > MOST_SKEW_S:
        what = f"this machine's clock differs from the controller's by {skew_s:.0f} s"
        yield Finding(Level.WARNING, what, "Switch on time synchronisation: timedatectl set-ntp true")


def _store(home: Home) -> Iterator[Finding]:
    config = load_config(home)
    if config is None:
        return
    uris = {config.store_uri} if config.kind == "controller" else _node_stores(home, config)
    for uri in sorted(uris):
        store = open_store(uri)
        identity = store_id(store)
        probe(store)
        yield _ok(f"the store {uri} ({identity[:8]}) keeps its promises")


def _node_stores(home: Home, config: StackConfig) -> set[str]:
    found = set()
    for node in config.nodes:
        file = home.node(node.name) / "node.json"
        own = json.loads(file.read_text()).get("store_uri") if file.exists() else None
        found.add(own or config.store_uri)
    return found


def _leftovers(home: Home) -> Iterator[Finding]:
    if agents(home) and not load_state(home).supervised():
        what = f"{len(agents(home))} attempts run, but no services do"
        yield Finding(Level.WARNING, what, "orch up takes them back; orch down lets them save and ends them.")
    for folder in Path("/tmp").glob("orch-????????"):
        name = folder.name.removeprefix("orch-")
        if folder.owner() == _user() and not marked_sessions(name):
            what = f"{folder} is left of a cluster that does not run any more"
            yield Finding(Level.WARNING, what, f"rm -r {folder}")
    temporary = [path for path in home.root.glob(".*.[0-9]*") if path.is_file()]
    if temporary:
        names = ", ".join(path.name for path in temporary[:3])
        yield Finding(Level.WARNING, f"unfinished files in {home.root}: {names}", "They can be removed.")


def _user() -> str:
    return Path("/proc/self").owner()


def _name(home: Home) -> Iterator[Finding]:
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        what = f"this machine's name {socket.gethostname()} has no address"
        yield Finding(Level.WARNING, what, "Add it to /etc/hosts; some start-ups wait seconds for it.")


def _ok(what: str) -> Finding:
    return Finding(Level.OK, what)


_CHECKS: Final[tuple[Callable[[Home], Iterator[Finding]], ...]] = (
    _versions,
    _home,
    _token,
    _shared_memory,
    _name,
    _gpu,
    _services,
    _controller,
    _store,
    _leftovers,
)
