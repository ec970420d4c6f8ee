"""What is seen of a machine, from made-up files and from this very machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from orchestrator.cluster.sensors import (
    Processes,
    logind_people,
    on_battery,
    people,
    terminal_people,
)
from tests.support import wait_until

NOW = 1_800_000_000.0


def made_up(proc: Path, pid: int, comm: str, command: str = "", parent: int = 1, state: str = "S") -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "comm").write_text(comm + "\n")
    (folder / "cmdline").write_text(command.replace(" ", "\0"))
    (folder / "stat").write_text(f"{pid} ({comm}) {state} {parent} {pid} {pid} 0\n")


def test_programs_are_found_by_either_of_their_names(tmp_path: Path) -> None:
    made_up(tmp_path, 10, "cs2", "/games/cs2 -novid")
    made_up(tmp_path, 11, "GameThread", "/games/Hades -fullscreen")
    made_up(tmp_path, 12, "Cyberpunk2077.e", r"Z:\games\bin\Cyberpunk2077.exe")
    made_up(tmp_path, 17, "MainThread", r"C:\games\Elden.exe -windowed")
    made_up(tmp_path, 13, "python3", "/usr/bin/python3 cs2")
    made_up(tmp_path, 14, "cs2", state="Z")
    made_up(tmp_path, 15, "very-long-game-", "./wrapped")
    (tmp_path / "self").mkdir()
    (tmp_path / "16").mkdir()  # it has ended meanwhile
    table = Processes(tmp_path)
    wanted = ("CS2", "hades", "cyberpunk2077.exe", "very-long-game-of-the-year", "elden.exe")
    assert table.named(wanted) == {
        10: "CS2",
        11: "hades",
        12: "cyberpunk2077.exe",
        15: "very-long-game-of-the-year",
        17: "elden.exe",
    }
    assert table.named(()) == {}


def test_a_command_with_brackets_is_read_right(tmp_path: Path) -> None:
    made_up(tmp_path, 20, "a) S 1 (b", parent=10)
    made_up(tmp_path, 10, "agent", parent=1)
    made_up(tmp_path, 1, "init", parent=0)
    table = Processes(tmp_path)
    assert table.descends(20, [10])
    assert table.descends(10, [10])
    assert not table.descends(20, [11])
    assert not table.descends(99, [10])


def test_a_circle_of_parents_ends(tmp_path: Path) -> None:
    """Numbers are used again while one reads."""
    made_up(tmp_path, 30, "a", parent=31)
    made_up(tmp_path, 31, "b", parent=30)
    assert not Processes(tmp_path).descends(30, [1])


@contextmanager
def program(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`sleep` under another name."""
    shutil.copy(shutil.which("sleep") or "/bin/sleep", path)
    child = subprocess.Popen([str(path), "60"])
    try:
        yield child
    finally:
        child.kill()
        child.wait(20)


def test_a_real_program_is_seen_as_long_as_it_runs(tmp_path: Path) -> None:
    table = Processes()
    with program(tmp_path / "orch-test-game") as child:
        wait_until(lambda: table.named(["orch-test-game"]) == {child.pid: "orch-test-game"}, 5)
        assert table.descends(child.pid, [os.getpid()])
        assert not table.descends(os.getpid(), [child.pid])
        child.kill()
        # Nobody has collected it yet: it is there, but does not run.
        wait_until(lambda: table.named(["orch-test-game"]) == {}, 5)


# ------------------------------------------------------------------ power


def supply(folder: Path, name: str, **values: str) -> None:
    (folder / name).mkdir()
    for key, value in values.items():
        (folder / name / key).write_text(value + "\n")


LAPTOP = {"type": "Battery", "scope": "System", "status": "Discharging"}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, False),
        ({"BAT0": LAPTOP}, True),
        ({"BAT0": {**LAPTOP, "status": "Full"}}, False),
        ({"BAT0": LAPTOP, "AC": {"type": "Mains", "online": "0"}}, True),
        ({"BAT0": LAPTOP, "AC": {"type": "Mains", "online": "1"}}, False),
        ({"BAT0": LAPTOP, "ucsi": {"type": "USB", "online": "1"}}, False),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}}, True),
        ({"mouse": {"type": "Battery", "scope": "Device", "status": "Discharging"}}, False),
        ({"BAT0": {"type": "Battery"}}, False),
    ],
)
def test_the_power_supply(tmp_path: Path, supplies: dict[str, dict[str, str]], expected: bool) -> None:
    for name, values in supplies.items():
        supply(tmp_path, name, **values)
    assert on_battery(tmp_path) is expected


