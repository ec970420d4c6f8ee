"""The loop in one process: what is measured when, and that stopping anywhere changes nothing."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.contract import EXIT_SAVED, EXIT_USER_ERROR, step_name
from tests.unit.trainer.support import SteeredContext, assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint
from trainer.errors import DamagedCheckpoint, TrainerError, UserError
from trainer.memory import fitting_parts
from trainer.model import GPT
from trainer.train import Training, train


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the processor takes longer than these runs."""
    monkeypatch.setattr("trainer.progress.gemm_peak", lambda hardware, again=False: 1e12)


def finished(text: Path, folder: Path, **settings: Any) -> tuple[Training, dict[tuple[str, int], float]]:
    training, context = start(tiny(text, **settings), folder)
    assert training.run() == 0
    return training, context.points


def test_what_is_logged_when(text: Path, tmp_path: Path) -> None:
    training, points = finished(
        text, tmp_path, max_steps=10, eval_interval=4, log_interval=3, final_eval="full"
    )
    steps: dict[str, list[int]] = {}
    for key, step in points:
        steps.setdefault(key, []).append(step)
    assert (
        steps.pop("val/loss") == steps.pop("train/loss_eval") == steps.pop("best/val_loss") == [0, 4, 8, 10]
    )
    assert steps.pop("train/loss") == [0, 3, 6, 9, 10]
    assert steps.pop("lr") == steps.pop("grad_norm") == [0, 3, 6, 9]
    assert steps.pop("val/loss_full") == [10]
    for key in ("perf/step_ms", "perf/tokens_per_s", "perf/mfu", "perf/mfu_a100"):
        assert steps.pop(key) == [3, 6, 9]  # not at 0: the first step warms up
    assert not steps
    assert training.step == 10


def test_speeds_belong_together(text: Path, tmp_path: Path) -> None:
    training, points = finished(text, tmp_path)
    step_s = points["perf/step_ms", 8] / 1000
    assert points["perf/tokens_per_s", 8] == pytest.approx(4 * 8 / step_s)
    flops = training.meter.peak() * points["perf/mfu", 8]
    assert points["perf/mfu_a100", 8] == pytest.approx(flops / 312e12)
    assert 0 < points["perf/mfu", 8] < 1


def test_val_loss_and_train_loss_of_a_step_are_those_of_its_weights(text: Path, tmp_path: Path) -> None:
    training, context = start(tiny(text, dropout=0.0), tmp_path)
    for _ in range(4):
        training.update()
    expected = training.model(*training.batches.train(4))[1].item()
    training.run()
    assert context.points["train/loss", 4] == pytest.approx(expected, rel=1e-6)


def test_training_lowers_the_loss(text: Path, tmp_path: Path) -> None:
    _, points = finished(text, tmp_path, max_steps=150, eval_interval=150, learning_rate=1e-2, dropout=0.0)
    assert points["val/loss", 150] < points["val/loss", 0] - 0.4


@pytest.mark.parametrize("stop_at", range(13))
def test_stopping_after_any_step_changes_nothing(text: Path, tmp_path: Path, stop_at: int) -> None:
    whole, whole_points = finished(text, tmp_path / "whole")
    first, context = start(tiny(text), tmp_path / "parts")
    context.stop = lambda: first.step >= stop_at
    assert first.run() == EXIT_SAVED
    second, second_context = start(tiny(text), tmp_path / "parts", tmp_path / f"parts/step-{stop_at:08d}")
    assert second.run() == 0
    assert_same_bits(weights(second), weights(whole))
    losses = ("train/loss", "val/loss", "train/loss_eval", "best/val_loss", "grad_norm", "lr")
    together = {**context.values(*losses), **second_context.values(*losses)}
    assert together == {point: value for point, value in whole_points.items() if point[0] in losses}


