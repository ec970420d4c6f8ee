"""Processors of one's own: who gets which, with real processes that hold them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent import cores
from orchestrator.agent.cores import CoreRegister, choose, physical_cores, register_folder
from orchestrator.agent.program import Command, Program
from tests.integration.agent.bench import Bench
from tests.support import wait_until

FOUR = [[0, 4], [1, 5], [2, 6], [3, 7]]
"""Four cores with two threads each."""


@pytest.mark.parametrize(
    ("count", "taken", "chosen"),
    [
        (2, set(), [0, 4]),
        (3, set(), [0, 1, 4]),
        (2, {0, 4}, [1, 5]),
        (2, {0}, [1, 5]),
        (1, {1}, [5]),
        (3, {1}, [0, 4, 5]),
        (8, set(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, {0, 1, 2, 3}, [4, 5]),
        (5, {0, 1, 2, 3}, []),
        (9, set(), []),
        (0, set(), []),
    ],
)
def test_whole_cores_come_first(count: int, taken: set[int], chosen: list[int]) -> None:
    assert choose(count, FOUR, taken) == chosen


def test_threads_of_one_core_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, package, core in ((0, 0, 0), (1, 1, 0), (2, 0, 0), (3, 0, 1)):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(cores, "_TOPOLOGY", f"{tmp_path}/cpu{{}}/topology/{{}}")
    assert physical_cores([3, 2, 1, 0]) == [[0, 2], [3], [1]]
    assert physical_cores([8, 9]) == [[8], [9]], "where the system does not say, each is its own"


HOLD = """
import json, sys
from pathlib import Path
from orchestrator.agent.cores import CoreRegister
register = CoreRegister(Path(sys.argv[1]))
print(json.dumps(register.take(int(sys.argv[2]), range(4))), flush=True)
for line in sys.stdin:
    register.give_back()
    print("given back", flush=True)
"""


class Holder:
    """A process that has taken processors."""

    def __init__(self, folder: Path, count: int) -> None:
        argv = [sys.executable, "-c", HOLD, str(folder), str(count)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def taken(self) -> list[int]:
        assert self.process.stdout
        return list(json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def hold(count: int) -> Holder:
            holder = Holder(tmp_path / "register", count)
            stack.callback(holder.end)
            return holder

        yield hold


def test_living_processes_share_no_processor(holders: Any) -> None:
    together = [holders(1) for _ in range(5)]
    taken = [holder.taken for holder in together]
    assert sorted(cpu for one in taken for cpu in one) == [0, 1, 2, 3]
    assert taken.count([]) == 1, "the fifth gets none of its own"


def test_what_the_dead_had_is_free_again(holders: Any) -> None:
    first = holders(3)
    had = first.taken
    assert holders(2).taken == []
    first.end()
    assert set(had) & set(holders(2).taken)


def test_what_is_given_back_is_free_again(holders: Any) -> None:
    first = holders(4)
    assert first.taken == [0, 1, 2, 3]
    assert first.process.stdin
    assert first.process.stdout
    first.process.stdin.write("\n")
    first.process.stdin.flush()
    assert first.process.stdout.readline() == "given back\n"
    assert len(holders(2).taken) == 2


def test_one_at_a_time_looks_and_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0

    def slow(count: int, of: Any, taken: Any) -> list[int]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        inside -= 1
        return choose(count, of, taken)

    monkeypatch.setattr(cores, "choose", slow)
    threads = [threading.Thread(target=CoreRegister(tmp_path / "r").take, args=(1, [0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_register_that_cannot_be_used_pins_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert CoreRegister(tmp_path / "file").take(1, [0]) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert CoreRegister(tmp_path / "link").take(1, [0]) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []
    folder = tmp_path / "damaged"
    assert CoreRegister(folder).take(1, [0]) == [0]
    (folder / "register.json").write_text("{")
    assert CoreRegister(folder).take(1, [0]) == []


def test_the_register_is_one_for_all_stacks_of_a_user() -> None:
    assert register_folder({}) == register_folder({"ORCH_NODE_HOME": "/elsewhere", "TMPDIR": "/t"})
    assert register_folder({"ORCH_CPU_REGISTER": "/shared"}).parent == Path("/shared")


SHOW = "import os; print(sorted(os.sched_getaffinity(0)), flush=True)"


def test_a_program_runs_where_it_was_put(tmp_path: Path) -> None:
    usable = sorted(os.sched_getaffinity(0))
    assert len(usable) > 1, "one processor shows nothing"
    absent = [4095]  # more than any kernel here has
    for given, seen in (([usable[-1]], [usable[-1]]), ([], usable), (absent, usable)):
        output = tmp_path / f"{given}"
        program = Program(lambda: None)
        program.start(
            Command([sys.executable, "-c", SHOW], dict(os.environ), str(tmp_path), str(output), given)
        )
        wait_until(lambda: program.done, 20)  # noqa: B023
        assert output.read_text() == f"{seen}\n"


@pytest.mark.parametrize(("setting", "pinned"), [("", True), ("1", True), ("0", False)])
def test_an_attempt_runs_on_as_many_as_it_was_granted_unless_its_node_says_otherwise(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, pinned: bool
) -> None:
    monkeypatch.setenv("ORCH_CPU_REGISTER", str(tmp_path))
    monkeypatch.setenv("ORCH_PIN_CPUS", setting)
    bench.start(bench.script(SHOW))
    bench.wait_outcome()
    seen = json.loads(bench.controller.log)
    assert len(seen) == (1 if pinned else len(os.sched_getaffinity(0)))
    assert (register_folder() / "register.json").read_text() == "[]", "given back"
