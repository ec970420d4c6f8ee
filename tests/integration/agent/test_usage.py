"""Time of processors, against a folder that stands in for /proc and against real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.usage import TreeUsage
from tests.support import wait_until

TICK = os.sysconf("SC_CLK_TCK")
ROOT = 100


class Machine:
    """Processes as proc(5) shows them; times are in seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.usage = TreeUsage(ROOT, folder)

    def put(self, pid: int, parent: int, own: float = 0.0, reaped: float = 0.0) -> None:
        (self.folder / str(pid)).mkdir(exist_ok=True)
        times = f"{int(own * TICK)} 0 {int(reaped * TICK)} 0"
        text = f"{pid} (a ) S name) S {parent} 1 1 0 -1 0 0 0 0 0 {times} 20 0 1 0 5"
        (self.folder / str(pid) / "stat").write_text(text)

    def end(self, pid: int) -> None:
        shutil.rmtree(self.folder / str(pid))

    def ours(self) -> float:
        return self.usage.ours()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.put(1, 0, own=50)
    made.put(ROOT, 1, own=1)
    return made


def test_a_tree_counts_and_nothing_else_does(machine: Machine) -> None:
    machine.put(110, ROOT, own=2)
    machine.put(111, 110, own=3)
    machine.put(90, 111, own=4)  # a number can be lower than its parent's
    machine.put(120, 1, own=100)
    machine.put(121, 120, own=100)
    assert machine.ours() == 10
    machine.put(111, 110, own=5)
    machine.put(121, 120, own=200)
    assert machine.ours() == 12


def test_what_comes_and_goes_between_two_looks_counts_once(machine: Machine) -> None:
    machine.put(110, ROOT, own=2)
    assert machine.ours() == 3
    machine.put(110, ROOT, own=2, reaped=7)  # it started something that has ended, and waited for it
    assert machine.ours() == 10
    machine.put(111, 110, own=5)
    assert machine.ours() == 15
    machine.end(111)
    machine.put(110, ROOT, own=2, reaped=12)
    assert machine.ours() == 15
    machine.end(110)
    machine.put(ROOT, 1, own=1, reaped=14)
    assert machine.ours() == 15


def test_a_process_that_ends_while_others_are_looked_at(machine: Machine) -> None:
    machine.put(110, ROOT, own=2)
    machine.put(111, 110, own=30)
    assert machine.ours() == 33
    machine.end(111)  # its parent was read before it waited for it
    assert machine.ours() == 33
    machine.put(110, ROOT, own=4, reaped=30)
    assert machine.ours() == 35


def test_an_orphan_whose_way_cannot_be_seen_is_looked_at_again(machine: Machine) -> None:
    machine.put(111, 110, own=3)  # its parent ended after the numbers were listed
    assert machine.ours() == 1
    machine.put(111, ROOT, own=3)
    assert machine.ours() == 4


def test_a_number_that_was_foreign_can_be_ours_later(machine: Machine) -> None:
    machine.put(120, 1, own=100)
    assert machine.ours() == 1
    machine.put(120, ROOT, own=6)
    for _ in range(40):
        machine.ours()
    assert machine.ours() == 7


def test_the_busy_time_of_the_machine(machine: Machine, tmp_path: Path) -> None:
    assert machine.usage.machine() is None
    fields = " ".join(str(TICK * n) for n in (1, 2, 4, 1000, 2000, 8, 16, 4000, 1, 1))
    (tmp_path / "stat").write_text(f"cpu  {fields}\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert machine.usage.machine() == 31
    (tmp_path / "stat").write_text("cpu  1 2 3\n")
    assert machine.usage.machine() is None


BURNS = r"""
import os, subprocess, sys, time
def burn(s):
    end = time.process_time() + s
    while time.process_time() < end: pass
burn(0.2)
subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
child = os.fork()
burn(0.2)
os.write(1, b"burnt\n")
sys.stdin.read()
"""


@pytest.fixture
def burning() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", BURNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    yield process
    process.kill()
    process.communicate()


def test_real_processes(burning: subprocess.Popen[bytes]) -> None:
    usage = TreeUsage(burning.pid)
    assert burning.stdout is not None
    assert burning.stdout.readline() == burning.stdout.readline() == b"burnt\n"
    wait_until(lambda: usage.ours() >= 0.85, 5, lambda: str(usage.ours()))
    used, machine = usage.ours(), usage.machine()
    assert used < 1.5
    assert machine is not None
    assert machine > used