def test_a_machine_that_does_not_tell_is_not_on_battery(tmp_path: Path) -> None:
    assert on_battery(tmp_path / "missing") is None


# ------------------------------------------------------------------ people


def session(name: str = "ada", **values: str) -> str:
    told = {
        "Name": name,
        "Class": "user",
        "State": "active",
        "Type": "wayland",
        "LockedHint": "no",
        "IdleHint": "no",
        "IdleSinceHint": "0",
        **values,
    }
    return "\n".join(f"{key}={value}" for key, value in told.items())


def ago(seconds: float) -> str:
    return str(int((NOW - seconds) * 1e6))


@pytest.mark.parametrize(
    ("told", "there"),
    [
        (session(), True),
        (session(IdleHint="yes", IdleSinceHint=ago(60)), True),
        (session(IdleHint="yes", IdleSinceHint=ago(700)), False),
        (session(LockedHint="yes"), False),
        (session(State="online"), False),
        (session(State="closing"), False),
        (session(Class="greeter"), False),
        (session(Class="manager"), False),
        (session(Type="tty", IdleSinceHint=ago(30)), True),
        (session(Type="tty", State="online", IdleSinceHint=ago(30)), True),
        (session(Type="tty", IdleSinceHint=ago(700)), False),
        (session(Type="tty"), False),
        (session(Type="unspecified", IdleSinceHint=""), False),
    ],
)
def test_sessions_count_while_somebody_types(told: str, there: bool) -> None:
    assert logind_people(["3"], 600, NOW, lambda sessions: told) == (["ada"] if there else [])


def test_several_sessions_name_each_person_once() -> None:
    told = "\n\n".join([session("bob"), session(), session("bob", Type="tty", IdleSinceHint=ago(1))])
    asked: list[list[str]] = []

    def ask(sessions: list[str]) -> str:
        asked.append(sessions)
        return told + "\n"

    assert logind_people(["1", "2"], 600, NOW, ask) == ["ada", "bob"]
    assert asked == [["1", "2"]]


def test_a_logind_that_does_not_answer_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logind_people(["1"], 600, NOW, lambda sessions: None) is None
    (tmp_path / "1").touch()
    (tmp_path / "1.ref").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert people(600, NOW, tmp_path) is None
    (tmp_path / "1").unlink()
    assert people(600, NOW, tmp_path) == [], "nobody has a session"


def test_logind_is_asked_about_the_sessions_it_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c7", "c7.ref"):
        (tmp_path / name).touch()
    tool = tmp_path / "bin" / "loginctl"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\n[ "$1 $2" = "show-session c7" ] || exit 1\ncat <<E\n' + session() + "\nE\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/bin:/usr/bin")
    assert people(600, NOW, tmp_path) == ["ada"]


def test_without_logind_the_terminals_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [("ada", "pts/1"), ("bob", "pts/2"), ("eve", ":0"), ("kim", None)]
    monkeypatch.setattr(
        psutil, "users", lambda: [SimpleNamespace(name=name, terminal=terminal) for name, terminal in users]
    )
    (tmp_path / "pts").mkdir()
    for number, idle in ((1, 60), (2, 700)):
        (tmp_path / f"pts/{number}").touch()
        os.utime(tmp_path / f"pts/{number}", (NOW - idle, NOW))
    assert terminal_people(600, NOW, tmp_path) == ["ada"]
    assert terminal_people(1000, NOW, tmp_path) == ["ada", "bob"]
    monkeypatch.setattr("orchestrator.cluster.sensors.terminal_people", lambda within, now: ["the terminals"])
    assert people(600, NOW, tmp_path / "missing") == ["the terminals"]
