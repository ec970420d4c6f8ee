"""The template of a node makes agents and workers, and where it does not, they start by themselves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent import launch
from orchestrator.agent.identity import ProcessId
from orchestrator.agent.template import AGENT, VARIABLE, WORKER, NoAnswerError, TemplateError, ask
from orchestrator.errors import SetupError
from tests.support import process, wait_until
from tests.unit.agent.bench import Bench
from tests.unit.agent.programs import train

SETTINGS = {"RAY_JOB_ID": "01000000"}


def environment(**more: str) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**known, **SETTINGS, **more}


@pytest.fixture
def template(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that makes workers for SETTINGS; its socket is `tmp_path/template`."""
    path = tmp_path / "template"
    argv = [sys.executable, "-P", "-m", "orchestrator.cluster.template", str(path), " " * 256]
    with process(
        argv, tmp_path / "log", env=environment(ORCH_SERVICE="stack/node", ORCH_NODE_HOME="-" * 200)
    ) as child:
        wait_until(path.exists, 60, lambda: (tmp_path / "log").read_text())
        yield child


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "bench").mkdir()
    one = Bench(tmp_path / "bench")
    yield one
    one.close()


def forks_only(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """From here on, an agent that the template does not make is not made."""

    def refuse(*_: object) -> None:
        raise AssertionError("the agent was not forked")

    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.setattr(launch, "_detach", refuse)


@pytest.mark.usefixtures("template")
def test_a_forked_agent_is_like_any_other(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks_only(monkeypatch, tmp_path / "template")
    agent = bench.start(bench.script(train(steps=1000, every=1000, pause=0.02)))
    stat = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    shown = Path(f"/proc/{agent.pid}/environ").read_bytes().split(b"\0")
    command = Path(f"/proc/{agent.pid}/cmdline").read_bytes().split(b"\0")
    assert ProcessId(agent.pid, agent.create_time).alive()
    assert int(stat[3]) not in (os.getsid(0), agent.pid), "a session of its own, which it does not lead"
    assert command[1:4] == [b"-m", b"orchestrator.agent", str(bench.folder().root).encode()]
    assert f"ORCH_NODE_HOME={bench.home}".encode() in shown
    assert not any(entry.startswith((b"ORCH_SERVICE", b"RAY_", b"ORCH_TEMPLATE")) for entry in shown)
    assert os.readlink(f"/proc/{agent.pid}/cwd") == str(bench.folder().root)
    bench.wait_step(3)
    os.kill(agent.pid, signal.SIGTERM)
    assert bench.wait_outcome().last_step
    assert bench.saved_outcome()["acknowledged"] is True


def test_an_agent_outlives_the_template(
    template: subprocess.Popen[bytes], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks_only(monkeypatch, tmp_path / "template")
    bench.start(bench.script(train(steps=30, every=10, pause=0.02)))
    template.kill()
    template.wait()
    assert bench.wait_outcome().reason == "completed"
    monkeypatch.undo()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "template"))
    bench.start(bench.script(train(), "other.py"), attempt=2)  # by itself: nobody answers any more
    bench.wait_outcome(attempt=2)
    assert bench.saved_outcome(attempt=2)["reason"] == "completed"


def test_a_worker_runs_rays_own_program_with_the_askers_files(
    template: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        three = (file.fileno(),) * 3
        pid = ask(str(tmp_path / "template"), WORKER, ["--help"], environment(), str(tmp_path), three)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert "Parse addresses for the worker to connect to" in out.read_text()
    assert template.poll() is None


def test_a_template_with_other_settings_of_ray_refuses_and_ends(
    template: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    path = str(tmp_path / "template")
    with pytest.raises(TemplateError, match="other settings"):
        ask(path, WORKER, [], environment(RAY_JOB_ID="02000000"), "/", ())
    assert template.wait(10) == 0
    with pytest.raises(TemplateError, match="no template"):
        ask(path, WORKER, [], environment(), "/", ())


def test_nonsense_ends_no_template(template: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="KeyError"):
        ask(str(tmp_path / "template"), "king", [], environment(), "/")
    assert template.poll() is None


def test_where_nobody_can_say_no_second_agent_is_started(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "deaf"))
        server.listen()
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(NoAnswerError):
            ask(str(tmp_path / "deaf"), AGENT, [], {}, "/")
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        forks_only(monkeypatch, tmp_path / "deaf")
        monkeypatch.setattr(launch, "_START_TIMEOUT_S", 0.1)
        with pytest.raises(SetupError, match="did not start"):
            bench.start(bench.script("pass"))
