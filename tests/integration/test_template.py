"""The template of a node makes agents and workers, and where it does not, they start by themselves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent import launch
from orchestrator.agent import template as asking
from orchestrator.agent.identity import ProcessId
from orchestrator.agent.template import AGENT, SIZE, VARIABLE, WORKER, TemplateError, ask
from tests.integration.agent.bench import Bench
from tests.integration.agent.programs import train
from tests.support import process, wait_until

SETTINGS = {"RAY_JOB_ID": "01000000"}
NO_KING = "KeyError"
"""It knows no `king`."""


def worker(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


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
        pid = ask(str(tmp_path / "template"), WORKER, worker("--help"), environment(), str(tmp_path), three)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert "Parse addresses for the worker to connect to" in out.read_text()
    assert template.poll() is None


SHOW = """
import json, os, signal, sys
told = {
    "env": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd(), "pid": os.getpid(),
    "group": os.getpgid(0), "session": os.getsid(0), "stdin": sys.stdin.read(),
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "threads": len(os.listdir("/proc/self/task")),
    "children": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "oom": open("/proc/self/oom_score_adj").read().strip(),
    "libraries": [line for line in open("/proc/self/maps") if "cuda" in line or "libtorch" in line],
}
print(json.dumps(told))
sys.exit(3)
"""


def test_a_worker_is_what_ray_asked_for_and_not_what_the_template_is(tmp_path: Path) -> None:
    program, path = tmp_path / "show.py", tmp_path / "template"
    program.write_text(SHOW)
    serve = "import sys; from pathlib import Path; from orchestrator.cluster.template import Template as T;"
    argv = [
        sys.executable,
        "-c",
        f"{serve} T(Path(sys.argv[1]), sys.argv[2]).serve()",
        str(path),
        str(program),
    ]
    of_template = environment(ONLY_THERE="1", CUDA_VISIBLE_DEVICES="0,1", OMP_NUM_THREADS="7")
    mine = environment(ONLY_HERE="1", CUDA_VISIBLE_DEVICES="2")
    (tmp_path / "in").write_text("for the worker")
    with process(argv, tmp_path / "log", env=of_template) as child:
        wait_until(path.exists, 60, lambda: (tmp_path / "log").read_text())
        with (tmp_path / "in").open("rb") as reads, (tmp_path / "out").open("wb") as writes:
            three = (reads.fileno(), writes.fileno(), writes.fileno())
            pid = ask(str(path), WORKER, worker("--one"), mine, str(tmp_path), three)
        told = json.loads(wait_until((tmp_path / "out").read_text, 20))
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert told["env"] == mine
    assert told["argv"] == [str(program), "--one"]
    assert (told["cwd"], told["stdin"]) == (str(tmp_path), "for the worker")
    assert (told["pid"], told["group"], told["session"]) == (pid, pid, child.pid)
    assert told["files"][:3] == [0, 1, 2]
    assert len(told["files"]) == 4, "the fourth is the folder that is being listed"
    assert (told["threads"], told["children"], told["oom"], told["libraries"]) == (1, True, "1000", [])


@pytest.mark.parametrize("other", ["RAY_JOB_ID", "PYTHONPATH"])
def test_a_template_with_other_settings_refuses_and_ends(
    template: subprocess.Popen[bytes], tmp_path: Path, other: str
) -> None:
    path = str(tmp_path / "template")
    with pytest.raises(TemplateError, match="other settings"):
        ask(path, WORKER, worker(), environment(**{other: "02000000"}), "/")
    assert template.wait(10) == 0
    with pytest.raises(TemplateError, match="no template"):
        ask(path, WORKER, worker(), environment(), "/")


def test_a_refusal_is_heard_however_soon_it_comes() -> None:
    mine, theirs = socket.socketpair()

    class Slow:
        """A connection whose other side has answered and gone before anything else is done with it."""

        recv, sendall = mine.recv, mine.sendall

        def sendmsg(self, parts: list[bytes], rights: list[Any]) -> int:
            sent = mine.sendmsg(parts, rights)
            theirs.recv(1 << 16)
            theirs.sendall(b"the worker is for other settings")
            theirs.close()
            return sent

    with mine, pytest.raises(TemplateError, match="other settings"):
        asking._agree(Slow(), b"a message", ())  # type: ignore[arg-type]


def test_a_template_ends_with_its_raylet(tmp_path: Path) -> None:
    raylet = subprocess.Popen(["sleep", "300"])
    path = tmp_path / "template"
    argv = [sys.executable, "-P", "-m", "orchestrator.cluster.template", str(path)]
    env = environment(RAY_RAYLET_PID=str(raylet.pid))
    with process(argv, tmp_path / "log", env=env) as child:
        try:
            wait_until(path.exists, 60, lambda: (tmp_path / "log").read_text())
        finally:
            raylet.kill()
            raylet.wait()
        assert child.wait(10) == 0
    assert not path.exists()


def test_nonsense_ends_no_template(template: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=NO_KING):
        ask(str(tmp_path / "template"), "king", [], environment(), "/")
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(str(tmp_path / "template"))
        half.sendall(SIZE.pack(1000) + b"wor")
    with pytest.raises(TemplateError, match=NO_KING):
        ask(str(tmp_path / "template"), "king", [], environment(), "/")
    assert template.poll() is None


@pytest.mark.usefixtures("template")
def test_a_process_that_nobody_waits_for_any_more_ends_before_it_begins(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    message = "\0".join([AGENT, str(folder), "0", "A=1"]).encode()
    with socket.socket(socket.AF_UNIX) as hasty:
        hasty.settimeout(20)
        hasty.connect(str(tmp_path / "template"))
        hasty.sendall(SIZE.pack(len(message)) + message)
        pid = int(hasty.recv(100))
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert list(folder.iterdir()) == []


def test_a_template_that_does_not_answer_is_not_waited_for_long(
    template: subprocess.Popen[bytes], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.5)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "template"))
    template.send_signal(signal.SIGSTOP)
    agent = bench.start(bench.script(train()))
    template.send_signal(signal.SIGCONT)
    with pytest.raises(TemplateError, match=NO_KING):
        ask(str(tmp_path / "template"), "king", [], environment(), "/")
    bench.wait_outcome()
    assert bench.saved_outcome()["reason"] == "completed"
    assert json.loads(bench.folder().agent.read_text())["pid"] == agent.pid
