"""Real processes that want the same run at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import FencedError
from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, restore
from orchestrator.store.objects import ObjectStore, open_store, read_bytes
from orchestrator.store.records import Fence
from orchestrator.store.runlog import RunLog
from orchestrator.store.s3_store import PART
from tests.faults.conftest import BUCKET
from tests.s3 import S3Server
from tests.support import wait_until
from tests.unit.store.helpers import RUN, commit, contents, log_keys, make_directory, read_directory, writer
from tests.unit.store.log_records import AT

FORK = multiprocessing.get_context("fork")
PROCESSES = 8
ROUNDS = 200
S3_ROUNDS = ROUNDS if os.environ.get("ORCH_SOAK") else 60
"""boto3 takes most of the time. `make soak` makes as many as on a folder."""


def together(work: Callable[[int, Any, Any], None]) -> list[Any]:
    """Run `work(number, barrier, tell)` in several processes; everything that they told."""
    barrier, queue = FORK.Barrier(PROCESSES), FORK.SimpleQueue()
    children = [FORK.Process(target=work, args=(n, barrier, queue.put)) for n in range(PROCESSES)]
    told: list[Any] = []
    for child in children:
        child.start()
    try:
        wait_until(lambda: _collect(queue, told, children), 500, lambda: f"{len(told)} answers")
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


@pytest.mark.timeout(600)
def test_one_winner_per_slot(place: str) -> None:
    rounds = S3_ROUNDS if place.startswith("s3:") else ROUNDS

    def race(number: int, barrier: Any, tell: Any) -> None:
        log = RunLog(open_store(place), RUN)
        for slot in range(1, rounds + 1):
            record = Fence(run=RUN, slot=slot, id=_id(number, slot), attempt=number + 1, at=AT)
            barrier.wait(120)
            if log.create(record):
                tell((slot, number))

    won = together(race)
    assert sorted(slot for slot, _ in won) == list(range(1, rounds + 1))
    store = open_store(place)
    held = {record.slot: record.id for record in RunLog(store, RUN).records()}
    assert held == {slot: _id(number, slot) for slot, number in won}
    assert len({number for _, number in won}) > 1, "nobody raced"
    assert [info.key for info in store.list("")] == [*log_keys(store), "store.json"]
    if place.startswith("file://"):
        assert os.listdir(place.removeprefix("file://") + "/.tmp") == []


def _id(number: int, slot: int) -> uuid.UUID:
    return uuid.UUID(int=number * 1000 + slot)


def test_claims_at_once(place: str) -> None:
    """Whatever the order, attempts in the log rise, and who has a claim is in the log."""
    rounds = 25 if place.startswith("file://") else 5

    def race(number: int, barrier: Any, tell: Any) -> None:
        store = open_store(place)
        for round_ in range(rounds):
            log = RunLog(store, f"run-{round_}")
            barrier.wait(60)
            with suppress(FencedError):
                log.claim(number + 1, node="n")
                tell((round_, number + 1))

    claimed = together(race)
    for round_ in range(rounds):
        attempts = [record.attempt for record in RunLog(open_store(place), f"run-{round_}").records()]
        assert attempts == sorted(set(attempts))
        assert attempts[-1] == PROCESSES, "the newest attempt always gets the run"
        assert sorted(attempt for number, attempt in claimed if number == round_) == attempts


def test_a_suspended_owner_that_wakes_up_is_fenced(place: str, tmp_path: Path) -> None:
    """The laptop sleeps in the middle of a commit, the run goes on elsewhere, the laptop wakes up."""
    sources = [make_directory(tmp_path, step) for step in range(1000, 1010)]
    store = open_store(place)
    rng = random.Random(7)
    for round_ in range(8 if place.startswith("file://") else 4):
        run = f"run-{round_}"

        def asleep(run: str = run) -> None:
            wait_until(lambda: len(checkpoints(store, run)) >= 2, 30, every=0.002)
            time.sleep(rng.random() * 0.03)

        sleep_and_wake(place, run, sources, tmp_path, asleep)


def test_an_owner_that_slept_while_it_uploaded_is_fenced(s3: S3Server, tmp_path: Path) -> None:
    """Parts of its file are on the server, others not yet: it goes on with them, and throws all away."""
    source = make_directory(tmp_path, 1)
    (source / "model.safetensors").write_bytes(os.urandom(1 << 20) * 9 * (PART >> 20))
    run = uuid.uuid4().hex

    def uploads() -> list[Any]:
        answer = s3.client().list_multipart_uploads(Bucket=BUCKET, Prefix=f"{run}/")
        return list(answer.get("Uploads", []))

    def asleep() -> None:
        wait_until(uploads, 30, every=0.002)

    sleep_and_wake(s3.uri(BUCKET, run), run, [source], tmp_path, asleep, lambda: bool(uploads()))
    assert uploads() == []


def sleep_and_wake(
    place: str,
    run: str,
    sources: list[Path],
    folder: Path,
    until: Callable[[], None],
    still: Callable[[], bool] = lambda: True,
) -> None:
    """An owner that commits one thing after another is stopped when `until` returns, somebody takes the run
    over and commits, and it wakes: it has to end, and to leave no trace.
    """
    store = open_store(place)
    child = FORK.Process(target=_commit_on, args=(place, run, sources))
    child.start()
    assert child.pid is not None
    try:
        until()
        os.kill(child.pid, signal.SIGSTOP)
        _wait_stopped(child.pid)
        assert still()
        commit(writer(store, 2, run), folder, 500_000)
        log, kept = _log(store, run), _committed(store, run)
        os.kill(child.pid, signal.SIGCONT)
        child.join(60)
        assert child.exitcode == FENCED, "the sleeper must end because it is fenced"
    finally:
        child.kill()
        child.join(10)
    assert _log(store, run) == log
    assert {"/".join(info.key.split("/")[:5]) for info in store.list(f"runs/{run}/data/")} == kept
    restored = restore(store, run, None, folder / f"out-{run}")
    assert restored.record.attempt == 2
    assert read_directory(restored.directory) == contents(500_000)


FENCED = 17


def _commit_on(place: str, run: str, sources: list[Path]) -> None:
    store = open_store(place)
    to = CheckpointWriter(store, RunLog(store, run).claim(1, node="laptop"))
    try:
        for number in range(10_000):
            source = sources[number % len(sources)]
            to.commit(source, number, metrics={}, device="cpu", node="laptop", points=b"p\n")
    except FencedError:
        os._exit(FENCED)


def _wait_stopped(pid: int) -> None:
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", 10)


def _log(store: ObjectStore, run: str) -> dict[str, bytes]:
    return {key: read_bytes(store, key) for key in log_keys(store, run)}


def _committed(store: ObjectStore, run: str) -> set[str]:
    return {record.data for record in checkpoints(store, run)}
