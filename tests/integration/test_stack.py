"""A whole stack on this machine: up, faults, changes, down. Ray, MLflow and the controller are real."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.cluster import machine, planning
from orchestrator.cluster.agents import agents
from orchestrator.cluster.config import NodeRequest, load_config, stack_id
from orchestrator.cluster.join import join, join_command, leave
from orchestrator.cluster.processes import MARKER, end_sessions, marked_sessions, members
from orchestrator.cluster.services import CONTROLLER, HEAD, MLFLOW
from orchestrator.cluster.stack import StackStatus, down, status, up
from orchestrator.cluster.state import ServicePhase, load_state
from orchestrator.domain.states import RunState
from orchestrator.errors import OrchError, SetupError, UnauthorizedError
from orchestrator.messages import SubmitRequest
from orchestrator.settings import Home
from orchestrator.spec.models import CommandProgram, RunSpec, Variant
from tests.support import wait_until

UP_S = 240.0


class Running:
    """A stack that a test changes and breaks."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.said: list[str] = []

    def up(self, *nodes: str, **options: str) -> StackStatus:
        requests = [NodeRequest.parse(node) for node in nodes]
        return up(self.home, requests, progress=self.said.append, **options)

    def pids(self) -> dict[str, list[int]]:
        """Service -> the processes it lives by."""
        services = load_state(self.home).services
        return {name: [process.pid for process in record.vital] for name, record in services.items()}

    def pid(self, service: str, name: str) -> int:
        """The process of this name in a service's session."""
        leader = load_state(self.home).services[service].leader
        assert leader is not None
        return next(m.pid for m in members(leader.pid, leader.create_time) if m.name == name)

    def client(self) -> Client:
        config = load_config(self.home)
        assert config is not None
        return Client(config.controller_url, self.home.token_file.read_text().strip(), timeout_s=10.0)

    def ready_nodes(self) -> set[str]:
        try:
            with self.client() as client:
                return {node.name for node in client.nodes() if node.state == "ready"}
        except OrchError:
            return set()

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Until all services are ready and the controller sees all nodes."""
        config = load_config(self.home)
        assert config is not None
        wanted = {node.name for node in config.nodes}
        wait_until(lambda: status(self.home).ready, timeout, self.evidence)
        wait_until(lambda: self.ready_nodes() == wanted, timeout, self.evidence)

    def evidence(self) -> str:
        lines = [f"{s.name}: {s.phase} {s.message}" for s in status(self.home).services]
        for log in sorted(self.home.service_logs.glob("*.log")):
            lines += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-8:]]
        return "\n".join([*self.said, *lines])

    def leftovers(self) -> list[str]:
        """Processes that mention this state folder in their arguments or carry its marker."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(self.home.root).encode() in told or f"{MARKER}={stack_id(self.home)}/".encode() in told:
                found.append(f"{entry.name}: {told[:150]!r}")
        return found


@contextmanager
def running(home: Home) -> Iterator[Running]:
    """Ends everything whatever happens, and fails where something is left."""
    stack = Running(home)
    try:
        yield stack
    finally:
        down(home, stack.said.append, grace_s=20.0)
        end_sessions(marked_sessions(stack_id(home)), 1.0)
    assert agents(home) == []
    wait_until(lambda: stack.leftovers() == [], 10.0, lambda: "\n".join(stack.leftovers()))
    assert not (Path("/tmp") / f"orch-{stack_id(home)}").exists()


@pytest.fixture(scope="module", autouse=True)
def other_ports() -> Iterator[None]:
    """Other stacks on this machine have the default ports, or will."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONTROLLER_PORT", "MLFLOW_PORT", "RAY_PORT"):
            patch.setattr(planning, name, 0)
        yield


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two nodes, MLflow and the controller."""
    with running(Home(tmp_path_factory.mktemp("stack") / "home")) as stack:
        stack.up("laptop:cpus=1,gpus=0", "gpu:cpus=1,gpus=0")
        yield stack


