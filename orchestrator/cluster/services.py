"""The services that a configuration asks for: how each is started, and how one sees that it lives."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field

from orchestrator.cluster.config import NodeConfig, StackConfig, temp_dir
from orchestrator.cluster.probes import HttpProbe, Probe, TcpProbe
from orchestrator.cluster.ray_command import DASHBOARD, head_argv, node_argv, ray_env
from orchestrator.settings import Home

HEAD = "head"
MLFLOW = "mlflow"
CONTROLLER = "controller"
NODE_PREFIX = "node-"


@dataclass(frozen=True)
class Service:
    """One thing that the supervisor keeps running."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    """Variables to add to the supervisor's environment."""
    daemons: tuple[str, ...] = ()
    """Names of processes that `argv` leaves behind when it ends with 0; the service lives as long as all of
    them. Empty where `argv` itself is the service."""
    probe: Probe | None = None
    """None where living processes are all that can be asked for."""
    needs: Probe | None = None
    """Nothing is started before this answers."""
    listens: tuple[str, int] | None = None
    """Address and port that must be free when it is started."""
    start_s: float = 90.0
    """Time from the start to the first answer, after which it is started again."""
    silent_s: float = 120.0
    """Time without an answer, of a service that had answered, after which it is started again."""
    temp_dir: str = ""
    """Folder that is fresh at every start; the one before is kept beside it."""
    unwanted: str = ""
    """Processes whose command contains this are ended once the service is ready."""
    node: str = ""
    """Name of the Ray node that this is."""
    ours: bool = False
    """Whether it runs this program, and an older one after an update."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything that needs a restart."""
        told = {"argv": self.argv, "env": self.env, "temp_dir": self.temp_dir}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def services(config: StackConfig, home: Home) -> list[Service]:
    """What to run, in the order in which a person would name it."""
    nodes = [_node(config, node, home) for node in config.nodes]
    if config.kind == "join":
        return nodes
    mlflow = [_mlflow(config, home)] if config.mlflow_port else []
    return [_head(config, home), *nodes, *mlflow, _controller(config, home)]


def _head(config: StackConfig, home: Home) -> Service:
    return Service(
        name=HEAD,
        argv=tuple(head_argv(config)),
        env={**ray_env(config, home.token_file), "CUDA_VISIBLE_DEVICES": ""},
        daemons=("gcs_server", "raylet"),
        probe=TcpProbe(config.head_address, config.ray_port),
        listens=("0.0.0.0", config.ray_port),
        temp_dir=str(temp_dir(config, "head")),
        unwanted=DASHBOARD,
    )


def _node(config: StackConfig, node: NodeConfig, home: Home) -> Service:
    folder = home.node(node.name)
    return Service(
        name=NODE_PREFIX + node.name,
        argv=tuple(node_argv(config, node)),
        env={
            **ray_env(config, folder / "token"),
            "ORCH_NODE_HOME": str(folder),
            "CUDA_VISIBLE_DEVICES": ",".join(node.gpu_ids),
            # Ray changes the one above in its workers.
            "ORCH_NODE_GPUS": ",".join(node.gpu_ids),
            # CUDA numbers the fastest GPU first otherwise; nvidia-smi and NVML go by the bus.
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        },
        daemons=("raylet",),
        needs=TcpProbe(config.head_address, config.ray_port),
        temp_dir=str(temp_dir(config, node.name)),
        node=node.name,
        ours=True,
    )


def _mlflow(config: StackConfig, home: Home) -> Service:
    port = config.mlflow_port
    return Service(
        name=MLFLOW,
        argv=(
            *_module("orchestrator.cluster.mlflow_main"),
            str(home.mlflow),
            "127.0.0.1",
            str(port),
        ),
        probe=HttpProbe(f"http://127.0.0.1:{port}/health"),
        listens=("127.0.0.1", config.mlflow_port or 0),
        # Creating or upgrading its database can take minutes on a slow disk.
        start_s=400.0,
        silent_s=180.0,
    )


def _controller(config: StackConfig, home: Home) -> Service:
    host, port = config.controller_host, str(config.controller_port)
    options = ["--host", host, "--port", port, "--url", config.controller_url]
    options += ["--ray-address", config.ray_address, "--store", config.store_uri]
    if config.mlflow_url:
        options += ["--mlflow", config.mlflow_url]
    return Service(
        name=CONTROLLER,
        argv=(*_module("orchestrator.api"), *options),
        env={**ray_env(config, home.token_file), "ORCH_HOME": str(home.root)},
        probe=HttpProbe(f"http://{host}:{port}/v1/health"),
        listens=(host, config.controller_port),
        ours=True,
    )


def _module(name: str) -> list[str]:
    # -P: the working directory is not a place to import from.
    return [sys.executable, "-P", "-m", name]
