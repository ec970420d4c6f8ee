"""Services are found and ended by their session; agents and strangers are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.agent.identity import ProcessId, identify
from orchestrator.cluster.processes import MARKER, end_sessions, marked_sessions, members, signal_process
from tests.support import wait_until

STACK = f"test{os.getpid()}"
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
print(child.pid, flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""
# What an agent does: fork, a session of its own, fork, and no marker.
LEAVER = f"""
import os, subprocess, sys, time
env = {{name: value for name, value in os.environ.items() if name != "{MARKER}"}}
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, env=env, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code in a session of its own; whatever is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []
    others: list[int] = []

    def run(code: str, marker: str | None = f"{STACK}/web") -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if name != MARKER}
        if marker:
            env[MARKER] = marker
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
        )
        started.append(child)
        assert child.stdout is not None
        line = child.stdout.readline().strip()
        if line.isdigit():
            others.append(int(line))
            child.other = int(line)  # type: ignore[attr-defined]
        return child

    yield run
    for pid in [*others, *(child.pid for child in started)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for child in started:
        child.wait(20)
        assert child.stdout is not None
        child.stdout.close()


def began(child: subprocess.Popen[str]) -> float:
    who = identify(child.pid)
    assert who is not None
    return who.create_time


def alive(pid: int) -> bool:
    who = identify(pid)
    return who is not None and who.alive()


def test_a_session_is_found_with_those_in_other_process_groups(start: Start) -> None:
    child = start(FAMILY)
    found = {member.pid for member in members(child.pid, began(child))}
    assert found == {child.pid, child.other}  # type: ignore[attr-defined]


def test_a_session_is_found_and_ended_when_its_leader_is_dead(start: Start) -> None:
    child = start(FAMILY)
    since = began(child)
    child.kill()
    child.wait(20)
    wait_until(lambda: [m.pid for m in members(child.pid, since)] == [child.other], 5.0)  # type: ignore[attr-defined]
    assert end_sessions({child.pid: since}, grace_s=5.0) == []
    assert not alive(child.other)  # type: ignore[attr-defined]


def test_who_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    child = start(STUBBORN)
    assert end_sessions({child.pid: began(child)}, grace_s=0.3) == []
    assert child.wait(20) == -signal.SIGKILL


def test_an_agent_that_left_the_session_lives_on(start: Start) -> None:
    child = start(LEAVER)
    assert end_sessions({child.pid: began(child)}, grace_s=5.0) == []
    assert not alive(child.pid)
    assert alive(child.other)  # type: ignore[attr-defined]
    assert child.other not in marked_sessions(STACK)  # type: ignore[attr-defined]


def test_a_number_that_was_given_to_somebody_else_is_left_alone(start: Start) -> None:
    child = start(FAMILY)
    assert members(child.pid, began(child) - 100.0) == []
    assert end_sessions({child.pid: began(child) - 100.0}, grace_s=0.1) == []
    assert alive(child.pid)


def test_a_session_without_our_marker_is_left_alone(start: Start) -> None:
    child = start(FAMILY, marker=None)
    assert end_sessions({child.pid: began(child)}, grace_s=0.1) == []
    assert alive(child.pid)


def test_services_that_nobody_wrote_down_are_found_by_their_marker(start: Start) -> None:
    ours, other = start(FAMILY), start(FAMILY, marker=f"{STACK}x/web")
    assert marked_sessions(STACK) == {ours.pid: began(ours)}
    assert other.pid in marked_sessions(f"{STACK}x")


def test_a_signal_reaches_this_very_process_only(start: Start) -> None:
    child = start(FAMILY)
    wrong = ProcessId(child.pid, began(child) - 1.0)
    assert not signal_process(wrong, signal.SIGKILL)
    assert alive(child.pid)
    assert signal_process(ProcessId(child.pid, began(child)), signal.SIGKILL)
    wait_until(lambda: not alive(child.pid), 5.0)
    child.wait(20)
    assert not signal_process(ProcessId(child.pid, 1.0), signal.SIGKILL)


def test_a_folder_in_tmp_that_is_not_ours_alone_is_refused(tmp_path: Path) -> None:
    from orchestrator.cluster.host import fresh_temp_dir
    from orchestrator.errors import SetupError

    root = tmp_path / "orch-x"
    fresh_temp_dir(root / "head")
    (root / "head" / "old").write_text("")
    fresh_temp_dir(root / "head")
    assert list((root / "head").iterdir()) == []
    assert (root / "head.1" / "old").exists()
    root.chmod(0o777)
    with pytest.raises(SetupError, match="private"):
        fresh_temp_dir(root / "head")
