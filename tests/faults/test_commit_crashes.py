"""A commit that is cut off anywhere leaves the run's checkpoints as they were, or one more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, points, restore, verify
from orchestrator.store.objects import ObjectStore, open_store
from orchestrator.store.runlog import RunLog
from tests.faults.disk_model import DiskModel
from tests.unit.store.helpers import (
    RUN,
    commit,
    contents,
    log_keys,
    make_directory,
    new_store,
    read_directory,
    writer,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A folder with a store in `template`, in which attempt 1 has committed step 100, and a directory.

    In memory where possible: these tests sync thousands of times, and what a sync does is modelled.
    """
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        folder = Path(name)
        commit(writer(new_store(folder / "template")), folder, 100, points=b"point 100\n")
        make_directory(folder, 200).rename(folder / "source")
        yield folder


def killed_everywhere(base: Path, scenario: str) -> list[Path]:
    """The stores that children left behind who were killed at one call after the other, the last one not."""
    command = [sys.executable, "-m", "tests.faults.commit_child", str(base), scenario]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line["signal"] == signal.SIGKILL for line in lines[:-1])
    assert lines[-1]["exit"] == 0
    return [base / str(line["at"]) for line in lines]


def restored_step(store: ObjectStore, into: Path) -> int:
    """Restore the newest, look at every byte, and tell its step."""
    restored = restore(store, RUN, None, into)
    assert restored.skipped == []
    assert restored.unreadable == ()
    assert read_directory(into) == contents(restored.record.step)
    return restored.record.step


def go_on(store: ObjectStore, base: Path) -> None:
    """The next attempt can take over, commit, and get rid of what was left behind."""
    before = {record.data for record in checkpoints(store, RUN)}
    attempt = max(record.attempt for record in RunLog(store, RUN).records()) + 1
    to = writer(store, attempt)
    newest = commit(to, base, 300)
    to.retain(9, 0, "x", "min")
    data = {"/".join(info.key.split("/")[:5]) for info in store.list(f"runs/{RUN}/data/")}
    live = {record.data for record in checkpoints(store, RUN) if not record.retired}
    assert data == live
    assert live <= before | {newest.data}
    kept = {record.points.key for record in checkpoints(store, RUN) if record.points}
    assert {info.key for info in store.list(f"runs/{RUN}/points/")} == kept


def test_killed_at_every_call_of_a_commit(base: Path) -> None:
    stores = killed_everywhere(base, "commit")
    assert len(stores) > 40
    steps = []
    for folder in stores:
        store = open_store(folder)
        step = restored_step(store, folder.with_suffix(".out"))
        found = checkpoints(store, RUN)
        assert [record.step for record in found] == [100, 200][: len(found)]
        assert step == found[-1].step
        segments = [f"point {record.step}\n".encode() for record in found]
        assert list(points(store, RUN)) == segments
        assert len(os.listdir(folder / ".tmp")) <= 1
        steps.append(step)
        go_on(store, base)
    assert steps == sorted(steps), "once committed, always committed"
    assert (steps[0], steps[-1]) == (100, 200)


def test_killed_at_every_call_of_a_claim(base: Path) -> None:
    stores = killed_everywhere(base, "claim")
    assert len(stores) > 10
    for folder in stores:
        store = open_store(folder)
        assert restored_step(store, folder.with_suffix(".out")) == 100
        kinds = [(record.kind, record.attempt) for record in RunLog(store, RUN).records()]
        assert kinds in (
            [("fence", 1), ("checkpoint", 1)],
            [("fence", 1), ("checkpoint", 1), ("fence", 2)],
        )
        go_on(store, base)


def test_killed_at_every_call_of_retention(base: Path) -> None:
    stores = killed_everywhere(base, "retain")
    assert len(stores) > 20
    for folder in stores:
        store = open_store(folder)
        assert restored_step(store, folder.with_suffix(".out")) == 200
        for record in checkpoints(store, RUN):
            assert record.retired or verify(store, record) == []
        assert list(points(store, RUN)) == [b"point 100\n", b"point 200\n"]
        assert len(log_keys(store)) in (5, 6)
        go_on(store, base)


class TestPowerLoss:
    """Nothing that was reported as committed depends on what was not synced."""

    def look(self, model: DiskModel, out: Path, expected: set[int]) -> set[int]:
        """Which step is restored after a power loss now, for each way in which the disk may have gone
        ahead.
        """
        steps: set[int] = set()
        ways = {
            "least": lambda path: False,
            "all names": lambda path: True,
            "log first": lambda path: path.name == "log",
            "data first": lambda path: "data" in path.parts,
            "upper folders first": lambda path: path.name in ("store", "runs", RUN),
        }
        for number, early in enumerate(ways.values()):
            folder = out / str(len(os.listdir(out)))
            folder.mkdir()
            if number:
                model.with_names(folder / "store", early)
            else:
                model.least(folder / "store")
            steps.add(restored_step(open_store(folder / "store"), folder / "restored"))
        assert steps <= expected
        return steps

    def test_during_a_commit(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = base / "template"
        store = open_store(root)
        to = writer(store, 2)
        model = DiskModel(root)
        out = base / "out"
        out.mkdir()
        seen: list[set[int]] = []
        calls: list[str] = []

        def moment(name: str) -> None:
            calls.append(name)
            seen.append(self.look(model, out, {100, 200}))

        with model.watching(monkeypatch, moment):
            to.commit(base / "source", 200, metrics={}, device="cpu", node="n", points=b"p\n")
        assert len(calls) > 20
        assert seen[calls.index("link")] == {100}
        self.look(model, out, {200})

    def test_folders_that_a_dead_process_made(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """They exist, but their names may not be durable; the next writer must not rely on them."""
        root = base / "template"
        model = DiskModel(root)
        (root / "runs" / "other" / "log").mkdir(parents=True)
        (root / "runs" / "other" / "data" / "1").mkdir(parents=True)
        store = open_store(root)
        with model.watching(monkeypatch, lambda name: None):
            to = CheckpointWriter(store, RunLog(store, "other").claim(1, node="n"))
            to.commit(base / "source", 200, metrics={}, device="cpu", node="n")
        model.least(base / "after")
        restored = restore(open_store(base / "after"), "other", None, base / "restored")
        assert read_directory(restored.directory) == contents(200)

    def test_during_retention(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = base / "template"
        to = writer(open_store(root), 2)
        commit(to, base, 200)
        model = DiskModel(root)
        out = base / "out"
        out.mkdir()

        def moment(name: str) -> None:
            self.look(model, out, {200})

        with model.watching(monkeypatch, moment):
            assert to.retain(1, 0, "x", "min") == [100]
        self.look(model, out, {200})
