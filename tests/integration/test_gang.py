"""Gangs on real Ray nodes of this machine, placed and driven by a real controller in this process.

Nodes `a` and `b` of the pool `pair` have room for one rank each, so that two ranks need both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import uvicorn

from orchestrator.api.app import create_app
from orchestrator.cluster import machine, planning
from orchestrator.cluster.agents import Agent, agents
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
from orchestrator.control.config import ControllerConfig
from orchestrator.control.controller import Controller
from orchestrator.domain import gang
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.messages import SubmitRequest
from orchestrator.settings import Home
from orchestrator.spec.models import CommandProgram, RunSpec, Variant
from tests.stack import tiny_gpt
from tests.support import free_port, wait_until

GPUS = ("5", "7")
"""What node `solo` is told to have; nothing looks at them."""
FOREVER = 100_000
"""Steps that nobody waits for."""


@dataclass
class Gangs:
    """Nodes `a` and `b` of the pool `pair`, `solo` of its own, and a controller."""

    home: Home
    config: StackConfig
    gateway: RayGateway
    controller: Controller

    def submit(self, spec: RunSpec) -> str:
        return self.controller.service.submit(SubmitRequest(spec=spec, key=spec.name)).run_id

    def run(self, run_id: str) -> RunRecord:
        with self.controller.ledger.read() as ledger:
            return ledger.run(run_id)

    def attempts(self, run_id: str) -> list[AttemptRecord]:
        with self.controller.ledger.read() as ledger:
            return ledger.attempts(run_id)

    def record(self, run_id: str, nodes: Sequence[str]) -> None:
        """Record an attempt with a rank on each of these nodes, and have it launched: no planner would."""
        known = {node.name: node.ray_id for node in self.gateway.nodes()}
        run = self.run(run_id)
        run = replace(run, state=RunState.STARTING, attempt=run.attempt + 1)
        first, *others = [Member(known.get(name, "f" * 56), name) for name in nodes]
        attempt = AttemptRecord(
            run_id=run_id,
            number=run.attempt,
            ray_id=first.ray_id,
            node=first.node,
            variant_index=0,
            variant=run.spec.placement[0],
            phase=Phase.LAUNCHING,
            created_at=self.controller.loop._clock.now(),
            members=tuple(others),
        )
        with self.controller.ledger.begin() as ledger:
            ledger.save_run(run)
            ledger.add_attempt(attempt)
        self.controller.loop.launching.launch(run, attempt)

    def nodes_of(self, run_id: str) -> list[set[str]]:
        """The nodes of each of its attempts."""
        return [{member.node for member in gang.members(attempt)} for attempt in self.attempts(run_id)]

    def why(self, run_id: str) -> str:
        """Why it waits; empty where it does not."""
        verdict = self.controller.scheduling.why(run_id, self.controller.watcher.fleet)
        return verdict.why if verdict is not None else ""

    def wait(self, condition: Callable[[], object], timeout: float = 90.0) -> None:
        wait_until(condition, timeout, self.evidence, every=0.1)

    def wait_ended(self, run_id: str, number: int = 1) -> AttemptRecord:
        self.wait(lambda: self.attempts(run_id)[number - 1].ended)
        return self.attempts(run_id)[number - 1]

    def cancel(self, run_id: str, number: int = 1) -> None:
        """Cancel it and see this attempt end."""
        self.controller.service.cancel(run_id)
        assert self.wait_ended(run_id, number).reason is Reason.CANCELLED
        assert self.run(run_id).state is RunState.CANCELLED

    def committed(self, run_id: str) -> list[int]:
        return [view.step for view in self.controller.keeping.checkpoints(run_id)]

    def agent(self, name: str) -> Agent:
        """The living agent whose attempt's folder is called so."""
        return wait_until(
            lambda: next((a for a in agents(self.home) if a.folder.name == name), None), 60, self.evidence
        )

    def program(self, name: str) -> psutil.Process:
        """The trainer below that agent."""
        keeper, *_ = psutil.Process(self.agent(name).process.pid).children()
        return wait_until(lambda: next(iter(keeper.children()), None), 60, self.evidence)

    def log(self, run_id: str, attempt: int, rank: int) -> str:
        return self.controller.service.log_page(run_id, attempt, 0, rank).data.decode()

    def assert_nothing_is_left(self) -> None:
        self.wait(lambda: not agents(self.home) and not self.gateway.actors(), 30)
        here = [p for p in psutil.process_iter(["cmdline"]) if str(self.home.nodes) in str(p.info["cmdline"])]
        assert here == []

    def evidence(self) -> str:
        parts = []
        with self.controller.ledger.read() as ledger:
            for run in ledger.runs():
                parts += [f"{run.id} {run.state}: {run.message}"]
                parts += [
                    f"  {event.at:%T.%f} {event.kind}: {event.text}" for event in ledger.events(run.id)[-12:]
                ]
        for name in ("agent.log", "output.log"):
            for file in sorted(self.home.nodes.glob(f"*/attempts/*/{name}"))[-4:]:
                parts.append(f"--- {file}\n{file.read_text(errors='replace')[-2500:]}")
        return "\n".join(parts)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(f"the {number} of {number * 7919 % 1000}" for number in range(5000)))
    return path