@pytest.fixture(autouse=True)
def mended(request: pytest.FixtureRequest) -> None:
    if "stack" in request.fixturenames:
        request.getfixturevalue("stack").wait_ready()


def test_everything_answers_after_up(stack: Running) -> None:
    found = status(stack.home)
    assert found.ready
    assert [service.name for service in found.services] == [
        HEAD,
        "node-laptop",
        "node-gpu",
        MLFLOW,
        CONTROLLER,
    ]
    with stack.client() as client:
        health = client.health()
        assert health.ray_connected
        assert health.mlflow_url == found.mlflow_url
        assert {node.pool for node in client.nodes()} == {"laptop", "gpu"}
    assert any("ready after" in line for line in stack.said)


def test_secrets_are_private_and_in_no_argument(stack: Running) -> None:
    token = stack.home.token_file.read_text().strip()
    files = [stack.home.token_file, *stack.home.nodes.glob("*/token")]
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    for pids in stack.pids().values():
        for pid in pids:
            assert token not in Path(f"/proc/{pid}/cmdline").read_text()
            assert token not in Path(f"/proc/{pid}/environ").read_text()
    for log in stack.home.service_logs.glob("*.log"):
        assert token not in log.read_text(errors="replace")
    assert token not in stack.home.stack_file.read_text()


def test_a_second_up_changes_nothing_and_starts_nothing(stack: Running) -> None:
    before = stack.pids()
    began = time.monotonic()
    stack.up()
    stack.up("laptop:cpus=1,gpus=0", "gpu:cpus=1,gpus=0")
    assert time.monotonic() - began < 5.0
    assert stack.pids() == before


def test_ray_listens_on_addresses_of_its_own_and_touches_no_home(stack: Running) -> None:
    config = load_config(stack.home)
    assert config is not None
    assert len({config.head_address, *(node.address for node in config.nodes)}) == 3
    environ = Path(f"/proc/{stack.pid('node-gpu', 'raylet')}/environ").read_text()
    assert "RAY_AUTH_MODE=token" in environ
    assert f"RAY_AUTH_TOKEN_PATH={stack.home.node('gpu') / 'token'}" in environ


def test_a_killed_supervisor_leaves_services_and_the_next_goes_on_with_them(stack: Running) -> None:
    before = stack.pids()
    supervisor = load_state(stack.home).supervisor
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not status(stack.home).running, 10.0)
    assert stack.ready_nodes() == {"laptop", "gpu"}
    stack.up()
    assert stack.pids() == before
    os.kill(before[CONTROLLER][0], signal.SIGKILL)
    wait_until(lambda: stack.pids()[CONTROLLER] not in (before[CONTROLLER], []), 60.0, stack.evidence)


def test_a_service_whose_start_nobody_wrote_down_is_ended(stack: Running) -> None:
    supervisor = load_state(stack.home).supervisor
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    env = {**os.environ, MARKER: f"{stack_id(stack.home)}/mlflow"}
    stray = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"], env=env, start_new_session=True
    )
    try:
        wait_until(lambda: not status(stack.home).running, 10.0)
        stack.up()
        assert stray.wait(20.0) == -signal.SIGTERM
    finally:
        stray.kill()
        stray.wait(5.0)


def test_a_killed_raylet_is_replaced_and_the_node_comes_back(stack: Running) -> None:
    before = stack.pids()
    os.kill(stack.pid("node-gpu", "raylet"), signal.SIGKILL)
    wait_until(lambda: stack.pids()["node-gpu"] not in (before["node-gpu"], []), 60.0, stack.evidence)
    stack.wait_ready()
    after = stack.pids()
    assert {name for name in before if before[name] != after[name]} == {"node-gpu"}
    assert load_state(stack.home).services["node-gpu"].restarts >= 1


