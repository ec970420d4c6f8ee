"""Checkpoints in the background: of exactly one step, one at a time, their errors told, their end awaited."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.contract import BESIDE_TRAINING, EXIT_SAVED
from tests.unit.trainer.support import SteeredContext, assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.model import GPT
from trainer.snapshot import Snapshot, Taken, Writer
from trainer.train import Training


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the processor takes longer than these runs."""
    monkeypatch.setattr("trainer.progress.gemm_peak", lambda hardware, again=False: 1e12)


class SlowContext(SteeredContext):
    """Publishes when it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_publish = threading.Event()
        self.waiting = threading.Event()

    def publish(self, directory: Path, step: int) -> Path:
        self.waiting.set()
        assert self.may_publish.wait(30)
        return super().publish(directory, step)


def slow(text: Path, folder: Path, **settings: Any) -> tuple[Training, SlowContext]:
    context = SlowContext(folder)
    return Training(tiny(text, **settings), context, folder), context


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_training_goes_on_while_a_checkpoint_of_an_earlier_step_is_written(
    text: Path, tmp_path: Path, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, _ = start(tiny(text, dropout=dropout), tmp_path)
    for _ in range(3):
        training.update()
    then, probe = weights(training), training.evaluator.probe()
    may_collect = threading.Event()
    collect = training.snapshot.collect

    def late() -> Taken:
        assert may_collect.wait(30)
        return collect()

    monkeypatch.setattr(training.snapshot, "collect", late)
    training.save()
    for _ in range(4):
        training.update()
    assert not checkpoint.published(tmp_path)
    may_collect.set()
    training.writer.wait()
    saved = checkpoint.read(tmp_path / "step-00000003")
    assert_same_bits({**saved.model, **saved.optimizer}, then)
    assert (saved.state.step, saved.state.probe_loss) == (3, probe)
    assert training.step == 7


def test_a_second_checkpoint_waits_for_the_first(text: Path, tmp_path: Path) -> None:
    training, context = slow(text, tmp_path)
    expected = {}
    training.update()
    expected[1] = weights(training)
    training.save()
    training.update()
    expected[2] = weights(training)
    second = threading.Thread(target=training.save)
    second.start()
    assert context.waiting.wait(30)
    second.join(0.2)
    assert second.is_alive()
    context.may_publish.set()
    second.join(30)
    training.writer.wait()
    assert context.published == [1, 2]
    for step, tensors in expected.items():
        saved = checkpoint.read(tmp_path / f"step-{step:08d}")
        assert_same_bits({**saved.model, **saved.optimizer}, tensors)


def test_buffers_are_allocated_once(text: Path, tmp_path: Path) -> None:
    training, _ = start(tiny(text), tmp_path)
    places = set()
    for _ in range(3):
        training.update()
        training.snapshot.take(training.engine.first_bad)
        taken = training.snapshot.collect()
        places.add(tuple(tensor.data_ptr() for tensor in {**taken.weights, **taken.moments}.values()))
    assert len(places) == 1


def test_the_error_of_a_writer_ends_the_loop(text: Path, tmp_path: Path) -> None:
    """Not only at the next checkpoint, and not in another thread."""
    (tmp_path / "file").write_text("in the way")
    config = tiny(text, max_steps=100_000, eval_interval=100_000, log_interval=100, checkpoint_minutes=1e-9)
    training, _ = start(config, tmp_path / "file" / "folder")
    training.saved_at += 1e9  # no second checkpoint comes
    training.update()
    training.save()
    training.saved_at += 1e9
    with pytest.raises(TrainerError, match="cannot write the checkpoint of step 1"):
        training.run()
    assert 1 <= training.step < 100_000


def test_a_stop_waits_for_the_checkpoint(text: Path, tmp_path: Path) -> None:
    training, context = slow(text, tmp_path)
    context.stop = lambda: training.step >= 2
    codes: list[int] = []
    run = threading.Thread(target=lambda: codes.append(training.run()))
    run.start()
    assert context.waiting.wait(30)
    run.join(0.2)
    assert run.is_alive()
    context.may_publish.set()
    run.join(30)
    assert codes == [EXIT_SAVED]
    assert context.published == [2]


def test_an_error_waits_for_the_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, context = slow(text, tmp_path, checkpoint_interval=2)

    def fail() -> None:
        if training.step == 3:
            assert context.waiting.wait(30)
            threading.Timer(0.2, context.may_publish.set).start()
            raise TrainerError("something else")
        Training.update(training)

    monkeypatch.setattr(training, "update", fail)
    with pytest.raises(TrainerError, match="something else"):
        training.run()
    assert context.published == [2]


def test_two_errors_are_both_told(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training, context = slow(text, tmp_path)

    def fail() -> None:
        context.waiting.wait(30)
        raise TrainerError("something else")

    def refuse(directory: Path, step: int) -> Path:
        context.waiting.set()
        raise OSError(28, "No space left on device")

    training.update()
    monkeypatch.setattr(context, "publish", refuse)
    training.save()
    monkeypatch.setattr(training.writer, "poll", lambda: None)
    monkeypatch.setattr(training, "update", fail)
    with pytest.raises(TrainerError, match="something else"):
        training.run()
    assert "the checkpoint of step 1 was not written either" in capsys.readouterr().out


def test_a_writer_tells_an_error_once() -> None:
    writer = Writer()

    def fail() -> None:
        raise OSError("full")

    writer.start(fail)
    with pytest.raises(OSError, match="full"):
        writer.wait()
    writer.wait()
    writer.poll()
    writer.start(fail)
    with pytest.raises(OSError, match="full"):
        writer.start(fail)
    assert writer.close() is None


def test_the_threads_of_a_snapshot_change_no_bits(text: Path, tmp_path: Path) -> None:
    """A run that checkpoints at each step is the run that never does, with two threads as well."""
    often, _ = start(tiny(text, checkpoint_interval=1), tmp_path / "often", threads=2)
    never, _ = start(tiny(text), tmp_path / "never", threads=2)
    try:
        assert often.run() == never.run() == 0
    finally:
        torch.set_num_threads(1)
    assert_same_bits(weights(often), weights(never))


@pytest.mark.parametrize("layout", ["own storages", "flat", "flat, far apart"])
def test_any_layout_in_memory_is_copied(text: Path, layout: str) -> None:
    """The few large copies of a flat buffer, and one for each tensor where they do not lie together."""
    model = GPT(tiny(text, dropout=0.0), 28, seed=1)
    gap = 1000 if layout == "flat, far apart" else 3
    if layout != "own storages":
        flat = torch.zeros(sum(p.numel() + gap for p in model.parameters()))
        place = 0
        for p in model.parameters():
            view = flat[place : place + p.numel()].view(p.shape)
            place += p.numel() + gap
            view.copy_(p.data)
            p.data = view
    moments = {f"m.{name}": torch.full_like(p, 2.0) for name, p in model.named_parameters()}
    x, y = torch.randint(28, (2, 8)), torch.randint(28, (2, 8))
    snapshot = Snapshot(model, moments, (x, y))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = model(x, y)[1].item()
    snapshot.take(torch.tensor(7))
    with torch.no_grad():
        for tensor in [*model.parameters(), *moments.values()]:
            tensor.fill_(9.0)
    taken = snapshot.collect()
    assert_same_bits(taken.weights, before)
    assert all((moment == 2.0).all() for moment in taken.moments.values())
    assert taken.moments.keys() == moments.keys()
    assert (taken.probe_loss, taken.first_bad) == (loss, 7)
    snapshot.put_back()
    assert_same_bits({name: p.detach() for name, p in model.named_parameters()}, before)
    assert all((moment == 2.0).all() for moment in moments.values())


def test_what_is_written_leaves_the_processor_to_training() -> None:
    found: list[int] = []
    writer = Writer()

    def look() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    writer.start(look)
    writer.wait()
    assert writer.close() is None
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found == [max(here, BESIDE_TRAINING)]
