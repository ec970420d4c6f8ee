"""What a node says of itself, and how it reaches the controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.identity import boot_id, identify
from orchestrator.agent.launch import LaunchNote
from orchestrator.cluster import conditions
from orchestrator.cluster.conditions import Conditions, MachineSensors, NodeConditions, Teller
from orchestrator.cluster.gpus import Ours
from orchestrator.cluster.owner import FILE, OwnerRules, save_rules
from orchestrator.domain.fleet import NodeReport
from orchestrator.messages_agent import NodeNote
from orchestrator.settings import Home
from tests.integration.control.test_nodebook import Hands
from tests.support import free_port, wait_until
from tests.unit.cluster.test_config import config
from tests.unit.cluster.test_gpus import GAME, GIB, Card, Nvml
from tests.unit.cluster.test_sensors import program


@dataclass
class Scene:
    """What the sensors of a test see."""

    running: dict[int, str] = field(default_factory=dict)
    mine: set[int] = field(default_factory=set)
    at_work: list[str] | None = None
    unplugged: bool | None = None

    def processes(self, names: tuple[str, ...]) -> dict[int, str]:
        return {pid: name for pid, name in self.running.items() if name in names}

    def people(self, within_s: float) -> list[str] | None:
        return self.at_work

    def battery(self) -> bool | None:
        return self.unplugged

    def ours(self, pid: int) -> bool:
        return pid in self.mine


NOBODY = Ours(lambda pid: False, lambda: False)


@pytest.fixture
def clock() -> Hands:
    return Hands()


def node_of(folder: Path, scene: Scene, clock: Hands, rules: OwnerRules | None = None) -> NodeConditions:
    if rules is not None:
        save_rules(folder, rules)
    return NodeConditions(folder, scene, None, NOBODY, clock)


def test_a_listed_program_makes_it_busy_and_it_yields(tmp_path: Path, clock: Hands) -> None:
    scene = Scene(running={7: "cs2"})
    node = node_of(tmp_path, scene, clock, OwnerRules(processes=("cs2",), quiet=60))
    assert node.report() == NodeReport(busy="cs2 is running", yields=True)
    scene.running.clear()
    assert node.report().busy == "cs2 was running a moment ago"
    clock.sleep(61)
    assert node.report() == NodeReport()


def test_a_run_of_ours_with_a_listed_name_is_no_reason(tmp_path: Path, clock: Hands) -> None:
    scene = Scene(running={7: "python3"}, mine={7})
    node = node_of(tmp_path, scene, clock, OwnerRules(processes=("python3",), quiet=1))
    assert node.report().busy == ""
    scene.mine.clear()
    assert node.report().busy == "python3 is running"


def test_rules_are_followed_as_they_change(
    tmp_path: Path, clock: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(unplugged=True)
    node = node_of(tmp_path, scene, clock)
    assert node.report() == NodeReport()
    save_rules(tmp_path, OwnerRules(battery=True, yields=False))
    assert node.report() == NodeReport(busy="it is on battery", yields=False)
    (tmp_path / FILE).write_text("{")
    assert node.report().busy == "it is on battery"
    assert node.report().busy == "it is on battery"
    assert [r.levelname for r in caplog.records] == ["ERROR"], "said once, and the rules stay"
    (tmp_path / FILE).unlink()
    clock.sleep(1000)
    assert node.report() == NodeReport()


def test_what_cannot_be_read_is_no_reason_and_said_once(
    tmp_path: Path, clock: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_of(tmp_path, Scene(), clock, OwnerRules(battery=True, login=600))
    for _ in range(3):
        assert node.report() == NodeReport()
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "login sessions cannot be read" in texts[0]
    assert "the power supply cannot be read" in texts[1]


def test_people_count_where_the_rule_holds(tmp_path: Path, clock: Hands) -> None:
    scene = Scene(at_work=["ada"])
    node = node_of(tmp_path, scene, clock, OwnerRules(quiet=1))
    assert node.report().busy == ""
    save_rules(tmp_path, OwnerRules(login=600))
    assert node.report().busy == "ada is at work there"


def test_a_gpu_that_others_keep_busy_makes_the_node_busy(tmp_path: Path, clock: Hands) -> None:
    home = Home(tmp_path)
    (node,) = config().nodes
    gpu_node = node.model_copy(update={"gpus": 1, "gpu_ids": ("0",)})
    card = Card(compute={GAME: GIB}, busy=90)
    made = Conditions(config(nodes=(gpu_node,)), home, Scene(), lambda: Nvml(card), clock)
    condition = made._conditions(gpu_node)
    first = condition.report()
    assert (first.busy, first.gpus[0].foreign_use) == ("", 0.9)
    clock.sleep(31)
    assert condition.report().busy == "other programs keep its GPU busy"
    assert made._conditions(node).report() == NodeReport(), "a node without GPUs does not ask for NVML"


# ------------------------------------------------------------------ who is ours


def agent_file(home: Home, pid: int, gpu_ids: tuple[str, ...]) -> Path:
    who = identify(pid)
    assert who is not None
    folder = home.node("a") / "attempts" / f"run-a{pid}"
    folder.mkdir(parents=True)
    (folder / "agent.json").write_text(json.dumps({"pid": who.pid, "create_time": who.create_time}))
    LaunchNote(who, gpu_ids, 0.0).write(folder / "launch.json")
    return folder


def test_ours_is_what_descends_from_a_living_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    clock = Hands()
    sensors = MachineSensors(home, clock)
    monkeypatch.setattr(conditions.os, "getpid", lambda: 2**22 + 1)  # the supervisor is somebody else
    script = "import subprocess, sys; subprocess.run(['sleep', '60'], start_new_session=True)"
    agent = subprocess.Popen([sys.executable, "-c", script])
    try:
        table = conditions.Processes()
        (program_pid,) = wait_until(
            lambda: [pid for pid in table.named(["sleep"]) if table.descends(pid, [agent.pid])], 10
        )
        assert not sensors.ours(program_pid)
        agent_file(home, agent.pid, ())
        assert not sensors.ours(program_pid), "the answer of this look stays"
        clock.sleep(conditions.PERIOD_S)
        assert sensors.ours(program_pid)
        assert sensors.ours(agent.pid)
        assert not sensors.ours(os.getppid())
    finally:
        os.kill(program_pid, 9)
        agent.wait(10)
    clock.sleep(conditions.PERIOD_S)
    assert not sensors.ours(agent.pid), "a number alone is nobody"


def test_agents_without_gpus_do_not_count_on_them(tmp_path: Path, clock: Hands) -> None:
    home = Home(tmp_path)
    made = Conditions(config(), home, Scene(), lambda: None, clock)
    (node,) = config().nodes
    on_gpus = made._conditions(node)._ours.on_gpus
    assert not on_gpus()
    folder = agent_file(home, os.getpid(), ())
    assert not on_gpus()
    LaunchNote(identify(os.getpid()), ("0",), 0.0).write(folder / "launch.json")  # type: ignore[arg-type]
    assert on_gpus()
    (folder / "launch.json").write_text("{")
    assert on_gpus(), "what is not known may be"


# ------------------------------------------------------------------ the way to the controller


@dataclass
class Listener:
    """Notes what it is told; answers with `status`."""

    told: list[tuple[str, str, NodeNote]] = field(default_factory=list)
    status: int = 204

    @property
    def busy(self) -> list[str]:
        return [note.busy for _, _, note in self.told]


def serve(listener: Listener, port: int = 0) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            note = NodeNote.model_validate_json(body)
            listener.told.append((self.path, self.headers["authorization"], note))
            self.send_response(listener.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.node("a").mkdir(parents=True)
    (home.node("a") / "token").write_text("secret\n")
    return home


@pytest.fixture
def listener() -> Iterator[tuple[Listener, ThreadingHTTPServer]]:
    heard = Listener()
    server = serve(heard)
    yield heard, server
    server.shutdown()
    server.server_close()


def test_changes_are_told_at_once_and_the_rest_now_and_then(
    home: Home, clock: Hands, listener: tuple[Listener, ThreadingHTTPServer]
) -> None:
    heard, server = listener
    scene = Scene()
    node = node_of(home.node("a"), scene, clock, OwnerRules(processes=("cs2",), quiet=1))
    teller = Teller(f"http://127.0.0.1:{server.server_port}", home, node, "a", clock)
    for _ in range(4):  # at 0, 5, 10 and 15 s
        teller.tell()
        clock.sleep(conditions.PERIOD_S)
    assert heard.busy == ["", ""]
    scene.running[7] = "cs2"
    teller.tell()
    assert heard.busy == ["", "", "cs2 is running"]
    assert heard.told[-1][:2] == ("/v1/agent/nodes/a/report", "Bearer secret")
    assert heard.told[-1][2].yields


def test_agents_that_live_are_told_until_they_do_not(
    home: Home, clock: Hands, listener: tuple[Listener, ThreadingHTTPServer]
) -> None:
    heard, server = listener
    node = node_of(home.node("a"), Scene(), clock)
    teller = Teller(f"http://127.0.0.1:{server.server_port}", home, node, "a", clock)
    with subprocess.Popen(["sleep", "60"]) as agent:
        who = identify(agent.pid)
        assert who is not None
        for folder in (home.node("a"), home.node("b")):
            attempt = folder / "attempts" / f"run1-a{folder.name}"
            attempt.mkdir(parents=True)
            (attempt / "agent.json").write_text(json.dumps(vars(who)))
        teller.tell()
        agent.kill()
        agent.wait(10)
        teller.tell()
        teller.tell()
    told = [(note.agents, note.boot_id) for _, _, note in heard.told]
    assert told == [(["run1-aa"], boot_id()), ([], boot_id())], "at once, and only this node's"


def test_a_controller_that_is_away_is_tried_again_and_named_once(
    home: Home, clock: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    port = free_port()
    node = node_of(home.node("a"), Scene(), clock)
    teller = Teller(f"http://127.0.0.1:{port}", home, node, "a", clock)
    for _ in range(3):
        teller.tell()
    assert len(caplog.records) == 1
    heard = Listener()
    server = serve(heard, port)
    try:
        teller.tell()
        assert heard.busy == [""], "at once, though nothing has changed"
        heard.status = 500
        clock.sleep(60)
        teller.tell()
        teller.tell()
        heard.status = 204
        teller.tell()
        teller.tell()
        assert len(heard.told) == 4
    finally:
        server.shutdown()
        server.server_close()


def test_what_may_have_arrived_is_corrected_at_once(
    home: Home, clock: Hands, listener: tuple[Listener, ThreadingHTTPServer]
) -> None:
    """A report came through, but its answer did not, and then everything was as before."""
    heard, server = listener
    scene = Scene()
    node = node_of(home.node("a"), scene, clock, OwnerRules(processes=("cs2",), quiet=0.1))
    teller = Teller(f"http://127.0.0.1:{server.server_port}", home, node, "a", clock)
    teller.tell()
    scene.running[7], heard.status = "cs2", 500
    teller.tell()
    scene.running.clear()
    clock.sleep(1)
    heard.status = 204
    teller.tell()
    assert heard.busy == ["", "cs2 is running", ""]


def test_a_report_is_a_message_that_the_controller_takes() -> None:
    """They are written apart, so that the supervisor need not know messages."""
    from dataclasses import asdict, fields

    assert {f.name for f in fields(NodeReport)} | {"agents", "boot_id"} == set(NodeNote.model_fields)
    card = Card(compute={GAME: GIB}, busy=40)
    (state,) = conditions.Gpus(Nvml(card), ["0"], True).read(NOBODY)
    note = NodeNote.model_validate_json(json.dumps(asdict(NodeReport((state,), "cs2 is running", True))))
    assert (note.gpus[0].foreign_memory, note.gpus[0].foreign_use) == (GIB, 0.4)


def test_a_real_program_with_a_listed_name_is_told(
    home: Home,
    tmp_path: Path,
    listener: tuple[Listener, ThreadingHTTPServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread as the supervisor runs it, with this machine's process table."""
    heard, server = listener
    monkeypatch.setattr(conditions, "PERIOD_S", 0.1)
    monkeypatch.setattr(conditions, "SAY_S", 0.3)
    monkeypatch.setattr(conditions.os, "getpid", lambda: 2**22 + 1)  # the supervisor is somebody else
    save_rules(home.node("a"), OwnerRules(processes=("orch-test-game",), quiet=0.2))
    told = config(controller_url=f"http://127.0.0.1:{server.server_port}")
    running = Conditions(told, home)
    running.start()
    try:
        wait_until(lambda: heard.busy[-1:] == [""], 10)
        with program(tmp_path / "orch-test-game"):
            wait_until(lambda: heard.busy[-1] == "orch-test-game is running", 10)
        wait_until(lambda: heard.busy[-1] == "", 10)
    finally:
        running.stop()
        running._thread.join(10)


def test_a_look_that_fails_is_not_the_last_one(
    home: Home, listener: tuple[Listener, ThreadingHTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, server = listener
    monkeypatch.setattr(conditions, "PERIOD_S", 0.05)
    scene = Scene(running={7: "cs2"})
    fails = iter([True, False])

    def stumble(pid: int) -> bool:
        if next(fails, False):
            raise RuntimeError("a sensor is broken")
        return False

    monkeypatch.setattr(scene, "ours", stumble)
    save_rules(home.node("a"), OwnerRules(processes=("cs2",)))
    running = Conditions(config(controller_url=f"http://127.0.0.1:{server.server_port}"), home, scene)
    running.start()
    try:
        wait_until(lambda: heard.busy[-1:] == ["cs2 is running"], 10)
    finally:
        running.stop()
        running._thread.join(10)


def test_looking_loads_nothing_heavy() -> None:
    heavy = ("torch", "mlflow", "boto3", "ray", "httpx")
    code = f"import sys, orchestrator.cluster.supervisor; print([m for m in {heavy} if m in sys.modules])"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
