"""A controller with a real ledger, spool and store, and a cluster that exists only on paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.agent.job import AgentJob
from orchestrator.api.app import create_app
from orchestrator.clock import SYSTEM, Clock
from orchestrator.control.config import ControllerConfig
from orchestrator.control.controller import Controller
from orchestrator.domain.fleet import ActorInfo, NodeInfo
from orchestrator.errors import OrchError
from orchestrator.settings import Home
from tests.unit.records import node

TOKEN = "a-token-for-tests-only"


@dataclass
class PaperGateway:
    """Launches nothing; remembers what it was asked for."""

    fleet: list[NodeInfo] = field(default_factory=lambda: [node("laptop"), node("gpu")])
    jobs: dict[str, AgentJob] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    launch_error: OrchError | None = None
    nodes_error: OrchError | None = None
    agents_alive: bool | None = True
    connected: bool = True

    def nodes(self, timeout_s: float = 5.0) -> list[NodeInfo]:
        if self.nodes_error:
            raise self.nodes_error
        return list(self.fleet)

    def launch(
        self, name: str, ray_id: str, cpus: float, memory: int, job: AgentJob,
        timeout_s: float = 30.0,
    ) -> bool:  # fmt: skip
        if self.launch_error:
            raise self.launch_error
        new = name not in self.jobs
        self.jobs[name] = job
        return new

    def probe(self, name: str, timeout_s: float = 5.0) -> ActorInfo:
        return ActorInfo(name, "alive", self.agents_alive)

    def kill(self, name: str, timeout_s: float = 5.0) -> None:
        self.killed.append(name)

    def actors(self, timeout_s: float = 5.0) -> list[str]:
        return list(self.jobs)

    def close(self) -> None:
        self.connected = False


@pytest.fixture
def gateway() -> PaperGateway:
    return PaperGateway()


def build(tmp_path: Path, gateway: PaperGateway, clock: Clock = SYSTEM) -> Controller:
    config = ControllerConfig(
        home=Home(tmp_path),
        url="http://127.0.0.1:1",
        store_uri=(tmp_path / "store").as_uri(),
        ray_address="127.0.0.1:2",
        mlflow_url="",
    )
    return Controller(config, gateway, clock)


@pytest.fixture
def controller(tmp_path: Path, gateway: PaperGateway) -> Controller:
    return build(tmp_path, gateway)


@pytest.fixture
def api(controller: Controller) -> Iterator[TestClient]:
    """The whole API with its loop running."""
    app = create_app(controller, TOKEN, "cluster-1")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client
