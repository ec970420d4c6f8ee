"""Gangs on two real Ray nodes of this machine, driven by a real controller in this process.

The test chooses the nodes itself, by recording attempts as the planner does.
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
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.messages import SubmitRequest
from orchestrator.settings import Home
from orchestrator.spec.models import CommandProgram, RunSpec, Variant
from tests.stack import tiny_gpt
from tests.support import free_port, wait_until

CPUS = 2
GPUS = ("5", "7")
"""What node b is told to have; nothing looks at them."""


@dataclass
class Gangs:
    """Nodes `a` and `b`, a controller, and the planner's part."""

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

    def place(self, run_id: str, nodes: Sequence[str], variant: int = 0, **changes: object) -> AttemptRecord:
        """Record an attempt with a rank on each of these nodes, and have it launched."""
        known = {node.name: node.ray_id for node in self.gateway.nodes()}
        run = self.run(run_id)
        run = replace(run, state=RunState.STARTING, attempt=run.attempt + 1, message="", reason=None)
        ranks = [Member(known.get(name, "f" * 56), name) for name in nodes]
        attempt = AttemptRecord(
            run_id=run_id,
            number=run.attempt,
            ray_id=ranks[0].ray_id,
            node=ranks[0].node,
            variant_index=variant,
            variant=run.spec.placement[variant],
            phase=Phase.LAUNCHING,
            created_at=self.controller.loop._clock.now(),
            members=tuple(ranks[1:]),
        )
        attempt = replace(attempt, **changes)  # type: ignore[arg-type]
        with self.controller.ledger.begin() as ledger:
            ledger.save_run(run)
            ledger.add_attempt(attempt)
        self.controller.loop.launching.launch(run, attempt)
        return attempt

    def wait(self, condition: Callable[[], object], timeout: float = 90.0) -> None:
        wait_until(condition, timeout, self.evidence, every=0.1)

    def wait_ended(self, run_id: str, number: int = 1) -> AttemptRecord:
        self.wait(lambda: self.attempts(run_id)[number - 1].ended)
        return self.attempts(run_id)[number - 1]

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
        NodeRequest("a", "a", cpus=CPUS, gpus=0, memory=10**9),
        NodeRequest("b", "b", cpus=CPUS, gpus=2, memory=10**9),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "RAY_PORT", 0)  # any, so that other stacks on this machine are not met
        patch.setattr(machine, "gpus", lambda: GPUS)
        config = planning.plan(home, None, nodes, None, "none", None)
    token = ensure_token(home)
    for node in ("a", "b"):
        write_node_home(home, node, token, None)
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
        wait_until(lambda: gateway.connected and len(gateway.nodes()) == 2, 60.0)
        controller = Controller(ControllerConfig(home, url, config.store_uri, "", ""), gateway)
        controller.scheduling.draining = True  # the test is the planner
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


def gpt(name: str, text: Path, steps: int) -> RunSpec:
    placement = [{"pool": "a", "cpus": 1, "ranks": 2}, {"pool": "b", "cpus": 1}]
    return RunSpec.model_validate(tiny_gpt(name, text, steps, placement=placement))


def test_two_ranks_on_two_nodes_move_to_one(gangs: Gangs, text: Path) -> None:
    run_id = gangs.submit(gpt("moves", text, 100_000))
    gangs.place(run_id, ["a", "b"])
    gangs.wait(lambda: len(gangs.committed(run_id)) >= 2)
    assert set(gangs.gateway.actors()) == {f"run-{run_id}-a1", f"run-{run_id}-a1-r1"}
    assert {agent.folder.parent.parent.name for agent in agents(gangs.home)} == {"a", "b"}
    env = gangs.program(f"{run_id}-a1-r1").environ()
    cores = [gangs.program(name).cpu_affinity() for name in (f"{run_id}-a1", f"{run_id}-a1-r1")]
    assert sorted(map(len, cores)) == [1, 1]
    assert cores[0] != cores[1], "nodes of one machine share its register"
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("1", "2", "0")
    assert env["MASTER_ADDR"] == gangs.config.nodes[0].address
    assert "ORCH_METRICS_FILE" not in env

    gangs.controller.service.move(run_id, "b")
    first = gangs.wait_ended(run_id)
    assert (first.reason, first.exit_code) == (Reason.MOVED, 75)
    assert gangs.committed(run_id)[-1] == first.last_step
    assert "loss" in gangs.log(run_id, 1, 0)
    assert "loss" not in gangs.log(run_id, 1, 1), "only rank 0 speaks"
    gangs.assert_nothing_is_left()

    gangs.place(run_id, ["b"], variant=1)
    gangs.wait(lambda: gangs.committed(run_id)[-1] > (first.last_step or 0) + 50)
    second = gangs.attempts(run_id)[1]
    assert second.first_step == first.last_step
    gangs.controller.service.move(run_id, "a")
    assert gangs.wait_ended(run_id, 2).reason is Reason.MOVED

    gangs.place(run_id, ["b", "a"])
    gangs.wait(lambda: (gangs.attempts(run_id)[2].first_step or 0) > 0)
    gangs.wait(lambda: gangs.attempts(run_id)[2].phase is Phase.RUNNING)
    gangs.controller.service.cancel(run_id)
    assert gangs.wait_ended(run_id, 3).reason is Reason.CANCELLED
    gangs.assert_nothing_is_left()


