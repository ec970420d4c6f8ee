"""The disk of the node is full: the trainer says it and goes on, and saves again when there is room."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import EXIT_SAVED, EnvContext
from orchestrator.domain.states import Reason
from orchestrator.store.checkpoints import verify
from tests.integration.agent.bench import Bench
from tests.support import wait_until
from tests.unit.trainer.support import SteeredContext, start, tiny, write_text
from trainer import checkpoint
from trainer.errors import NoRoom, TrainerError
from trainer.train import Training

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.progress.gemm_peak", lambda hardware, again=False: 1e12)
    monkeypatch.setattr("trainer.train._AT_THE_END_S", (0.01, 0.02))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB: a checkpoint of these runs takes 310 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, 2000):
        yield folder


@contextmanager
def mounted(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system in memory, of so many kilobytes, until the end of the block."""
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"]
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that leaves no room, or so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while room(disk) > leave:
            file.write(bytes(4096))
    assert room(disk) <= leave
    return ballast


def room(disk: Path) -> int:
    """Free bytes."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


class Emptied(SteeredContext):
    """Fills the disk at one step and empties it at another."""

    def __init__(self, disk: Path, full_at: int, room_at: int | None) -> None:
        super().__init__(disk)
        self.training: Training | None = None
        self._disk, self._full_at, self._room_at = disk, full_at, room_at

    def stop_requested(self) -> bool:
        assert self.training is not None
        if self.training.step == self._full_at and not (self._disk / "ballast").exists():
            self.training.writer.wait()
            fill(self._disk)
        if self.training.step == self._room_at:
            work = self.training.writer._work
            wait_until(lambda: work is None or work.done(), 30)
            (self._disk / "ballast").unlink(missing_ok=True)
        return super().stop_requested()


def trained(text: Path, disk: Path, context: Emptied, **settings: Any) -> Training:
    settings = {"n_embd": 32, "max_steps": 12, "checkpoint_interval": 3, **settings}
    context.training = Training(tiny(text, **settings), context, disk)
    return context.training


def steps(disk: Path) -> list[int]:
    return sorted(checkpoint.published(disk))


def test_training_goes_on_and_saves_when_there_is_room(
    text: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = Emptied(disk, full_at=4, room_at=8)
    training = trained(text, disk, context)
    assert training.run() == 0
    assert training.step == 12
    assert steps(disk) == [3, 9, 12]
    assert [path.name for path in disk.iterdir() if path.name.startswith(".")] == []
    said = capsys.readouterr().out
    assert said.count("cannot write the checkpoint of step 6") == 1
    assert "No space left on device" in said
    assert "training goes on" in said
    assert [point for point in context.points if point[0] == "checkpoint/no_room"] != []
    for step in (3, 9, 12):
        assert checkpoint.read(disk / f"step-{step:08d}").state.step == step


def test_it_does_not_wait_for_the_next_interval(
    text: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.train._AGAIN_S", 0.0)
    context = Emptied(disk, full_at=4, room_at=7)
    training = trained(text, disk, context, checkpoint_interval=6, max_steps=18)
    assert training.run() == 0
    first = min(step for step in steps(disk) if step > 6)
    assert 7 <= first < 12


def test_a_last_checkpoint_without_room_is_no_success(text: Path, disk: Path) -> None:
    training = trained(text, disk, Emptied(disk, full_at=8, room_at=None))
    with pytest.raises(NoRoom, match=r"checkpoint of step 12 .*No space left on device"):
        training.run()
    assert steps(disk) == [3, 6]
    assert checkpoint.read(disk / "step-00000006").state.step == 6
    assert [path.name for path in disk.iterdir() if path.name.startswith(".")] == []


def test_a_stop_without_room_does_not_say_saved(text: Path, disk: Path) -> None:
    context = Emptied(disk, full_at=8, room_at=None)
    training = trained(text, disk, context)
    context.stop = lambda: training.step >= 10
    with pytest.raises(NoRoom, match="checkpoint of step 10"):
        training.run()


def test_the_last_one_is_tried_again(text: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Emptied(disk, full_at=8, room_at=None)
    training = trained(text, disk, context)
    context.stop = lambda: training.step >= 10
    monkeypatch.setattr("trainer.train.time.sleep", lambda pause: (disk / "ballast").unlink(missing_ok=True))
    assert training.run() == EXIT_SAVED
    assert steps(disk) == [3, 6, 10]


def test_other_errors_still_end_training(text: Path, tmp_path: Path) -> None:
    training, _ = start(tiny(text, max_steps=2), tmp_path)
    (tmp_path / "step-00000002").write_text("a file in the way")
    with pytest.raises(TrainerError, match="cannot write the checkpoint of step 2") as caught:
        training.run()
    assert not isinstance(caught.value, NoRoom)
    assert not list(tmp_path.glob(".writing-*"))


def test_measurements_wait_for_room(disk: Path) -> None:
    """None is lost, doubled or torn, and no checkpoint is published before those measured before it."""
    context = EnvContext({"ORCH_RUN_ID": "r", "ORCH_METRICS_FILE": str(disk / "metrics.jsonl")})
    made = disk / "made"
    made.mkdir()
    context.log(0, {"a": 0.5})
    ballast = fill(disk)
    for step in range(1, 400):
        context.log(step, {"a": 0.5, "b": float(step)})
    with pytest.raises(OSError, match="No space left on device"):
        context.publish(made, 400)
    assert made.is_dir()
    ballast.unlink()
    final = context.publish(made, 400)
    context.log(400, {"a": 0.5})
    assert final.is_dir()
    lines = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(401))


def test_measurements_that_no_memory_holds(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.contract._UNWRITTEN_MOST", 10_000)
    context = EnvContext({"ORCH_RUN_ID": "r", "ORCH_METRICS_FILE": str(disk / "metrics.jsonl")})
    fill(disk)
    with pytest.raises(OSError, match="No space left on device"):
        all(context.log(step, {"a": 0.5}) is None for step in range(10_000))


@pytest.mark.slow
def test_a_run_on_a_node_without_room(tmp_path: Path) -> None:
    """The real agent and the real trainer: the run keeps its last commit, and is whole in the end."""
    bench = Bench(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times, " * 200)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 16, "batch_size": 4, "max_steps": 3000}
    intervals = {"eval_interval": 500, "eval_batches": 2, "log_interval": 1, "sample_tokens": 20}
    spec = {
        "trainer": {"dataset": str(text), "warmup_steps": 5, **sizes, **intervals},
        "checkpoint": {"every_steps": 100},
    }
    token = (bench.home / "token").read_text()
    with mounted(bench.home, 8000):
        (bench.home / "token").write_text(token)
        try:
            bench.start(spec)
            wait_until(lambda: bench.steps(), 60, bench.evidence)
            ballast = fill(bench.home, leave=400_000)  # for what it says, but not for a checkpoint
            wait_until(lambda: b"cannot write the checkpoint" in bench.controller.log, 120, bench.evidence)
            wait_until(lambda: any("is full" in e for e in bench.controller.events), 20, bench.evidence)
            kept = bench.records()
            assert [problem for record in kept for problem in verify(bench.store, record)] == []
            assert bench.processes()
            ballast.unlink()
            outcome = bench.wait_outcome(timeout=200)
            assert outcome.reason is Reason.COMPLETED, bench.evidence()
            assert bench.steps()[-1] == 3000
            assert any("has room again" in event for event in bench.controller.events)
            losses = [p.step for p in bench.controller.points if p.key == "train/loss"]
            assert losses == list(range(3001))
        finally:
            bench.close()


@pytest.mark.slow
def test_a_run_whose_node_stays_full_fails_and_says_why(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    token = (bench.home / "token").read_text()
    code = "import sys, time\ntime.sleep(1)\nopen('more', 'wb').write(bytes(1 << 20))\n"
    with mounted(bench.home, 1500):
        (bench.home / "token").write_text(token)
        try:
            bench.start(bench.script(code))
            wait_until(bench.program_pid, 20, bench.evidence)
            fill(bench.home)
            outcome = bench.wait_outcome(timeout=30)
            assert outcome.reason is Reason.PROGRAM_FAILED
            assert outcome.message.startswith("the disk of this machine is full; exit code 1")
            assert any("is full" in event for event in bench.controller.events)
        finally:
            bench.close()
