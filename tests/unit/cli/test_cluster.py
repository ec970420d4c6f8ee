"""Commands for machines: what they ask of the cluster, and what they say."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import demo
from orchestrator.cluster.doctor import Finding, Level
from orchestrator.cluster.stack import NodeRequest, ServiceStatus, StackStatus
from orchestrator.domain.states import RunState
from orchestrator.errors import ConflictError, SetupError
from orchestrator.messages import NodeView
from orchestrator.settings import Home
from tests.unit.cli.conftest import Orch
from tests.unit.cli.fake import NOW, TOKEN, FakeController, detail, unavailable


def stack(**changes: Any) -> StackStatus:
    service = ServiceStatus(
        "ray-head", "ready", 4711, NOW - timedelta(minutes=5), 1, "", Path("/x/ray-head.log")
    )
    values: dict[str, Any] = {
        "running": True,
        "url": "http://127.0.0.1:7420",
        "mlflow_url": "http://127.0.0.1:7421",
        "store_uri": "file:///x/store",
        "services": [service],
    }
    return StackStatus(**{**values, **changes})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the cluster was asked for; nothing is started."""
    made: list[tuple[str, Any]] = []

    def record(name: str, answer: Any) -> Any:
        def call(home: Home, *arguments: Any, progress: Any = None, **options: Any) -> Any:
            made.append((name, (home, *arguments, options)))
            if progress:
                progress(f"{name} is at work")
            return answer

        return call

    monkeypatch.setattr("orchestrator.cluster.stack.up", record("up", stack()))
    monkeypatch.setattr("orchestrator.cluster.stack.down", record("down", None))
    monkeypatch.setattr("orchestrator.cluster.stack.status", record("status", stack()))
    monkeypatch.setattr("orchestrator.cluster.join.join", record("join", stack(listening=True)))
    monkeypatch.setattr("orchestrator.cluster.join.leave", record("leave", None))
    monkeypatch.setattr(
        "orchestrator.cluster.join.join_command", record("command", " ORCH_TOKEN=t orch join u")
    )
    return made


def test_up_passes_on_what_was_asked_for(orch: Orch, calls: list[tuple[str, Any]]) -> None:
    result = orch(
        "up",
        "--node",
        "laptop:cpus=2",
        "--node",
        "gpu:cpus=4,gpus=1",
        "--mlflow",
        "http://m",
        "--store",
        "/s",
    )
    assert result.code == 0
    assert "http://127.0.0.1:7420" in result.out
    assert "up is at work" in result.err
    name, (_, options) = calls[0]
    assert name == "up"
    assert options == {
        "nodes": [NodeRequest("laptop", "laptop", cpus=2), NodeRequest("gpu", "gpu", cpus=4, gpus=1)],
        "listen": None,
        "mlflow_url": "http://m",
        "store_uri": "/s",
    }


@pytest.mark.parametrize("outdated", [False, True])
def test_up_says_what_is_older_than_the_program(
    orch: Orch, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch, outdated: bool
) -> None:
    service = replace(stack().services[0], name="controller", outdated=outdated)
    monkeypatch.setattr("orchestrator.cluster.stack.up", lambda *_, **__: stack(services=[service]))
    said = orch("up").err
    assert ("controller runs the program as it was before an update" in said) == outdated
    assert ("`orch down`, then `orch up`" in said) == outdated


def test_up_refuses_what_is_no_node(orch: Orch, calls: list[tuple[str, Any]]) -> None:
    result = orch("up", "--node", "laptop:cpu=2")
    assert result.code == SetupError.exit_code
    assert "cpu=2" in result.err
    assert calls == []


def test_up_and_status_as_json(orch: Orch, calls: list[tuple[str, Any]], fake: FakeController) -> None:
    assert orch("up", "--json").json["services"][0]["log"] == "/x/ray-head.log"
    found = orch("status", "--json").json
    assert found["stack"]["services"][0]["since"] == "2026-03-01T11:55:00+00:00"
    assert found["health"]["cluster_id"] == "c1"


def test_down_and_leave_give_time_to_save(orch: Orch, calls: list[tuple[str, Any]]) -> None:
    assert orch("down", "--grace", "5").out == "everything is down\n"
    assert "no cluster" in orch("leave").out
    assert [(name, arguments[-1]) for name, arguments in calls] == [
        ("down", {"grace_s": 5.0}),
        ("leave", {"grace_s": 120.0}),
    ]


def test_status_shows_services_controller_and_machines(
    orch: Orch, calls: list[tuple[str, Any]], fake: FakeController
) -> None:
    fake.add(detail())
    fake.add(detail("bbbb2345", state=RunState.QUEUED))
    fake.add(detail("cccc2345", state=RunState.FAILED))
    fake.nodes = [NodeView(name="box", pool="gpu", state="ready", cpus=16)]
    text = orch("status").out
    for part in ("ray-head", "4711", "cluster c1", "1 queued, 1 running", "box"):
        assert part in text


def test_status_without_controller_ends_with_5(
    orch: Orch, calls: list[tuple[str, Any]], fake: FakeController
) -> None:
    fake.failures = [unavailable]
    result = orch("status")
    assert result.code == 5
    assert "ray-head" in result.out
    assert "the controller is starting" in result.err