def test_a_killed_head_comes_back_at_its_address_with_every_node(stack: Running) -> None:
    before, address = stack.pids(), load_config(stack.home)
    os.kill(stack.pid(HEAD, "gcs_server"), signal.SIGKILL)
    wait_until(lambda: stack.pids()[HEAD] not in (before[HEAD], []), 90.0, stack.evidence)
    # The nodes of the old head do not answer to the new one; each must be replaced.
    wait_until(
        lambda: all(stack.pids()[n] not in (before[n], []) for n in ("node-gpu", "node-laptop")),
        120.0,
        stack.evidence,
    )
    stack.wait_ready()
    assert stack.pids()[MLFLOW] == before[MLFLOW]
    assert stack.pids()[CONTROLLER] == before[CONTROLLER]
    assert load_config(stack.home) == address


def test_a_stopped_mlflow_is_shown_but_not_killed(stack: Running) -> None:
    (pid,) = stack.pids()[MLFLOW]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _phase(stack, MLFLOW) is ServicePhase.SILENT, 30.0, stack.evidence)
        assert stack.ready_nodes() == {"laptop", "gpu"}
        assert stack.pids()[MLFLOW] == [pid]
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: _phase(stack, MLFLOW) is ServicePhase.READY, 30.0, stack.evidence)
    assert stack.pids()[MLFLOW] == [pid]


def test_nodes_come_and_go_without_touching_the_others(stack: Running) -> None:
    before = stack.pids()
    stack.up("laptop:cpus=1,gpus=0", "gpu:cpus=1,gpus=0", "extra:pool=gpu,cpus=1,gpus=0")
    assert {name: pids for name, pids in stack.pids().items() if name != "node-extra"} == before
    assert stack.ready_nodes() == {"laptop", "gpu", "extra"}
    stack.up("laptop:cpus=1,gpus=0", "gpu:cpus=1,gpus=0")
    wait_until(lambda: stack.pids() == before, 30.0, stack.evidence)
    wait_until(lambda: stack.ready_nodes() == {"laptop", "gpu"}, 30.0, stack.evidence)


def test_down_lets_attempts_end_and_ports_stay_for_the_next_up(stack: Running) -> None:
    """The last test of this stack."""
    with stack.client() as client:
        run = client.submit(SubmitRequest(spec=_sleeper(), key="sleeper")).run_id
        wait_until(lambda: client.run(run).run.state is RunState.RUNNING, 120.0, stack.evidence)
    (agent,) = agents(stack.home)
    config = load_config(stack.home)
    down(stack.home, stack.said.append, grace_s=60.0)
    assert not agent.process.alive()
    assert stack.leftovers() == []
    assert not any("did not stop in time" in line for line in stack.said)
    assert load_config(stack.home) == config
    down(stack.home, stack.said.append)


def _sleeper() -> RunSpec:
    code = "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(75)); time.sleep(300)"
    program = CommandProgram(argv=[sys.executable, "-c", code])
    return RunSpec(name="sleeper", command=program, placement=[Variant(pool="laptop")])


def _phase(stack: Running, service: str) -> ServicePhase:
    return load_state(stack.home).services[service].phase


# ------------------------------------------------------------------ what cannot be started


def test_a_taken_port_is_named_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    with running(home) as stack:
        config = planning.plan(home, None, [], None, "none", None)
        planning_file = home.stack_file
        home.root.mkdir()
        planning_file.write_text(config.model_dump_json())
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", config.controller_port), http.server.BaseHTTPRequestHandler
        )
        try:
            with pytest.raises(SetupError) as caught:
                stack.up()
        finally:
            server.server_close()
        assert f"port {config.controller_port} for the controller" in caught.value.message
        assert f"process {os.getpid()}" in caught.value.message
        assert stack.leftovers() == []


