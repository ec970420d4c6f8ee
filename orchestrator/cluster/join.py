"""Brings this machine into the cluster of another one, and takes it out: `orch join` and `orch leave`."""

from __future__ import annotations

import platform
import re
import socket
from dataclasses import replace
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

from orchestrator import __version__
from orchestrator.client import Client
from orchestrator.cluster import machine
from orchestrator.cluster.config import (
    NodeConfig,
    NodeRequest,
    StackConfig,
    load_config,
    save_config,
    stack_id,
)
from orchestrator.cluster.ending import stop_everything, stop_node
from orchestrator.cluster.files import make_private_home, write_client_file, write_node_home
from orchestrator.cluster.planning import choose_node, free_ray_ports, store_address, take_gpus
from orchestrator.cluster.probes import TcpProbe
from orchestrator.cluster.stack import StackStatus, status
from orchestrator.cluster.starting import Progress, setup_lock, start_supervisor, wait_until_ready
from orchestrator.cluster.state import load_state
from orchestrator.errors import NotFoundError, SetupError, StoreUnavailableError, UnauthorizedError
from orchestrator.messages import Health
from orchestrator.settings import Home, write_private
from orchestrator.store.objects import open_store, probe, store_id

_CONNECT_S: Final = 10.0


def join_command(home: Home, pool: str = "laptop") -> str:
    """What to paste on another machine. Holds the token: show it to its owner only, and never log it.

    The token is in the environment and not an argument, because everybody on a machine can read arguments.
    The space in front keeps the line out of the history of most shells (`ignorespace`).
    """
    config = load_config(home)
    if config is None or config.kind != "controller":
        raise SetupError(
            "there is no controller on this machine", remedy="Start one: orch up --listen ADDRESS"
        )
    if not config.exposed:
        raise SetupError(
            "the controller listens on this machine only",
            remedy="Run `orch up --listen ADDRESS` with the address that other machines reach.",
        )
    token = home.token_file.read_text().strip()
    return f" ORCH_TOKEN={token} orch join {config.controller_url} --pool {pool}"


def join(
    home: Home,
    url: str,
    token: str,
    pool: str,
    *,
    name: str | None = None,
    address: str | None = None,
    store_uri: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    memory: int | None = None,
    progress: Progress = lambda text: None,
) -> StackStatus:
    """Run one node of the cluster at `url` on this machine, and keep it there through sleep and outages.

    Returns once the controller counts the node. What is None is chosen by this machine. Repeating it changes
    the node, or does nothing.

    Raises UnauthorizedError for a wrong token and SetupError where versions, the store, an address or a port
    do not fit; then nothing was changed.
    """
    with setup_lock(home):
        before = load_config(home)
        running = load_state(home).supervised()
        _check_free(before, running)
        health = _greet(url, token)
        _check_versions(health)
        own_store = store_address(store_uri) if store_uri else None
        _check_store(health, own_store)
        parsed = NodeRequest.parse(f"{name or default_name()}:pool={pool}")
        request = replace(parsed, cpus=cpus, gpus=gpus, memory=memory)
        config = _plan(home, url, health, request, address)
        _check_name(url, token, config, before)
        make_private_home(home)
        write_private(home.token_file, token + "\n")
        write_node_home(home, request.name, token, own_store)
        write_client_file(home, config.controller_url)
        save_config(home, config)
        if not running:
            progress(f"joining {config.controller_url} as node {request.name} of pool {pool}")
            start_supervisor(home)
        try:
            wait_until_ready(home, config, progress)
        except SetupError:
            if not running:
                stop_everything(home, config, progress)
            raise
    return status(home)


def leave(home: Home, progress: Progress = lambda text: None, grace_s: float = 120.0) -> None:
    """Take this machine's node out of the cluster: its attempts save and their runs go on elsewhere.

    The node goes first, so that nothing new is started on it; then its attempts have `grace_s` to save.
    Forgets the token and the controller. SetupError where a process cannot be ended.
    """
    with setup_lock(home):
        config = load_config(home)
        if config is None or config.kind != "join":
            progress("this machine has not joined a cluster")
            return
        stop_node(home, config, progress, grace_s)
        for node in config.nodes:
            (home.node(node.name) / "token").unlink(missing_ok=True)
        for file in (home.stack_file, home.client_file, home.token_file):
            file.unlink(missing_ok=True)