ENGINES: dict[str, dict[str, Any]] = {"eager": {}}
"""Settings that choose how updates are computed; each must resume exactly."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_interrupted_run_has_the_bits_of_an_uninterrupted_one(
    text: Path, tmp_path: Path, engine: str, threads: int, dropout: float, micro_batches: int
) -> None:
    settings = {"dropout": dropout, "micro_batches": micro_batches, "checkpoint_interval": 3}
    config = tiny(text, **settings, n_embd=64, block_size=32, **ENGINES[engine])
    try:
        whole, whole_context = start(config, tmp_path / "whole", threads=threads)
        assert torch.get_num_threads() == threads
        assert whole.run() == 0
        first, context = start(config, tmp_path / "parts", threads=threads)
        context.stop = lambda: first.step >= 5
        assert first.run() == EXIT_SAVED
        second, second_context = start(config, tmp_path / "parts", context_newest(tmp_path), threads)
        assert second.step == 5
        assert second.run() == 0
    finally:
        torch.set_num_threads(1)
    assert_same_bits(weights(second), weights(whole))
    assert second_context.points["probe/delta", 5] == 0.0
    keys = ("train/loss", "val/loss", "grad_norm")
    assert {**context.values(*keys), **second_context.values(*keys)} == whole_context.values(*keys)


@pytest.mark.parametrize("rung", [4, 7])
def test_a_rung_is_measured_and_saved_and_changes_nothing(text: Path, tmp_path: Path, rung: int) -> None:
    whole, points = start(tiny(text), tmp_path / "whole")
    whole.run()
    first, context = start(tiny(text), tmp_path / "first")
    context.pause_step = rung
    assert first.run() == EXIT_SAVED
    assert context.published == [rung]
    assert ("val/loss", rung) in context.points
    assert max(step for _, step in context.points) == rung
    again, at_once = start(tiny(text), tmp_path / "first", tmp_path / "first" / step_name(rung))
    at_once.pause_step = rung
    assert again.run() == EXIT_SAVED
    second, rest = start(tiny(text), tmp_path / "second", tmp_path / "first" / step_name(rung))
    assert second.run() == 0
    assert_same_bits(weights(second), weights(whole))
    assert rest.points["val/loss", 12] == points.points["val/loss", 12]


@pytest.mark.parametrize("calls", range(1, 9))
def test_stopping_inside_an_evaluation_changes_nothing(text: Path, tmp_path: Path, calls: int) -> None:
    whole, whole_points = finished(text, tmp_path / "whole", max_steps=6)
    first, context = start(tiny(text, max_steps=6), tmp_path / "parts")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += first.step >= 4
        return asked >= calls

    context.stop = stop
    assert first.run() == EXIT_SAVED
    second, second_context = start(tiny(text, max_steps=6), tmp_path / "parts", context_newest(tmp_path))
    assert second.run() == 0
    assert_same_bits(weights(second), weights(whole))
    val = {**context.values("val/loss"), **second_context.values("val/loss")}
    assert val == {point: value for point, value in whole_points.items() if point[0] == "val/loss"}


def context_newest(tmp_path: Path) -> Path:
    return checkpoint.find(tmp_path / "parts")


def test_going_back_to_an_earlier_checkpoint_changes_nothing(text: Path, tmp_path: Path) -> None:
    whole, _ = finished(text, tmp_path, checkpoint_interval=5)
    assert sorted(checkpoint.published(tmp_path)) == [5, 10, 12]
    again, context = start(tiny(text), tmp_path / "again", tmp_path / "step-00000005")
    assert again.run() == 0
    assert_same_bits(weights(again), weights(whole))
    assert context.points["probe/delta", 5] == 0.0


def test_a_finished_run_can_be_extended(text: Path, tmp_path: Path) -> None:
    """Steps 1 to 12 of a schedule that ends at 20 anyway."""
    whole, _ = finished(text, tmp_path / "whole", max_steps=20, lr_decay_steps=20)
    finished(text, tmp_path / "short", max_steps=12, lr_decay_steps=20)
    longer = tiny(text, max_steps=20, lr_decay_steps=20)
    extended, _ = start(longer, tmp_path / "long", tmp_path / "short/step-00000012")
    extended.run()
    assert_same_bits(weights(extended), weights(whole))


def test_a_finished_run_evaluates_and_publishes_again(text: Path, tmp_path: Path) -> None:
    _, points = finished(text, tmp_path / "first")
    again, context = start(tiny(text), tmp_path / "again", tmp_path / "first/step-00000012")
    assert again.run() == 0
    assert context.published == [12]
    assert context.values("val/loss") == {("val/loss", 12): points["val/loss", 12]}
    assert context.points["best/val_loss", 12] == points["best/val_loss", 12]


def test_micro_batches_compute_the_same_update(text: Path, tmp_path: Path) -> None:
    whole, _ = finished(text, tmp_path / "one", dropout=0.0)
    parts, _ = finished(text, tmp_path / "four", dropout=0.0, micro_batches=4)
    for (name, left), right in zip(weights(whole).items(), weights(parts).values(), strict=True):
        assert torch.allclose(left, right, atol=1e-5), name


def test_marks_name_the_val_loss_of_exactly_these_weights(text: Path, tmp_path: Path) -> None:
    _, points = finished(text, tmp_path, checkpoint_interval=3)
    marks = {
        step: json.loads((p / "checkpoint.json").read_text())
        for step, p in checkpoint.published(tmp_path).items()
    }
    versions = {"torch": torch.__version__}
    assert marks[12] == {"step": 12, "metrics": {"val/loss": points["val/loss", 12]}, "versions": versions}
    assert marks[3] == {"step": 3, "metrics": {}, "versions": versions}


def test_checkpoints_by_time(text: Path, tmp_path: Path) -> None:
    finished(text, tmp_path, max_steps=4, checkpoint_minutes=1e-9)
    assert sorted(checkpoint.published(tmp_path)) == [1, 2, 3, 4]


def test_a_checkpoint_holds_no_generator_and_no_pickle(text: Path, tmp_path: Path) -> None:
    finished(text, tmp_path)
    directory = tmp_path / "step-00000012"
    names = ["checkpoint.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(path.name for path in directory.iterdir()) == names
    state = checkpoint.read_state(directory)
    assert state.environment.deterministic
    assert len(state.vocabulary) == 28
    assert "lm_head.weight" not in checkpoint.read_tensors(directory / "model.safetensors")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"n_embd": 32}, "the checkpoint has n_embd 16, the configuration 32"),
        ({"n_layer": 3}, "n_layer 2, the configuration 3"),
        ({"block_size": 16}, "block_size 8, the configuration 16"),
        ({"bias": True}, "bias False, the configuration True"),
    ],
)
def test_another_shape_is_refused(text: Path, tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    finished(text, tmp_path, max_steps=1)
    with pytest.raises(UserError, match=problem):
        start(tiny(text, **settings), tmp_path, tmp_path / "step-00000001")


def test_another_text_is_refused(text: Path, tmp_path: Path) -> None:
    finished(text, tmp_path, max_steps=1)
    (tmp_path / "other.txt").write_text(text.read_text() + "z")
    with pytest.raises(UserError, match=r"trained on .*text\.txt.*names .*other\.txt"):
        start(tiny(tmp_path / "other.txt"), tmp_path, tmp_path / "step-00000001")


def test_other_settings_may_change_and_are_told(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(text, tmp_path, max_steps=1)
    start(tiny(text, batch_size=8), tmp_path, tmp_path / "step-00000001")
    assert "changed since the checkpoint: batch_size 4 -> 8" in capsys.readouterr().out


def damage(directory: Path, how: str) -> None:
    """Damage a checkpoint in one way."""
    model, state = directory / "model.safetensors", directory / "state.json"
    if how == "model cut short":
        os.truncate(model, model.stat().st_size - 8)
    elif how == "model missing":
        model.unlink()
    elif how == "optimizer is the model":
        (directory / "optimizer.safetensors").write_bytes(model.read_bytes())
    elif how == "state cut short":
        os.truncate(state, state.stat().st_size // 2)
    elif how == "state missing":
        state.unlink()
    elif how == "state without step":
        content = json.loads(state.read_text())
        del content["step"]
        state.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "how",
    [
        "model cut short",
        "model missing",
        "optimizer is the model",
        "state cut short",
        "state missing",
        "state without step",
    ],
)
def test_a_damaged_checkpoint_is_refused(text: Path, tmp_path: Path, how: str) -> None:
    finished(text, tmp_path, max_steps=1)
    damage(tmp_path / "step-00000001", how)
    with pytest.raises(DamagedCheckpoint):
        start(tiny(text), tmp_path, tmp_path / "step-00000001")


def test_other_weights_do_not_pass_the_probe(text: Path, tmp_path: Path) -> None:
    finished(text, tmp_path, max_steps=1)
    file = tmp_path / "step-00000001" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-20_000:] = struct.pack("<5000f", *[0.1] * 5000)  # whole, well-formed, and wrong
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"relative difference .* above probe_tolerance 0\.001"):
        start(tiny(text), tmp_path, tmp_path / "step-00000001")


def test_divergence_stops_without_a_checkpoint(text: Path, tmp_path: Path) -> None:
    training, _ = start(tiny(text, max_steps=50, learning_rate=1e30, grad_clip=0.0), tmp_path)
    with pytest.raises(TrainerError, match=r"is (nan|inf) at step \d+.*lower learning_rate") as caught:
        training.run()
    assert caught.value.exit_code == 1
    assert not checkpoint.published(tmp_path)


def test_weights_that_are_not_finite_are_never_saved(text: Path, tmp_path: Path) -> None:
    training, _ = start(tiny(text), tmp_path)
    with torch.no_grad():
        training.model.wte.weight[0, 0] = math.nan
    training.save()
    with pytest.raises(TrainerError, match="probe loss is nan"):
        training.writer.wait()
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_writer_go(text: Path, tmp_path: Path) -> None:
    (tmp_path / ".writing-step-00000003").mkdir()
    (tmp_path / ".writing-step-00000003" / "model.safetensors").write_bytes(b"half")
    finished(text, tmp_path, max_steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_disk_that_refuses(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    training, _ = start(tiny(text, max_steps=1), tmp_path / "file" / "folder")
    with pytest.raises(TrainerError, match="cannot write the checkpoint of step 1"):
        training.run()


def test_a_metrics_file_that_cannot_be_written(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SteeredContext(tmp_path)

    def refuse(step: int, metrics: Mapping[str, float]) -> None:
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(context, "log", refuse)
    with pytest.raises(TrainerError, match=r"No space left on device.*metrics\.jsonl"):
        train(tiny(text), context, tmp_path)


def test_out_of_gpu_memory_is_named_with_what_would_have_fitted(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GPT.forward

    def full(self: GPT, tokens: Tensor, targets: Tensor) -> Any:
        if len(tokens) > 2 and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has ...")
        return whole(self, tokens, targets)

    monkeypatch.setattr(GPT, "forward", full)
    told = (
        r"out of GPU memory: CUDA.*9\.00 GiB; it would have fitted with micro_batches: 4, that is 2 of .* 8 "
    )
    with pytest.raises(UserError, match=told) as caught:
        train(tiny(text, batch_size=8), SteeredContext(tmp_path), tmp_path)
    assert caught.value.exit_code == EXIT_USER_ERROR
    train(tiny(text, batch_size=8, micro_batches=4), SteeredContext(tmp_path), tmp_path)


@pytest.mark.parametrize(("fitting", "found"), [(1, 24), (2, 12), (3, 8), (7, 4), (8, 3), (12, 2), (0, None)])
def test_the_largest_micro_batch_that_fits(fitting: int, found: int | None) -> None:
    tried: list[int] = []

    def attempt(parts: int) -> None:
        tried.append(parts)
        if 24 // parts > fitting:
            raise torch.OutOfMemoryError("no")

    assert fitting_parts(24, 1, attempt) == found
    assert len(tried) <= 3


def test_a_sample_is_left_as_an_artifact(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(text, tmp_path, max_steps=2, sample_tokens=30)
    sample = (tmp_path / "sample.txt").read_text()
    assert len(sample) == 1 + 30 + 1
    assert sample.strip() in capsys.readouterr().out


def test_bf16_learns_as_well(text: Path, tmp_path: Path) -> None:
    training, points = finished(text, tmp_path, dtype="bfloat16", max_steps=20, learning_rate=1e-2)
    assert points["val/loss", 20] < points["val/loss", 0]
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