def test_a_service_that_does_not_start_shows_its_log_and_nothing_stays(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with running(home) as stack:
        (home.mlflow / "mlflow.db").parent.mkdir(parents=True)
        (home.mlflow / "mlflow.db").write_bytes(b"this is not a database" * 100)
        with pytest.raises(SetupError) as caught:
            stack.up("a:cpus=1,gpus=0")
        assert caught.value.message.startswith("MLflow does not start")
        assert "database" in caught.value.message
        assert "mlflow.log" in (caught.value.remedy or "")
        assert stack.leftovers() == []
        assert not status(home).running


def test_only_one_setup_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster import starting

    home = Home(tmp_path / "home")
    monkeypatch.setattr(starting, "SETUP_LOCK_S", 0.3)
    inside, leave_it = threading.Event(), threading.Event()

    def hold() -> None:
        with starting.setup_lock(home):
            inside.set()
            leave_it.wait(10.0)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(5.0)
    try:
        with pytest.raises(SetupError, match="another"):
            up(home)
    finally:
        leave_it.set()
        holder.join(5.0)


# ------------------------------------------------------------------ joining


def _outward_address() -> str:
    address = machine.local_address("192.0.2.1")
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    return address


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A controller that other machines may join, with one node and without MLflow."""
    address = _outward_address()
    with running(Home(tmp_path_factory.mktemp("shared") / "home")) as stack:
        stack.up("base:cpus=1,gpus=0", listen=address, mlflow_url="none")
        yield stack


def test_a_machine_joins_survives_a_lost_head_and_leaves(shared: Running, tmp_path: Path) -> None:
    line = join_command(shared.home)
    token, url = line.split()[0].removeprefix("ORCH_TOKEN="), line.split()[3]
    assert line.startswith(" ORCH_TOKEN=")
    home = Home(tmp_path / "joined")
    try:
        found = join(home, url, token, "laptop", name="mobile", cpus=1, gpus=0)
        assert [service.name for service in found.services] == ["node-mobile"]
        assert shared.ready_nodes() == {"base", "mobile"}
        assert Running(home).client().health().store_id, "the command line works here, too"
        again = join(home, url, token, "laptop", name="mobile", cpus=1, gpus=0)
        assert again.services[0].pid == found.services[0].pid

        settings = (home.node("mobile") / "node.json").read_text()
        down(home)
        assert Running(home).leftovers() == []
        wait_until(lambda: shared.ready_nodes() == {"base"}, 60.0, shared.evidence)
        assert up(home).ready, "it is still a member"
        assert shared.ready_nodes() == {"base", "mobile"}
        assert (home.node("mobile") / "node.json").read_text() == settings

        os.kill(shared.pid(HEAD, "gcs_server"), signal.SIGKILL)
        wait_until(lambda: "mobile" not in shared.ready_nodes(), 60.0, shared.evidence)
        wait_until(lambda: shared.ready_nodes() == {"base", "mobile"}, 180.0, shared.evidence)
    finally:
        leave(home)
    wait_until(lambda: shared.ready_nodes() == {"base"}, 60.0, shared.evidence)
    assert Running(home).leftovers() == []
    assert not home.token_file.exists()


def test_joining_refuses_what_would_not_work(shared: Running, tmp_path: Path) -> None:
    home = Home(tmp_path / "joined")
    token, url = shared.home.token_file.read_text().strip(), status(shared.home).url
    with pytest.raises(UnauthorizedError, match="does not accept"):
        join(home, url, "x" * 43, "laptop")
    with pytest.raises(UnauthorizedError, match="wants a token"):
        join(home, url, "", "laptop")
    empty = tmp_path / "mount"
    empty.mkdir()
    with pytest.raises(SetupError, match="not the controller's checkpoint store") as caught:
        join(home, url, token, "laptop", store_uri=str(empty))
    assert "--store" in (caught.value.remedy or "")
    with pytest.raises(SetupError, match="a node called base already"):
        join(home, url, token, "laptop", name="base")
    with pytest.raises(SetupError, match="controller of its own"):
        join(shared.home, url, token, "laptop")
    assert load_config(home) is None
    assert not home.token_file.exists()