def default_name() -> str:
    """This machine's host name, as a node may be called."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname().partition(".")[0]).strip(".-")
    return name[:63].rstrip(".-") or "node"


def _check_free(before: StackConfig | None, running: bool) -> None:
    if before is not None and before.kind == "controller" and running:
        raise SetupError(
            "this machine runs a controller of its own",
            remedy="End it with `orch down`, or set ORCH_HOME to another folder.",
        )


def _greet(url: str, token: str) -> Health:
    try:
        with Client(url, token, timeout_s=_CONNECT_S) as client:
            health = client.health()
    except UnauthorizedError as error:
        raise UnauthorizedError(
            f"the controller at {url} does not accept this token",
            remedy="Copy the line that `orch up --listen` printed there once more.",
        ) from error
    if not health.cluster_id:
        raise UnauthorizedError(
            f"the controller at {url} wants a token", remedy="Set ORCH_TOKEN, or give --token-file."
        )
    return health


def _check_versions(health: Health) -> None:
    """Ray's nodes must agree in Ray's version and in Python's, the patch level included (ray#44063)."""
    pairs = {
        "orch": (__version__, health.version),
        "ray": (version("ray"), health.ray_version),
        "Python": (platform.python_version(), health.python_version),
    }
    different = [
        f"{what} {here} here, {there} there" for what, (here, there) in pairs.items() if here != there
    ]
    if different:
        raise SetupError(
            f"the two machines differ: {'; '.join(different)}",
            remedy=f"Install here: Python {health.python_version}, orch {health.version}, "
            f"ray {health.ray_version}. `uv venv --python {health.python_version}` gets the very Python.",
        )


def _check_store(health: Health, store_uri: str | None) -> None:
    """This machine must see the controller's very store, which must keep its promises from here too."""
    uri = store_uri or health.store_uri
    remedy = (
        "Mount the folder here too (NFS, or SSHFS over the same path) and name the mount point: "
        "--store file:///mnt/orch. Or give both machines one object storage."
    )
    try:
        store = open_store(uri)
        here = store_id(store)
    except (NotFoundError, StoreUnavailableError) as error:
        raise SetupError(
            f"{uri} is not the controller's checkpoint store as seen from here", remedy=remedy
        ) from error
    if here != health.store_id:
        raise SetupError(
            f"{uri} is another store ({here}) than the controller's ({health.store_id})", remedy=remedy
        )
    probe(store)


def _check_name(url: str, token: str, config: StackConfig, before: StackConfig | None) -> None:
    """Two living machines must not have one name: their attempts could not be told apart."""
    node = config.nodes[0]
    if before is not None and before.kind == "join" and any(old.name == node.name for old in before.nodes):
        return
    with Client(url, token, timeout_s=_CONNECT_S) as client:
        others = [other for other in client.nodes() if other.name == node.name and other.state == "ready"]
    if others:
        raise SetupError(
            f"the cluster has a node called {node.name} already, at {others[0].address}",
            remedy="Give this one another name: --name NAME",
        )


def _plan(home: Home, url: str, health: Health, request: NodeRequest, address: str | None) -> StackConfig:
    head, _, ray_port = health.ray_address.rpartition(":")
    controller = urlsplit(url).hostname or ""
    own = machine.check_own_address(address) if address else machine.local_address(head)
    if own.startswith("127."):
        # Ray replaces 127.0.0.1 by an outward address; here everything is on one machine.
        own = machine.loopback(stack_id(home), 1)
    elif head.startswith("127."):
        raise SetupError(
            f"Ray's head at {controller} listens on that machine only",
            remedy="Run `orch up --listen ADDRESS` there, with the address that other machines reach.",
        )
    if not TcpProbe(head, int(ray_port))():
        raise SetupError(
            f"Ray's head at {health.ray_address} cannot be reached from here",
            remedy=f"Let the firewall there pass ports {ray_port} and 7430-7499 from private networks.",
        )
    return StackConfig(
        kind="join",
        id=stack_id(home),
        head_address=head,
        ray_port=int(ray_port),
        ray_ports=free_ray_ports(set()),
        controller_url=url.rstrip("/"),
        store_uri=health.store_uri,
        nodes=(_node(request, own),),
    )


def _node(request: NodeRequest, address: str) -> NodeConfig:
    gpus = list(machine.gpus()) if request.gpus != 0 else []
    return choose_node(request, None, address, take_gpus(request, None, gpus), machine.memory())
