"""What `orch doctor` finds on a machine where something is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from orchestrator.agent.identity import boot_id, identify
from orchestrator.agent.ports import pick_port
from orchestrator.cluster import doctor, machine
from orchestrator.cluster.config import NodeConfig, save_config
from orchestrator.cluster.doctor import Finding, Level, diagnose
from orchestrator.cluster.program import program_digest
from orchestrator.cluster.stack import status
from orchestrator.cluster.state import Process, ServicePhase, ServiceRecord, StackState, save_state
from orchestrator.settings import Home, write_private
from orchestrator.store.objects import open_store, store_id
from tests.unit.cluster.test_config import config


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_names", lambda: [])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    root = tmp_path / "home"
    root.mkdir()
    return Home(root)


def problems(home: Home) -> list[Finding]:
    return [finding for finding in diagnose(home) if finding.level is not Level.OK]


def find(home: Home, word: str) -> Finding:
    found = [finding for finding in problems(home) if word in finding.what]
    assert len(found) == 1, [finding.what for finding in diagnose(home)]
    return found[0]


def supervised(home: Home, **records: ServiceRecord) -> None:
    me = identify(os.getpid())
    assert me is not None
    own = Process(pid=me.pid, create_time=me.create_time)
    save_state(home, StackState(boot_id=boot_id(), supervisor=own, services=records))


def stack(home: Home) -> None:
    store = home.store
    save_config(home, config(store_uri=store.as_uri(), controller_port=free(), ray_port=free()))
    store_id(open_store(store), create=True)
    write_private(home.token_file, "t" * 43)


def free() -> int:
    return pick_port("127.0.0.1")


def test_a_fresh_machine_has_no_problems(home: Home) -> None:
    machine_wide = ("/dev/shm", "/tmp/orch-")
    assert [f for f in problems(home) if not any(word in f.what for word in machine_wide)] == []
    assert any("nothing was started" in finding.what for finding in diagnose(home))


def test_every_problem_has_a_remedy(home: Home) -> None:
    stack(home)
    home.token_file.chmod(0o644)
    supervised(home)
    found = problems(home)
    assert len(found) >= 3
    assert all(finding.remedy for finding in found), found


def test_a_state_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    home = Home(tmp_path / "not" / "yet" / "there")
    assert any("GB free" in finding.what for finding in diagnose(home))
    assert not home.root.exists(), "looking changes nothing"


def test_what_a_dead_cluster_left_in_tmp(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Path("/tmp/orch-0000beef")
    left.mkdir()
    try:
        assert str(left) in find(home, "0000beef").remedy
        monkeypatch.setattr(doctor, "marked_sessions", lambda stack: {1: 1.0})
        assert all("0000beef" not in finding.what for finding in problems(home))
    finally:
        left.rmdir()


def test_a_token_that_others_can_read(home: Home) -> None:
    stack(home)
    write_private(home.node("a") / "token", "t" * 43)
    (home.node("a") / "token").chmod(0o640)
    finding = find(home, "others can read")
    assert finding.level is Level.ERROR
    assert "chmod 600" in finding.remedy
    assert "t" * 43 not in finding.what


def test_little_room(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 10**18)
    monkeypatch.setattr(doctor, "LEAST_SHM", 10**18)
    assert "GB free" in find(home, "GB free").what
    assert "shm-size" in find(home, "/dev/shm").remedy


def test_a_taken_port_while_everything_is_down(home: Home) -> None:
    stack(home)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        save_config(home, config(store_uri=home.store.as_uri(), controller_port=port, ray_port=free()))
        finding = find(home, f"port {port}")
    assert str(os.getpid()) in finding.what


def test_services_that_are_not_ready(home: Home) -> None:
    stack(home)
    bad = ServiceRecord(name="head", phase=ServicePhase.WAITING, message="process 7 ended")
    shaky = ServiceRecord(name="node-a", phase=ServicePhase.READY, restarts=4)
    supervised(home, **{"head": bad, "node-a": shaky})
    assert "process 7 ended" in find(home, "head is waiting").what
    assert find(home, "node-a runs, started again 4").level is Level.WARNING
    assert find(home, "controller is not started").level is Level.ERROR


def test_services_that_run_the_program_of_before_an_update(home: Home) -> None:
    stack(home)
    records = {
        name: ServiceRecord(name=name, phase=ServicePhase.READY, program=program)
        for name, program in (("head", ""), ("node-a", program_digest()), ("controller", "older"))
    }
    supervised(home, **records)
    assert find(home, "before an update").what.startswith("controller runs")
    shown = status(home)
    assert shown.outdated == ["controller"]
    assert [one.message for one in shown.services if one.outdated] == [
        "runs the program as it was before an update"
    ]


def test_a_store_that_is_not_there(home: Home) -> None:
    stack(home)
    (home.store / "store.json").unlink()
    assert find(home, "store").level is Level.ERROR


def test_a_joined_machine_checks_the_store_as_it_sees_it(home: Home, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    store_id(open_store(mount), create=True)
    node = NodeConfig(name="a", pool="a", cpus=1, memory=1, address="127.16.0.2")
    save_config(home, config(kind="join", store_uri="file:///nowhere", nodes=(node,)))
    write_private(home.node("a") / "node.json", json.dumps({"store_uri": mount.as_uri()}))
    assert any(mount.as_uri() in finding.what for finding in diagnose(home) if finding.level is Level.OK)


def test_a_gpu_that_torch_cannot_use(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_names", lambda: ["GPU 0: NVIDIA GeForce RTX 4070 Ti (UUID: GPU-x)"])
    calls: list[list[str]] = []

    def run(argv: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(argv)
        return subprocess.CompletedProcess(argv, 1)

    monkeypatch.setattr(subprocess, "run", run)
    assert find(home, "torch cannot use it").level is Level.ERROR
    assert any("RTX 4070 Ti" in finding.what for finding in diagnose(home))
    assert "torch.cuda.is_available" in calls[0][-1]