@contextmanager
def serving(controller: Controller, token: str, port: int) -> Iterator[None]:
    """The controller's API in a thread."""
    app = create_app(controller, token, "test")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def own_register(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of processors: other tests have some meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCH_CPU_REGISTER", str(tmp_path_factory.mktemp("register")))
        yield


@pytest.fixture(scope="module")
def gangs(tmp_path_factory: pytest.TempPathFactory, own_register: None) -> Iterator[Gangs]:
    home = Home(tmp_path_factory.mktemp("gang") / "home")
    nodes = [
        NodeRequest("a", "pair", cpus=1, gpus=0, memory=10**9),
        NodeRequest("b", "pair", cpus=1, gpus=0, memory=10**9),
        NodeRequest("solo", "solo", cpus=2, gpus=2, memory=10**9),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "RAY_PORT", 0)  # any, so that other stacks on this machine are not met
        patch.setattr(machine, "gpus", lambda: GPUS)
        config = planning.plan(home, None, nodes, None, "none", None)
    token = ensure_token(home)
    for node in nodes:
        write_node_home(home, node.name, token, None)
    host, port = Host(home, config.id), free_port()
    keepers = [Keeper(each, host) for each in services(config, home) if each.name != CONTROLLER]
    env = {**os.environ, **ray_env(config, home.token_file)}
    gateway = RayGateway(config.ray_address, home.service_logs / "gateway.log", env=env)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        for keeper in keepers:
            keeper.tick()
        return all(keeper.record.phase is ServicePhase.READY for keeper in keepers)

    try:
        wait_until(ready, 120.0, lambda: str([keeper.record for keeper in keepers]))
        gateway.start()
        wait_until(lambda: gateway.connected and len(gateway.nodes()) == len(nodes), 60.0)
        controller = Controller(ControllerConfig(home, url, config.store_uri, "", ""), gateway)
        with serving(controller, token, port):
            wait_until(lambda: controller.watcher.fleet.connected, 30.0)
            yield Gangs(home, config, gateway, controller)
    finally:
        gateway.close()
        sessions = {k.record.leader.pid: k.record.leader.create_time for k in keepers if k.record.leader}
        left = end_sessions({**marked_sessions(config.id), **sessions}, 5.0)
        force_agents(home, print)
        shutil.rmtree(temp_dir(config, "").parent, ignore_errors=True)
    assert left == []
    assert agents(home) == []


def gpt(name: str, text: Path, **values: object) -> RunSpec:
    placement = [{"pool": "pair", "cpus": 1, "ranks": 2}, {"pool": "solo", "cpus": 1}]
    return RunSpec.model_validate(tiny_gpt(name, text, FOREVER, placement=placement, **values))


def program(name: str, pool: str, code: str, *arguments: str, gpus: int = 0) -> RunSpec:
    """A run of one rank that is this Python code."""
    argv = [sys.executable, "-c", code, *arguments]
    placement = [Variant(pool=pool, gpus=gpus)]
    return RunSpec(name=name, command=CommandProgram(argv=argv), placement=placement)


SLEEPS = "import time; time.sleep(600)"


def test_all_ranks_or_none_start_and_move_to_one(gangs: Gangs, text: Path) -> None:
    in_the_way = gangs.submit(program("in-the-way", "pair", SLEEPS))
    gangs.wait(lambda: gangs.run(in_the_way).state is RunState.RUNNING)
    run_id = gangs.submit(gpt("moves", text, migrate="never", start="best", wait=600))
    later = gangs.submit(program("later", "pair", SLEEPS))
    gangs.wait(lambda: "has room for one rank" in gangs.why(run_id))
    assert "pool pair has no room for 2 ranks" in gangs.why(run_id)
    assert "in use by in-the-way" in gangs.why(run_id)
    assert "kept for moves, which goes first" in gangs.why(later), "nobody slips in before a gang"
    assert gangs.attempts(run_id) == gangs.attempts(later) == []
    assert set(gangs.gateway.actors()) == {f"run-{in_the_way}-a1"}
    gangs.cancel(in_the_way)

    gangs.wait(lambda: len(gangs.committed(run_id)) >= 2)
    assert gangs.nodes_of(run_id) == [{"a", "b"}]
    assert set(gangs.gateway.actors()) == {f"run-{run_id}-a1", f"run-{run_id}-a1-r1"}
    assert {agent.folder.parent.parent.name for agent in agents(gangs.home)} == {"a", "b"}
    env = gangs.program(f"{run_id}-a1-r1").environ()
    cores = [gangs.program(name).cpu_affinity() for name in (f"{run_id}-a1", f"{run_id}-a1-r1")]
    assert sorted(map(len, cores)) == [1, 1]
    assert cores[0] != cores[1], "nodes of one machine share its register"
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("1", "2", "0")
    first_node = next(node for node in gangs.config.nodes if node.name == gangs.attempts(run_id)[0].node)
    assert env["MASTER_ADDR"] == first_node.address
    assert "ORCH_METRICS_FILE" not in env

    gangs.controller.service.cancel(later)
    gangs.controller.service.move(run_id, "solo")
    first = gangs.wait_ended(run_id)
    assert (first.reason, first.exit_code) == (Reason.MOVED, 75)
    assert gangs.committed(run_id)[-1] == first.last_step
    assert "loss" in gangs.log(run_id, 1, 0)
    assert "loss" not in gangs.log(run_id, 1, 1), "only rank 0 speaks"
    gangs.wait(lambda: gangs.committed(run_id)[-1] > (first.last_step or 0))
    second = gangs.attempts(run_id)[1]
    assert (second.node, second.first_step) == ("solo", first.last_step)
    gangs.controller.service.move(run_id, "pair")
    gangs.wait(lambda: len(gangs.attempts(run_id)) == 3 and gangs.attempts(run_id)[2].phase is Phase.RUNNING)
    second, third = gangs.attempts(run_id)[1:]
    assert (second.reason, gangs.nodes_of(run_id)[2]) == (Reason.MOVED, {"a", "b"})
    assert third.first_step == second.last_step
    gangs.cancel(run_id, 3)
    gangs.assert_nothing_is_left()


def test_a_killed_rank_ends_all_and_all_are_tried_again(gangs: Gangs, text: Path) -> None:
    run_id = gangs.submit(gpt("killed", text))
    gangs.wait(lambda: gangs.committed(run_id))
    other = gangs.program(f"{run_id}-a1")
    rank = gangs.attempts(run_id)[0].members[0].node
    os.kill(gangs.program(f"{run_id}-a1-r1").pid, signal.SIGKILL)
    gangs.wait(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE, 15)
    ended = gangs.wait_ended(run_id)
    assert ended.reason is Reason.PROGRAM_KILLED
    assert ended.message.startswith(f"rank 1 on {rank}: the program was ended by SIGKILL")
    gangs.wait(lambda: gangs.committed(run_id)[-1] > (ended.last_step or 0))
    assert gangs.nodes_of(run_id) == [{"a", "b"}] * 2
    second = gangs.attempts(run_id)[1]
    assert second.first_step
    assert second.first_step % 50 == 0
    gangs.cancel(run_id, 2)
    gangs.assert_nothing_is_left()


def test_a_rank_whose_node_is_gone_ends_the_others_before_they_start(gangs: Gangs, text: Path) -> None:
    gangs.controller.scheduling.draining = True
    run_id = gangs.submit(gpt("gone", text))
    gangs.record(run_id, ["a", "nowhere"])
    gangs.agent(f"{run_id}-a1")
    ended = gangs.wait_ended(run_id)
    gangs.controller.service.cancel(run_id)
    gangs.controller.scheduling.draining = False
    assert (ended.reason, ended.message) == (
        Reason.NODE_LOST,
        "rank 1 on nowhere: nowhere was lost before the agent there had said a word",
    )
    assert ended.started_at is None
    assert gangs.log(run_id, 1, 0) == ""
    gangs.assert_nothing_is_left()


SEEN = """
import json, os, sys, time
print(json.dumps({**os.environ, "cores": sorted(os.sched_getaffinity(0))}), flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.05)
"""


def test_a_program_sees_the_gpus_that_it_was_granted(gangs: Gangs, tmp_path: Path) -> None:
    go_on, names = tmp_path / "go-on", ("first", "second", "none")
    ids = [gangs.submit(program(n, "solo", SEEN, str(go_on), gpus=int(n != "none"))) for n in names]
    gangs.wait(lambda: all(gangs.run(run_id).state is RunState.RUNNING for run_id in ids[:2]))
    assert "0 of 2 CPUs free" in gangs.why(ids[2])
    go_on.touch()
    seen = []
    for run_id in ids:
        gangs.wait_ended(run_id)
        assert gangs.run(run_id).state is RunState.SUCCEEDED, gangs.evidence()
        env = json.loads(gangs.log(run_id, 1, 0))
        seen.append((env["CUDA_VISIBLE_DEVICES"], env["ORCH_DEVICE"], env["CUDA_DEVICE_ORDER"]))
        assert len(env["cores"]) == 1
        assert "ORCH_NODE_GPUS" not in env
    assert seen == [("5", "cuda", "PCI_BUS_ID"), ("7", "cuda", "PCI_BUS_ID"), ("", "cpu", "PCI_BUS_ID")]


def test_ray_lost_on_one_node_ends_all_with_everything_saved(gangs: Gangs, text: Path) -> None:
    """The last test here: one node of the pair is gone after it."""
    run_id = gangs.submit(gpt("ray-lost", text))
    gangs.wait(lambda: gangs.committed(run_id))
    launch = json.loads((gangs.agent(f"{run_id}-a1-r1").folder / "launch.json").read_text())
    session = os.getsid(launch["watched"]["pid"])
    raylet = next(p for p in psutil.process_iter() if p.name() == "raylet" and os.getsid(p.pid) == session)
    raylet.kill()
    ended = gangs.wait_ended(run_id)
    # On a busy machine the agent there may be silent for as long as a lost node is waited for.
    assert ended.reason in (Reason.ACTOR_LOST, Reason.NODE_LOST), gangs.evidence()
    gangs.wait(lambda: len(gangs.attempts(run_id)) == 2)
    assert gangs.run(run_id).retries_used == 0
    assert gangs.nodes_of(run_id)[1] == {"solo"}, "both ranks do not fit any more"
    saved = [view.step for view in gangs.controller.keeping.checkpoints(run_id) if view.attempt == 1]
    assert saved[-1] == ended.last_step
    gangs.cancel(run_id, 2)
    gangs.assert_nothing_is_left()
