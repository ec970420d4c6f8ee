"""Everything on this machine, up and down: what `orch up`, `orch down` and `orch status` call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from orchestrator.agent import ports
from orchestrator.cluster import machine
from orchestrator.cluster.config import NodeRequest, StackConfig, load_config, save_config
from orchestrator.cluster.ending import end_attempts, stop_everything, stop_node
from orchestrator.cluster.files import ensure_token, make_private_home, write_client_file, write_node_home
from orchestrator.cluster.planning import plan
from orchestrator.cluster.program import OUTDATED
from orchestrator.cluster.services import services
from orchestrator.cluster.starting import Progress, setup_lock, start_supervisor, wait_until_ready, words
from orchestrator.cluster.state import ServicePhase, StackState, load_state
from orchestrator.errors import SetupError
from orchestrator.settings import Home
from orchestrator.store.objects import open_store, probe, store_id

__all__ = ["NodeRequest", "ServiceStatus", "StackStatus", "down", "status", "up"]


@dataclass(frozen=True)
class ServiceStatus:
    """One service, for people."""

    name: str
    phase: str
    pid: int | None
    since: datetime | None
    restarts: int
    message: str
    log: Path
    outdated: bool = False
    """It runs this program as it was before an update."""


@dataclass(frozen=True)
class StackStatus:
    """What runs here."""

    running: bool
    """Whether a supervisor keeps the services running."""
    url: str = ""
    mlflow_url: str = ""
    store_uri: str = ""
    listening: bool = False
    """Whether other machines can join."""
    services: list[ServiceStatus] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether every service answers."""
        return self.running and all(service.phase == ServicePhase.READY for service in self.services)

    @property
    def outdated(self) -> list[str]:
        """Services that run this program as it was before an update."""
        return [service.name for service in self.services if service.outdated]


def up(
    home: Home,
    nodes: Sequence[NodeRequest] = (),
    listen: str | None = None,
    mlflow_url: str | None = None,
    store_uri: str | None = None,
    progress: Progress = lambda text: None,
) -> StackStatus:
    """Start everything and wait until it answers; nothing where it does already.

    What is not given stays as it was at the last `up`, or is chosen by this machine. `listen` is the IP
    address for other machines (127.0.0.1: none), `mlflow_url` an existing MLflow server or `none`. Changed
    nodes are added and removed, other changes restart the services that they concern. On a machine that has
    joined a cluster nothing can be given: it brings the node back after `down`.

    Raises SetupError where something cannot be started, with the end of its log.
    """
    with setup_lock(home):
        before = load_config(home)
        state = load_state(home)
        config = plan(home, before, nodes, listen, mlflow_url, store_uri)
        if config == before and state.supervised() and _all_ready(config, home, state):
            return status(home)
        if config.kind == "controller":
            _prepare(home, config, before, state)
        save_config(home, config)
        started_here = not state.supervised()
        if started_here:
            progress("starting " + ", ".join(words(service.name) for service in services(config, home)))
            start_supervisor(home)
        try:
            wait_until_ready(home, config, progress)
        except SetupError:
            if started_here:
                stop_everything(home, config, progress)
            raise
    return status(home)


def down(home: Home, progress: Progress = lambda text: None, grace_s: float = 120.0) -> None:
    """Have every attempt save, then stop everything that was started here.

    Attempts get `grace_s` to save and end. Runs that were stopped are queued and go on after the next `up`.
    On a machine that joined a cluster only its node is stopped, and it stays a member. SetupError where a
    process could not be ended.
    """
    with setup_lock(home):
        config = load_config(home)
        if config is None:
            progress("nothing runs here")
            return
        if config.kind == "join":
            stop_node(home, config, progress, grace_s)
            progress("`orch up` brings it back, `orch leave` forgets the cluster")
            return
        end_attempts(home, config, progress, grace_s)
        stop_everything(home, config, progress)


def status(home: Home) -> StackStatus:
    """What runs here, from what the supervisor wrote last; asks no service."""
    config, state = load_config(home), load_state(home)
    if config is None:
        return StackStatus(running=False)
    return StackStatus(
        running=state.supervised(),
        url=config.controller_url,
        mlflow_url=config.mlflow_url,
        store_uri=config.store_uri,
        listening=config.kind == "controller" and config.exposed,
        services=[_service_status(home, state, service.name) for service in services(config, home)],
    )


def _prepare(home: Home, config: StackConfig, before: StackConfig | None, state: StackState) -> None:
    """Files, the store and free ports, before anything is started."""
    make_private_home(home)
    token = ensure_token(home)
    for node in config.nodes:
        write_node_home(home, node.name, token, store_uri=None)
    write_client_file(home, config.controller_url)
    store = open_store(config.store_uri)
    store_id(store, create=True)
    if before is None or before.store_uri != config.store_uri:
        probe(store)
    _check_ports(home, config, state)


def _check_ports(home: Home, config: StackConfig, state: StackState) -> None:
    """SetupError where somebody else listens on a port of a service that does not run yet."""
    for service in services(config, home):
        record = state.services.get(service.name)
        runs = record is not None and record.leader is not None
        if runs or service.listens is None or ports.bindable(*service.listens):
            continue
        number = service.listens[1]
        raise SetupError(
            f"port {number} for {words(service.name)} is taken by {machine.port_holder(number)}",
            remedy=f"End that process, or remove {home.stack_file} to get other ports.",
        )


def _all_ready(config: StackConfig, home: Home, state: StackState) -> bool:
    wanted = services(config, home)
    records = [state.services.get(service.name) for service in wanted]
    return len(state.services) == len(wanted) and all(
        record is not None and record.ready and record.fingerprint == service.fingerprint
        for service, record in zip(wanted, records, strict=True)
    )


def _service_status(home: Home, state: StackState, name: str) -> ServiceStatus:
    record = state.services.get(name)
    log_file = home.service_logs / f"{name}.log"
    if record is None or not state.supervised():
        return ServiceStatus(name, "stopped", None, None, 0, "", log_file)
    pid = record.vital[0].pid if record.vital else None
    outdated = record.outdated
    message = record.message or (OUTDATED if outdated else "")
    return ServiceStatus(
        name, record.phase.value, pid, record.since, record.restarts, message, log_file, outdated
    )