def test_a_killed_rank_ends_all_and_cancelling_leaves_nothing(gangs: Gangs, text: Path) -> None:
    run_id = gangs.submit(gpt("killed", text, 100_000))
    gangs.place(run_id, ["a", "b"])
    gangs.wait(lambda: gangs.committed(run_id))
    other = gangs.program(f"{run_id}-a1")
    os.kill(gangs.program(f"{run_id}-a1-r1").pid, signal.SIGKILL)
    gangs.wait(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE, 15)
    ended = gangs.wait_ended(run_id)
    assert ended.reason is Reason.PROGRAM_KILLED
    assert ended.message.startswith("rank 1 on b: the program was ended by SIGKILL")
    gangs.assert_nothing_is_left()

    run = gangs.run(run_id)
    assert (run.state, run.retries_used) == (RunState.QUEUED, 1)
    gangs.place(run_id, ["a", "b"])
    gangs.wait(lambda: gangs.committed(run_id)[-1] > (ended.last_step or 0))
    second = gangs.attempts(run_id)[1]
    assert second.first_step
    assert second.first_step % 50 == 0
    gangs.controller.service.cancel(run_id)
    assert gangs.wait_ended(run_id, 2).reason is Reason.CANCELLED
    assert gangs.run(run_id).state is RunState.CANCELLED
    gangs.assert_nothing_is_left()


def test_a_rank_whose_node_is_gone_ends_the_others_before_they_start(gangs: Gangs, text: Path) -> None:
    run_id = gangs.submit(gpt("gone", text, 100_000))
    gangs.place(run_id, ["a", "nowhere"])
    gangs.agent(f"{run_id}-a1")
    ended = gangs.wait_ended(run_id)
    assert (ended.reason, ended.message) == (
        Reason.NODE_LOST,
        "rank 1 on nowhere: nowhere was lost before the agent there had said a word",
    )
    assert ended.started_at is None
    assert gangs.log(run_id, 1, 0) == ""
    gangs.assert_nothing_is_left()


SEEN = "import json, os; print(json.dumps({**os.environ, 'cores': sorted(os.sched_getaffinity(0))}))"


def test_a_program_sees_the_gpus_that_it_was_granted(gangs: Gangs) -> None:
    program = CommandProgram(argv=[sys.executable, "-c", SEEN])
    cpu, gpu = Variant(pool="b"), Variant(pool="b", gpus=1)
    spec = RunSpec(name="sees", command=program, placement=[cpu, gpu])
    seen = []
    for name, variant, granted in (("none", 0, ()), ("first", 1, ()), ("second", 1, (1,))):
        run_id = gangs.submit(spec.model_copy(update={"name": name}))
        gangs.place(run_id, ["b"], variant, gpu_ids=granted)
        gangs.wait_ended(run_id)
        assert gangs.run(run_id).state is RunState.SUCCEEDED, gangs.evidence()
        env = json.loads(gangs.log(run_id, 1, 0))
        seen.append((env["CUDA_VISIBLE_DEVICES"], env["ORCH_DEVICE"], env["CUDA_DEVICE_ORDER"]))
        assert len(env["cores"]) == 1
        assert "ORCH_NODE_GPUS" not in env
    assert seen == [("", "cpu", "PCI_BUS_ID"), ("5", "cuda", "PCI_BUS_ID"), ("7", "cuda", "PCI_BUS_ID")]


def test_ray_lost_on_one_node_ends_all_with_everything_saved(gangs: Gangs, text: Path) -> None:
    """The last test here: node b is gone after it."""
    run_id = gangs.submit(gpt("ray-lost", text, 100_000))
    gangs.place(run_id, ["a", "b"])
    gangs.wait(lambda: gangs.committed(run_id))
    launch = json.loads((gangs.agent(f"{run_id}-a1-r1").folder / "launch.json").read_text())
    session = os.getsid(launch["watched"]["pid"])
    raylet = next(p for p in psutil.process_iter() if p.name() == "raylet" and os.getsid(p.pid) == session)
    raylet.kill()
    ended = gangs.wait_ended(run_id)
    # On a busy machine the agent there may be silent for as long as a lost node is waited for.
    assert ended.reason in (Reason.ACTOR_LOST, Reason.NODE_LOST), gangs.evidence()
    assert gangs.committed(run_id)[-1] == ended.last_step
    assert (gangs.run(run_id).state, gangs.run(run_id).retries_used) == (RunState.QUEUED, 0)
    gangs.assert_nothing_is_left()
