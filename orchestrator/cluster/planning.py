"""From what a user asked for to a configuration: names, ports, addresses, shares of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orchestrator.agent import ports
from orchestrator.cluster import machine
from orchestrator.cluster.config import NodeConfig, NodeRequest, RayPorts, StackConfig, stack_id
from orchestrator.errors import SetupError
from orchestrator.settings import Home

CONTROLLER_PORT: Final = 7420
MLFLOW_PORT: Final = 7421
RAY_PORT: Final = 7422
RAY_PORTS: Final = RayPorts(node_manager=7430, object_manager=7431, first_worker=7440, last_worker=7499)
"""What a firewall has to let through between machines, besides the controller's port and Ray's."""
LOOPBACK: Final = "127.0.0.1"
NO_MLFLOW: Final = "none"
LEAST_MEMORY: Final = 512 * 1024 * 1024


def plan(
    home: Home,
    before: StackConfig | None,
    nodes: Sequence[NodeRequest],
    listen: str | None,
    mlflow_url: str | None,
    store_uri: str | None,
) -> StackConfig:
    """The configuration that was asked for; ports and addresses stay as they were where they can."""
    if before is not None and before.kind == "join":
        if nodes or listen or mlflow_url or store_uri:
            raise SetupError(
                f"this machine has joined {before.controller_url}",
                remedy="Change its node with `orch join`, or take it out with `orch leave`.",
            )
        return before
    stack = stack_id(home)
    host = _listen_host(before, listen)
    head = host if host != LOOPBACK else machine.loopback(stack, 0)
    same = before if before is not None and before.controller_host == host else None
    taken: set[int] = set()

    def port(old: int | None, preferred: int, at: str) -> int:
        # An old one is kept even where it is not free: it may be ours. If not, the start says who has it.
        chosen = old or ports.pick_port(at, preferred, taken)
        taken.add(chosen)
        return chosen

    controller_port = port(before.controller_port if before else None, CONTROLLER_PORT, host)
    own_mlflow, external = _mlflow(before, mlflow_url)
    mlflow_port = port(before.mlflow_port if before else None, MLFLOW_PORT, LOOPBACK) if own_mlflow else None
    return StackConfig(
        kind="controller",
        id=stack,
        head_address=head,
        ray_port=port(before.ray_port if before else None, RAY_PORT, "0.0.0.0"),
        ray_ports=free_ray_ports(taken) if same is None else same.ray_ports,
        controller_url=f"http://{host}:{controller_port}",
        controller_host=host,
        controller_port=controller_port,
        mlflow_port=mlflow_port,
        external_mlflow_url=external,
        store_uri=_store_uri(home, before, store_uri),
        nodes=nodes_of(stack, before, nodes),
    )


def free_ray_ports(taken: set[int]) -> RayPorts:
    """The documented ports for firewalls, or any where another stack has them."""
    fixed = (RAY_PORTS.node_manager, RAY_PORTS.object_manager)
    free = all(port not in taken and ports.bindable("0.0.0.0", port) for port in fixed)
    return RAY_PORTS if free else RayPorts()


def nodes_of(
    stack: str, before: StackConfig | None, requests: Sequence[NodeRequest]
) -> tuple[NodeConfig, ...]:
    """The nodes that were asked for; those of before where nothing was, else one with all of the machine.

    A node of before keeps whatever the request leaves open, so that it is not restarted for nothing.
    """
    known = {node.name: node for node in before.nodes} if before else {}
    if not requests and known:
        return tuple(known.values())
    wanted = list(requests) or [NodeRequest("local", "local")]
    _check_names(wanted)
    kept = [known[request.name] for request in wanted if request.name in known]
    used = {node.address for node in kept}
    free_gpus = list(machine.gpus()) if any(request.gpus != 0 for request in wanted) else []
    left = machine.memory() - sum(node.memory for node in kept)
    share = max(LEAST_MEMORY, left // max(1, len(wanted) - len(kept)))
    chosen = []
    for request in wanted:
        old = known.get(request.name)
        address = old.address if old else _free_address(stack, used)
        used.add(address)
        chosen.append(choose_node(request, old, address, take_gpus(request, old, free_gpus), share))
    return tuple(chosen)


def choose_node(
    request: NodeRequest, old: NodeConfig | None, address: str, gpu_ids: tuple[str, ...], memory: int
) -> NodeConfig:
    """What a node offers: what was asked for, what it offered before, else what the machine has."""
    return NodeConfig(
        name=request.name,
        pool=request.pool,
        cpus=request.cpus or (old.cpus if old else machine.cpus()),
        gpus=len(gpu_ids),
        gpu_ids=gpu_ids,
        memory=request.memory or (old.memory if old else memory),
        address=address,
    )


def take_gpus(request: NodeRequest, old: NodeConfig | None, free: list[str]) -> tuple[str, ...]:
    """Takes as many GPUs from `free` as were asked for; all, where nothing is said.

    SetupError where there are not as many.
    """
    count = request.gpus if request.gpus is not None else (old.gpus if old else len(free))
    if count > len(free):
        raise SetupError(
            f"node {request.name} asks for {count} GPUs, but {len(free)} are left on this machine",
            remedy="See `nvidia-smi -L`, or leave `gpus=` out for a CPU node.",
        )
    taken = tuple(free[:count])
    del free[:count]
    return taken


def _check_names(wanted: Sequence[NodeRequest]) -> None:
    names = [request.name for request in wanted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SetupError(
            f"two nodes are called {twice[0]}",
            remedy=f"Give them names of their own and the pool as an option: --node NAME:pool={twice[0]},…",
        )


def _free_address(stack: str, used: set[str]) -> str:
    candidates = (machine.loopback(stack, number) for number in range(1, 250))
    return next(address for address in candidates if address not in used)


def _listen_host(before: StackConfig | None, listen: str | None) -> str:
    if listen is None:
        return before.controller_host if before else LOOPBACK
    return LOOPBACK if listen in (LOOPBACK, "localhost") else machine.check_own_address(listen)


def _mlflow(before: StackConfig | None, wanted: str | None) -> tuple[bool, str]:
    """Whether to run our own server, and the address of another one."""
    if wanted is None:
        return (True, "") if before is None else (before.mlflow_port is not None, before.external_mlflow_url)
    return False, "" if wanted == NO_MLFLOW else wanted.rstrip("/")


def _store_uri(home: Home, before: StackConfig | None, wanted: str | None) -> str:
    if wanted is not None:
        return store_address(wanted)
    return before.store_uri if before else home.store.as_uri()


def store_address(text: str) -> str:
    """A store as a URI; a plain path is a folder of this machine."""
    return text if "://" in text else Path(text).expanduser().absolute().as_uri()
