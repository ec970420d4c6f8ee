"""What a machine is asked to run, as `orch up` and `orch join` write it and the supervisor reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import SetupError
from orchestrator.settings import Home, write_private
from orchestrator.spec.values import ByteSize, Name

NODE_SYNTAX = "NAME[:pool=POOL,cpus=N,gpus=N,memory=SIZE]"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeConfig(_Frozen):
    """One Ray node of this machine."""

    name: Name
    pool: Name
    cpus: int
    gpus: int = 0
    gpu_ids: tuple[str, ...] = ()
    """Which of the machine's GPUs these are, as CUDA_VISIBLE_DEVICES names them."""
    memory: int
    """Bytes that it offers to runs."""
    address: str
    """IP address that this node uses for itself."""


class RayPorts(_Frozen):
    """Fixed ports for Ray's processes on a machine that others must reach through a firewall; 0: any."""

    node_manager: int = 0
    object_manager: int = 0
    first_worker: int = 0
    last_worker: int = 0


class StackConfig(_Frozen):
    """Everything that the supervisor keeps running on one machine. Holds no secret."""

    kind: Literal["controller", "join"]
    id: str
    """Marks the processes and temporary folders of this state folder; the same for its whole life."""
    head_address: str
    """IP address of the Ray head, on this machine or (kind `join`) another one."""
    ray_port: int
    ray_ports: RayPorts = RayPorts()
    controller_url: str
    controller_host: str = ""
    """Address that the controller listens on. Empty on a machine that has joined."""
    controller_port: int = 0
    mlflow_port: int | None = None
    """Port of our own MLflow server on loopback; None where there is none."""
    external_mlflow_url: str = ""
    store_uri: str
    nodes: tuple[NodeConfig, ...] = ()

    @property
    def ray_address(self) -> str:
        """IP:PORT of the Ray head."""
        return f"{self.head_address}:{self.ray_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of the MLflow server; empty where there is none."""
        return f"http://127.0.0.1:{self.mlflow_port}" if self.mlflow_port else self.external_mlflow_url

    @property
    def exposed(self) -> bool:
        """Whether machines other than this one take part."""
        return self.kind == "join" or not self.head_address.startswith("127.")


def stack_id(home: Home) -> str:
    """Eight hexadecimal digits that stand for a state folder on this machine."""
    return hashlib.sha256(str(home.root).encode()).hexdigest()[:8]


def temp_dir(config: StackConfig, part: str) -> Path:
    """Ray's folder of sessions, sockets and logs for one of our services.

    Short, because a socket's path may have 107 bytes and Ray adds about 70 of its own; node names are
    replaced by a digest for the same reason.
    """
    return Path("/tmp") / f"orch-{config.id}" / hashlib.sha256(part.encode()).hexdigest()[:6]


def load_config(home: Home) -> StackConfig | None:
    """What this machine was asked to run last; None where nothing was."""
    try:
        return StackConfig.model_validate_json(home.stack_file.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SetupError(
            f"{home.stack_file} cannot be understood: {error.errors()[0]['msg']}",
            remedy="Run `orch down` with the version that wrote it, or remove the file.",
        ) from error


def save_config(home: Home, config: StackConfig) -> None:
    """Write it, whole or not at all. The supervisor follows within a second."""
    write_private(home.stack_file, config.model_dump_json(indent=2) + "\n")


@dataclass(frozen=True)
class NodeRequest:
    """One node as a user asks for it. What is None is chosen by the machine."""

    name: str
    pool: str
    cpus: int | None = None
    gpus: int | None = None
    memory: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `gpu:cpus=4,gpus=1`. The pool is called like the node unless `pool=` says otherwise.

        SetupError says what is wrong and how it is written.
        """
        name, _, rest = text.partition(":")
        given: dict[str, str] = {"name": name, "pool": name}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals or key.strip() not in _NodeText.model_fields or key.strip() == "name":
                raise _bad_node(text, f"{part!r} is not understood")
            given[key.strip()] = value.strip()
        try:
            parsed = _NodeText.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(place) for place in first["loc"])
            raise _bad_node(text, f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        return cls(**parsed.model_dump())


def _label(value: str) -> str:
    if not value[-1:].isalnum():
        raise ValueError("names of nodes and pools end with a letter or digit")
    return value


class _NodeText(BaseModel):
    name: Annotated[Name, AfterValidator(_label)]
    pool: Annotated[Name, AfterValidator(_label)]
    cpus: Annotated[int, Field(ge=1, le=4096)] | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    memory: ByteSize | None = None


def _bad_node(text: str, why: str) -> SetupError:
    return SetupError(f"--node {text}: {why}", remedy=f"Write it as {NODE_SYNTAX}.")
