"""Real processes that want the same run at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import FencedError
from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, restore
from orchestrator.store.objects import open_store
from orchestrator.store.records import Fence
from orchestrator.store.runlog import RunLog
from tests.support import wait_until
from tests.unit.store.helpers import RUN, commit, contents, make_directory, new_store, read_directory, writer
from tests.unit.store.log_records import AT

FORK = multiprocessing.get_context("fork")
PROCESSES = 8
ROUNDS = 50


@pytest.fixture
def root(tmp_path: Path) -> Path:
    new_store(tmp_path / "store")
    return tmp_path / "store"


def together(work: Callable[[int, Any, Any], None]) -> list[Any]:
    """Run `work(number, barrier, tell)` in several processes; everything that they told."""
    barrier, queue = FORK.Barrier(PROCESSES), FORK.SimpleQueue()
    children = [FORK.Process(target=work, args=(n, barrier, queue.put)) for n in range(PROCESSES)]
    told: list[Any] = []
    for child in children:
        child.start()
    try:
        wait_until(lambda: _collect(queue, told, children), 120, lambda: f"{len(told)} answers")
    finally:
        for child in children:
            child.kill()
            child.join(10)
    assert [child.exitcode for child in children] == [0] * PROCESSES
    return told


def _collect(queue: Any, told: list[Any], children: list[Any]) -> bool:
    over = not any(child.is_alive() for child in children)
    while not queue.empty():
        told.append(queue.get())
    return over


def test_one_winner_per_slot(root: Path) -> None:
    def race(number: int, barrier: Any, tell: Any) -> None:
        log = RunLog(open_store(root), RUN)
        for slot in range(1, ROUNDS + 1):
            record = Fence(run=RUN, slot=slot, id=_uuid(number, slot), attempt=number + 1, at=AT)
            barrier.wait(60)
            if log.create(record):
                tell((slot, number))

    won = together(race)
    assert sorted(slot for slot, _ in won) == list(range(1, ROUNDS + 1))
    held = {record.slot: record.attempt - 1 for record in RunLog(open_store(root), RUN).records()}
    assert held == dict(won)
    assert len({number for _, number in won}) > 1, "nobody raced"
    assert os.listdir(root / ".tmp") == []


def _uuid(number: int, slot: int) -> Any:
    import uuid

    return uuid.UUID(int=number * 1000 + slot)


def test_claims_at_once(root: Path) -> None:
    """Whatever the order, attempts in the log rise, and who has a claim is in the log."""

    def race(number: int, barrier: Any, tell: Any) -> None:
        for round_ in range(ROUNDS // 2):
            log = RunLog(open_store(root), f"run-{round_}")
            barrier.wait(60)
            with suppress(FencedError):
                log.claim(number + 1, node="n")
                tell((round_, number + 1))

    claimed = together(race)
    for round_ in range(ROUNDS // 2):
        attempts = [record.attempt for record in RunLog(open_store(root), f"run-{round_}").records()]
        assert attempts == sorted(set(attempts))
        assert attempts[-1] == PROCESSES, "the newest attempt always gets the run"
        assert sorted(attempt for number, attempt in claimed if number == round_) == attempts


def test_a_suspended_owner_that_wakes_up_is_fenced(root: Path, tmp_path: Path) -> None:
    """The laptop sleeps in the middle of a commit, the run goes on elsewhere, the laptop wakes up."""
    sources = [make_directory(tmp_path, step) for step in range(1000, 1010)]
    rng = random.Random(7)
    for round_ in range(8):
        run = f"run-{round_}"
        child = FORK.Process(target=_commit_on, args=(root, run, sources))
        child.start()
        assert child.pid is not None
        try:
            wait_until(lambda run=run: len(checkpoints(open_store(root), run)) >= 2, 30, every=0.002)  # type: ignore[misc]
            time.sleep(rng.random() * 0.03)
            os.kill(child.pid, signal.SIGSTOP)
            _wait_stopped(child.pid)
            _take_over(root, run, tmp_path)
            os.kill(child.pid, signal.SIGCONT)
            child.join(30)
            assert child.exitcode == 17, "the sleeper must end because it is fenced"
        finally:
            child.kill()
            child.join(10)
        _nothing_of_the_sleeper(root, run, tmp_path / f"out-{round_}")


def _commit_on(root: Path, run: str, sources: list[Path]) -> None:
    store = open_store(root)
    to = CheckpointWriter(store, RunLog(store, run).claim(1, node="laptop"))
    try:
        for number in range(10_000):
            to.commit(sources[number % 10], number, metrics={}, device="cpu", node="laptop", points=b"p\n")
    except FencedError:
        os._exit(17)


def _wait_stopped(pid: int) -> None:
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", 10)


def _take_over(root: Path, run: str, tmp_path: Path) -> None:
    commit(writer(open_store(root), 2, run), tmp_path, 500_000)


def _nothing_of_the_sleeper(root: Path, run: str, out: Path) -> None:
    store = open_store(root)
    attempts = [record.attempt for record in RunLog(store, run).records()]
    assert attempts == sorted(attempts)
    assert attempts.count(2) == 2
    restored = restore(store, run, None, out)
    assert restored.record.attempt == 2
    assert read_directory(out) == contents(500_000)
    committed = {record.data for record in checkpoints(store, run)}
    assert {"/".join(info.key.split("/")[:5]) for info in store.list(f"runs/{run}/data/")} == committed