def test_join_takes_the_token_from_the_environment(orch: Orch, calls: list[tuple[str, Any]]) -> None:
    result = orch("join", "http://h:7420", "--pool", "gpu", "--memory", "8GiB", "--cpus", "3")
    assert result.code == 0, result.err
    _, (_, url, token, pool, options) = calls[0]
    assert (url, token, pool) == ("http://h:7420", TOKEN, "gpu")
    assert (options["memory"], options["cpus"], options["gpus"]) == (8 << 30, 3, None)
    assert TOKEN not in result.out + result.err


def test_join_without_a_token_says_where_to_get_it(
    orch: Orch, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORCH_TOKEN")
    result = orch("join", "http://h:7420")
    assert result.code == 6
    assert "orch join" in result.err
    assert calls == []


def test_join_without_an_address_says_what_to_type_elsewhere(
    orch: Orch, calls: list[tuple[str, Any]]
) -> None:
    assert orch("join", "--pool", "gpu").out == " ORCH_TOKEN=t orch join u\n"
    assert calls[0][1][1] == "gpu"


def test_join_refuses_a_size_that_is_none(orch: Orch, calls: list[tuple[str, Any]]) -> None:
    assert orch("join", "http://h:7420", "--memory", "lots").code == 2


def test_doctor_ends_with_7_only_for_errors(orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding(Level.OK, "Python 3.11"), Finding(Level.WARNING, "little disk", "make room")]
    monkeypatch.setattr("orchestrator.cluster.doctor.diagnose", lambda home: findings)
    assert orch("doctor").out.splitlines() == [
        "ok      Python 3.11",
        "warning little disk",
        "        make room",
    ]
    assert orch("doctor").code == 0
    findings.append(Finding(Level.ERROR, "no token", "run orch up"))
    assert orch("doctor", "--json").json["findings"][2] == {
        "level": "error",
        "what": "no token",
        "remedy": "run orch up",
    }
    assert orch("doctor").code == 7


# ------------------------------------------------------------------ demo


DEMO = "name: d\ntrainer: {max_steps: 20}\nplacement: [{pool: laptop}, {pool: gpu}]\n"


@pytest.fixture
def demo_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    file = tmp_path / "demo.yaml"
    file.write_text(DEMO)
    return file


def test_a_demo_never_touches_a_cluster_that_runs(
    orch: Orch, calls: list[tuple[str, Any]], demo_spec: Path
) -> None:
    assert orch("demo", "--spec", str(demo_spec)).code == ConflictError.exit_code
    assert [name for name, _ in calls] == ["status"]


@pytest.mark.parametrize("trouble", [SetupError("no port"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_demo_takes_its_cluster_down_whatever_happens(
    orch: Orch,
    calls: list[tuple[str, Any]],
    demo_spec: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException,
) -> None:
    monkeypatch.setattr("orchestrator.cluster.stack.status", lambda home: stack(running=False))

    def fail(*_: object) -> bool:
        raise trouble

    monkeypatch.setattr(demo, "_perform", fail)
    monkeypatch.setattr("orchestrator.endpoint.endpoint", lambda *_: ("http://127.0.0.1:9", None))
    result = orch("demo", "--spec", str(demo_spec), "--keep")
    assert result.code == {SetupError: 7, KeyboardInterrupt: 130, ZeroDivisionError: 1}[type(trouble)]
    assert [name for name, _ in calls] == ["up"]
    orch("demo", "--spec", str(demo_spec))
    assert [name for name, _ in calls] == ["up", "up", "down"]


def test_a_cluster_that_does_not_come_up_is_not_kept(
    orch: Orch, calls: list[tuple[str, Any]], demo_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> StackStatus:
        raise SetupError("no port")

    monkeypatch.setattr("orchestrator.cluster.stack.status", lambda home: stack(running=False))
    monkeypatch.setattr("orchestrator.cluster.stack.up", fail)
    assert orch("demo", "--spec", str(demo_spec), "--keep").code == SetupError.exit_code
    assert [name for name, _ in calls] == ["down"]


def test_a_demo_needs_a_spec_for_both_pools(
    orch: Orch, calls: list[tuple[str, Any]], demo_spec: Path
) -> None:
    demo_spec.write_text("name: d\ntrainer: {}\nplacement: [{pool: gpu}, {pool: laptop}]\n")
    result = orch("demo", "--spec", str(demo_spec))
    assert result.code == ConflictError.exit_code
    assert "pool laptop" in result.err
    assert calls == []


def test_a_gpu_is_asked_for_where_the_run_moves_to(demo_spec: Path) -> None:
    assert [variant.gpus for variant in demo._load(demo_spec, [], gpu=True).spec.placement] == [0, 1]
    assert [variant.gpus for variant in demo._load(demo_spec, [], gpu=False).spec.placement] == [0, 0]


def test_a_demo_has_a_home_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    assert demo._demo_home().root == tmp_path
    monkeypatch.delenv("ORCH_HOME")
    monkeypatch.chdir(tmp_path)
    assert demo._demo_home().root.parent == tmp_path / ".demo"
