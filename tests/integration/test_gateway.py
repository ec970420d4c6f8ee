"""The Ray gateway against real Ray: a head and one node, started as the supervisor starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from orchestrator.agent.job import AgentJob
from orchestrator.cluster import planning
from orchestrator.cluster.agents import agents
from orchestrator.cluster.config import NodeRequest, StackConfig, temp_dir
from orchestrator.cluster.ending import force_agents
from orchestrator.cluster.files import ensure_token, write_node_home
from orchestrator.cluster.gateway import RayGateway
from orchestrator.cluster.host import Host
from orchestrator.cluster.keeper import Keeper
from orchestrator.cluster.processes import end_sessions, marked_sessions
from orchestrator.cluster.ray_command import ray_env
from orchestrator.cluster.services import CONTROLLER, services
from orchestrator.cluster.state import ServicePhase
from orchestrator.domain.fleet import NodeInfo
from orchestrator.errors import OrchError, UnavailableError
from orchestrator.settings import Home
from orchestrator.spec.models import CommandProgram, RunSpec, Variant
from orchestrator.store.objects import open_store, store_id
from tests.support import wait_until

CPUS = 2
MEMORY = 10**9


@dataclass
class Cluster:
    """Real Ray and a gateway to it."""

    home: Home
    config: StackConfig
    gateway: RayGateway

    @property
    def node(self) -> NodeInfo:
        (node,) = self.gateway.nodes()
        return node

    def job(self, run: str, attempt: int = 1) -> AgentJob:
        program = CommandProgram(argv=[sys.executable, "-c", "import time; time.sleep(300)"])
        return AgentJob(
            run_id=run,
            attempt=attempt,
            spec=RunSpec(name=run, command=program, placement=[Variant(pool="p")]),
            variant=Variant(pool="p"),
            node="box",
            controller_url="http://127.0.0.1:9",
            store_uri=self.config.store_uri,
        )

    def launch(self, run: str, cpus: float = 0.5, timeout_s: float = 60.0) -> bool:
        job = self.job(run)
        return self.gateway.launch(actor(run), self.node.ray_id, cpus, 10**8, job, timeout_s)


def actor(run: str) -> str:
    return f"run-{run}-a1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = Home(tmp_path_factory.mktemp("gateway") / "home")
    nodes = [NodeRequest("box", "p", cpus=CPUS, gpus=0, memory=MEMORY)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "RAY_PORT", 0)  # any, so that other stacks on this machine are not met
        config = planning.plan(home, None, nodes, None, "none", None)
    token = ensure_token(home)
    write_node_home(home, "box", token, None)
    store_id(open_store(config.store_uri), create=True)
    host = Host(home, config.id)
    keepers = [Keeper(each, host) for each in services(config, home) if each.name != CONTROLLER]
    env = {**os.environ, **ray_env(config, home.token_file)}
    gateway = RayGateway(config.ray_address, home.service_logs / "gateway.log", env=env)

    def ready() -> bool:
        for keeper in keepers:
            keeper.tick()
        return all(keeper.record.phase is ServicePhase.READY for keeper in keepers)

    try:
        wait_until(ready, 120.0, lambda: str([keeper.record for keeper in keepers]))
        gateway.start()
        wait_until(lambda: gateway.connected, 60.0)
        yield Cluster(home, config, gateway)
    finally:
        gateway.close()
        sessions = {k.record.leader.pid: k.record.leader.create_time for k in keepers if k.record.leader}
        left = end_sessions({**marked_sessions(config.id), **sessions}, 5.0)
        force_agents(home, print)
        shutil.rmtree(temp_dir(config, "").parent, ignore_errors=True)
    assert left == []
    assert agents(home) == []


@pytest.fixture(autouse=True)
def no_actors_left(cluster: Cluster) -> Iterator[None]:
    yield
    wait_until(lambda: cluster.gateway.connected, 60.0)
    for name in cluster.gateway.actors():
        cluster.gateway.kill(name)
    force_agents(cluster.home, print)


def test_only_nodes_with_a_pool_are_listed(cluster: Cluster) -> None:
    node = cluster.node
    assert (node.name, node.pool, node.alive) == ("box", "p", True)
    assert (node.cpus, node.gpus, node.memory) == (CPUS, 0, MEMORY)
    assert node.address == cluster.config.nodes[0].address


def test_a_launch_starts_the_agent_once(cluster: Cluster) -> None:
    assert cluster.launch("once") is True
    (agent,) = agents(cluster.home)
    assert agent.folder.parent.parent == cluster.home.node("box")
    assert cluster.launch("once") is False
    assert len(agents(cluster.home)) == 1
    assert cluster.gateway.actors() == [actor("once")]
    found = cluster.gateway.probe(actor("once"))
    assert (found.state, found.agent_alive) == ("alive", True)


def test_the_agent_outlives_its_actor_and_resources_return(cluster: Cluster) -> None:
    cluster.launch("first", cpus=CPUS)
    cluster.gateway.kill(actor("first"))
    assert len(agents(cluster.home)) == 1
    assert cluster.gateway.probe(actor("first")).state == "missing"
    assert cluster.launch("second", cpus=CPUS), "the processors are free for Ray again"


def test_the_actor_sees_that_its_agent_has_ended(cluster: Cluster) -> None:
    cluster.launch("ends")
    (agent,) = agents(cluster.home)
    os.kill(agent.process.pid, signal.SIGKILL)
    wait_until(lambda: cluster.gateway.probe(actor("ends")).agent_alive is False, 10.0)


def test_killing_what_is_not_there_is_no_error(cluster: Cluster) -> None:
    cluster.gateway.kill("run-nobody-a1")
    assert cluster.gateway.probe("run-nobody-a1").state == "missing"


def test_a_node_that_is_gone_is_told_at_once(cluster: Cluster) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="gone"):
        cluster.gateway.launch("run-x-a1", "f" * 56, 1, 0, cluster.job("x"), timeout_s=30.0)
    assert time.monotonic() - began < 10.0


def test_a_full_node_holds_up_nobody_and_leaves_no_actor(cluster: Cluster) -> None:
    cluster.launch("holds", cpus=CPUS)
    with pytest.raises(UnavailableError, match="did not start within"):
        cluster.launch("waits", cpus=1, timeout_s=2.0)
    wait_until(lambda: cluster.gateway.actors() == [actor("holds")], 10.0)
    assert len(agents(cluster.home)) == 1


def test_an_agent_that_cannot_be_started_says_why(cluster: Cluster) -> None:
    cluster.launch("twice")
    cluster.gateway.kill(actor("twice"))
    with pytest.raises(OrchError, match="was started here before"):
        cluster.launch("twice")
    assert cluster.gateway.probe(actor("twice")).state == "missing"


def test_actors_outlive_the_driver(cluster: Cluster) -> None:
    cluster.launch("stays")
    child = cluster.gateway._child
    assert child is not None
    child.kill()
    wait_until(lambda: cluster.gateway.connected, 60.0)
    assert cluster.gateway.actors() == [actor("stays")]
    assert cluster.gateway.probe(actor("stays")).agent_alive is True


def test_actors_that_are_launched_together_all_start(cluster: Cluster) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: cluster.launch(f"t{number}", cpus=0.25), range(4)))
    assert len(agents(cluster.home)) == 4


def test_workers_come_from_a_template_and_do_without(cluster: Cluster) -> None:
    assert cluster.node.alive, "asking for nodes starts their templates"
    path = temp_dir(cluster.config, "box") / "template"
    wait_until(lambda: _listens(path), 60.0)
    first = _template_of_a_worker(cluster, "forked")
    os.kill(first, signal.SIGKILL)
    assert cluster.launch("alone", cpus=0.1)
    wait_until(lambda: _listens(path), 60.0)
    assert _template_of_a_worker(cluster, "again") != first
    names = [name.removeprefix("run-").removesuffix("-a1") for name in cluster.gateway.actors()]
    assert all(cluster.gateway.probe(actor(name)).agent_alive for name in names)
    assert len(agents(cluster.home)) == len(names)


def _template_of_a_worker(cluster: Cluster, run: str) -> int:
    """Launch until a worker comes from a template, because Ray may have one that was started before it."""
    for number in range(4):
        cluster.launch(f"{run}{number}", cpus=0.1)
        parent = _parent_of_worker(cluster, f"{run}{number}")
        if b"orchestrator.cluster.template" in Path(f"/proc/{parent}/cmdline").read_bytes():
            return parent
    raise AssertionError("no worker came from a template")


def _parent_of_worker(cluster: Cluster, run: str) -> int:
    """The parent of the process that holds the actor."""
    folder = next(agent.folder for agent in agents(cluster.home) if run in agent.folder.name)
    worker = json.loads((folder / "launch.json").read_text())["watched"]["pid"]
    return int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_a_dead_address_is_told_soon(tmp_path: Path) -> None:
    gateway = RayGateway("127.0.0.1:9", tmp_path / "gateway.log")
    gateway.start()
    try:
        wait_until(lambda: "nothing answers" in _why(gateway), 30.0, lambda: _why(gateway))
    finally:
        gateway.close()


def test_ray_refuses_a_driver_without_the_token(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x" * 43)
    env = {**os.environ, **ray_env(cluster.config, tmp_path / "token")}
    gateway = RayGateway(cluster.config.ray_address, tmp_path / "gateway.log", env=env)
    gateway.start()
    try:
        wait_until(lambda: "not started" not in _why(gateway), 60.0, lambda: _why(gateway))
        assert not gateway.connected
    finally:
        gateway.close()


def _why(gateway: RayGateway) -> str:
    try:
        gateway.nodes()
    except UnavailableError as error:
        return error.message
    return "connected"


def test_a_killed_raylet_leaves_none_of_its_processes_behind(cluster: Cluster) -> None:
    """The last test of this node: nobody starts it again."""
    wait_until(lambda: _listens(temp_dir(cluster.config, "box") / "template"), 60.0)
    template = _template_of_a_worker(cluster, "orphan")
    session = os.getsid(template)
    before = [one for one in psutil.process_iter() if _session(one) == session]
    (raylet,) = [one for one in before if one.name() == "raylet"]
    assert psutil.Process(template) in before
    assert any(one.name().startswith("ray::") and one.ppid() == template for one in before)
    raylet.kill()
    wait_until(lambda: _alive(before) == [], 60.0, lambda: str(_alive(before)), every=0.2)
    assert _alive([one for one in psutil.process_iter() if _session(one) == session]) == []
    assert agents(cluster.home), "an agent goes on, and ends by its own rules"


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def _alive(processes: list[psutil.Process]) -> list[str]:
    return [str(one) for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
