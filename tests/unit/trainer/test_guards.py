"""Divergence, rewinds and early ends: what is never saved, what is left out, what a resume sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from orchestrator.contract import EXIT_SAVED
from tests.unit.trainer.support import assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint
from trainer.config import StopWhen
from trainer.errors import TrainerError
from trainer.guards import Skip, batch_index, enough, rewound
from trainer.model import GPT
from trainer.points import Points
from trainer.rng import Stream
from trainer.train import Training


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the processor takes longer than these runs."""
    monkeypatch.setattr("trainer.progress.gemm_peak", lambda hardware, again=False: 1e12)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Training, Iterable[int]], None]:
    """Makes batches of a training bad: by their places in the sequence of the data."""

    def spoiling(training: Training, batches: Iterable[int]) -> None:
        size = training.config.batch_size
        bad = [training.batches._starts("train", Stream.TRAIN, place, size) for place in batches]
        kind = type(training.model)
        forward = kind.forward
        cut = training.batches._cut

        def marking(split: Any, starts: Tensor) -> tuple[Tensor, Tensor]:
            bad_one = split == "train" and any(torch.equal(starts, b) for b in bad)
            setattr(training.model, "spoiled", bad_one)  # noqa: B010
            return cut(split, starts)

        def spoiled(self: GPT, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            logits, loss = forward(self, tokens, targets)
            if loss is not None and self.training and getattr(self, "spoiled", False):
                loss = loss * math.nan
            return logits, loss

        monkeypatch.setattr(training.batches, "_cut", marking)
        monkeypatch.setattr(kind, "forward", spoiled)

    return spoiling


Spoil = Callable[[Training, Iterable[int]], None]
REWIND: dict[str, Any] = {"nonfinite": "rewind", "checkpoint_interval": 4, "max_steps": 12}


def seen(training: Training) -> list[tuple[int, int]]:
    """Notes (step, place in the sequence of the data) of each update from now on."""
    notes: list[tuple[int, int]] = []
    update = training.engine.update

    def noting(step: int) -> tuple[Tensor, Tensor]:
        notes.append((step, batch_index(step, training.batches.skipped)))
        return update(step)

    training.engine.update = noting  # type: ignore[method-assign]
    return notes


@pytest.mark.parametrize("log_interval", [1, 5, 1000])
def test_a_bad_step_is_never_saved(text: Path, tmp_path: Path, spoil: Spoil, log_interval: int) -> None:
    """Whether it is noticed at once, or when a checkpoint or an evaluation is due."""
    training, context = start(
        tiny(text, log_interval=log_interval, checkpoint_interval=2, eval_interval=100), tmp_path
    )
    spoil(training, [6])
    with pytest.raises(TrainerError, match=r"not finite at step 6|is nan at step 6") as caught:
        training.run()
    assert "lower learning_rate" in str(caught.value)
    assert caught.value.exit_code == 1
    assert context.published == [2, 4, 6]


@pytest.mark.parametrize("log_interval", [1, 5, 1000])
def test_a_rewind_leaves_out_the_batches_up_to_the_bad_one(
    text: Path, tmp_path: Path, spoil: Spoil, log_interval: int
) -> None:
    training, context = start(tiny(text, log_interval=log_interval, **REWIND), tmp_path)
    spoil(training, [6])
    notes = seen(training)
    assert training.run() == 0
    assert training.batches.skipped == (Skip(step=4, batches=3),)
    last = dict(notes)
    assert last == {**{k: k for k in range(4)}, **{k: k + 3 for k in range(4, 12)}}
    assert context.values("guard/rewinds") == {("guard/rewinds", 6): 1.0}
    assert [step for step in context.published if step > 4] == [8, 12]
    state = checkpoint.read_state(tmp_path / "step-00000012")
    assert state.skipped == training.batches.skipped
    assert checkpoint.read_state(tmp_path / "step-00000004").skipped == ()
    assert all(value.isfinite().all() for value in weights(training).values())


def test_a_rewind_with_points_held_back_logs_each_point(text: Path, tmp_path: Path, spoil: Spoil) -> None:
    """As on a GPU, where values are asked for a few times per second. The bad update has no point."""
    logged = []
    for points in (Points(0.0), Points(60.0)):
        folder = tmp_path / str(len(logged))
        training, context = start(tiny(text, log_interval=1, **REWIND), folder)
        training.points = points
        spoil(training, [6])
        assert training.run() == 0
        assert training.batches.skipped == (Skip(step=4, batches=3),)
        logged.append(context.values("train/loss"))
    assert {step for _, step in logged[0]} == set(range(13))
    assert logged[0] == logged[1]


def test_divergence_with_points_held_back_is_told_after_the_points_before(
    text: Path, tmp_path: Path, spoil: Spoil
) -> None:
    training, context = start(tiny(text, log_interval=1, eval_interval=100, max_steps=12), tmp_path)
    training.points = Points(60.0)
    spoil(training, [6])
    with pytest.raises(TrainerError, match=r"the training loss is nan at step 6"):
        training.run()
    assert {step for _, step in context.values("train/loss")} == set(range(6))


@pytest.mark.parametrize("settings", [{}, {"recipe": "fast"}, {"micro_batches": 2}])
def test_a_rewound_run_is_the_run_on_the_sequence_without_those_batches(
    text: Path, tmp_path: Path, spoil: Spoil, settings: dict[str, Any]
) -> None:
    config = tiny(text, **REWIND, **settings)
    training, _ = start(config, tmp_path / "rewound")
    spoil(training, [6])
    training.run()
    assert training.batches.skipped
    straight, _ = start(config, tmp_path / "straight")
    straight.batches.skipped = (Skip(step=4, batches=3),)
    straight.run()
    assert_same_bits(weights(training), weights(straight))


@pytest.mark.parametrize("stop_at", range(4, 12))
def test_a_resume_after_a_rewind_sees_the_same_sequence(
    text: Path, tmp_path: Path, spoil: Spoil, stop_at: int
) -> None:
    """Also one from the checkpoint before the rewind, which diverges and rewinds again."""
    whole, _ = start(tiny(text, **REWIND), tmp_path / "whole")
    spoil(whole, [6])
    whole.run()
    first, context = start(tiny(text, **REWIND), tmp_path / "parts")
    spoil(first, [6])
    context.stop = lambda: bool(first.batches.skipped) and first.step >= stop_at
    assert first.run() == EXIT_SAVED
    second, _ = start(tiny(text, **REWIND), tmp_path / "parts", checkpoint.find(tmp_path / "parts"))
    assert second.step == stop_at
    spoil(second, [6])
    assert second.run() == 0
    assert second.batches.skipped == whole.batches.skipped
    assert_same_bits(weights(second), weights(whole))


def test_a_rewind_without_a_checkpoint_goes_back_to_the_start(
    text: Path, tmp_path: Path, spoil: Spoil
) -> None:
    training, _ = start(tiny(text, nonfinite="rewind"), tmp_path)
    spoil(training, [2])
    notes = seen(training)
    assert training.run() == 0
    assert notes[:5] == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)]


def test_a_second_bad_batch_after_the_same_checkpoint(text: Path, tmp_path: Path, spoil: Spoil) -> None:
    training, context = start(tiny(text, **REWIND), tmp_path)
    spoil(training, [6, 8])
    notes = seen(training)
    assert training.run() == 0
    assert notes[4:12] == [(4, 4), (5, 5), (6, 6), (4, 7), (5, 8), (4, 9), (5, 10), (6, 11)]
    assert context.points["guard/rewinds", 5] == 2.0


def test_too_many_rewinds_stop(text: Path, tmp_path: Path, spoil: Spoil) -> None:
    training, context = start(tiny(text, max_rewinds=2, **REWIND), tmp_path)
    spoil(training, range(6, 40))
    with pytest.raises(TrainerError, match=r"after 2 rewinds \(max_rewinds 2\)"):
        training.run()
    assert context.published == [4]


def test_weights_that_give_no_finite_val_loss_are_left_behind(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, context = start(tiny(text, eval_interval=6, **REWIND), tmp_path)
    estimate = training.evaluator.estimate

    def once(step: int) -> checkpoint.Evaluation | None:
        found = estimate(step)
        if step == 6 and not training.batches.skipped and found is not None:
            return found.model_copy(update={"val": math.inf})
        return found

    monkeypatch.setattr(training.evaluator, "estimate", once)
    assert training.run() == 0
    assert training.batches.skipped == (Skip(step=4, batches=2),)
    assert all(math.isfinite(value) for value in context.values("val/loss").values())


def test_a_run_whose_very_first_loss_is_bad_does_not_rewind_for_ever(text: Path, tmp_path: Path) -> None:
    training, _ = start(tiny(text, nonfinite="rewind"), tmp_path)
    with torch.no_grad():
        training.model.wte.weight[0, 0] = math.nan
    with pytest.raises(TrainerError, match="validation loss is nan at step 0"):
        training.run()


def test_rewinds_are_for_divergence_only(text: Path, tmp_path: Path) -> None:
    """A run that never diverges is the same under both policies."""
    one, _ = start(tiny(text, nonfinite="rewind", checkpoint_interval=3), tmp_path / "one")
    two, _ = start(tiny(text), tmp_path / "two")
    assert one.run() == two.run() == 0
    assert_same_bits(weights(one), weights(two))


def test_places_in_the_sequence() -> None:
    assert [batch_index(step, ()) for step in (0, 7)] == [0, 7]
    skipped = rewound((), to=10, bad=14)
    assert skipped == (Skip(step=10, batches=5),)
    assert [batch_index(step, skipped) for step in (9, 10, 11)] == [9, 15, 16]
    again = rewound(skipped, to=10, bad=11)
    assert batch_index(10, again) == batch_index(11, skipped) + 1
    later = rewound(again, to=20, bad=20)
    assert batch_index(20, later) == batch_index(20, again) + 1
    assert batch_index(19, later) == batch_index(19, again)


@pytest.mark.parametrize(
    ("rule", "val_loss", "since_best", "ends"),
    [
        (None, 1.0, 100, False),
        (StopWhen(patience=3), 1.0, 2, False),
        (StopWhen(patience=3), 1.0, 3, True),
        (StopWhen(patience=3), None, 3, False),
        (StopWhen(val_loss=1.5), 1.51, 100, False),
        (StopWhen(val_loss=1.5), 1.5, 0, True),
        (StopWhen(val_loss=0.5, patience=2), 1.0, 2, True),
    ],
)
def test_when_it_is_enough(
    rule: StopWhen | None, val_loss: float | None, since_best: int, ends: bool
) -> None:
    assert (enough(rule, val_loss, since_best) is not None) == ends


def test_a_rule_must_say_something() -> None:
    with pytest.raises(ValidationError, match="needs patience or val_loss"):
        StopWhen()


def given_val_losses(training: Training, losses: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    def given(step: int) -> checkpoint.Evaluation:
        return checkpoint.Evaluation(step=step, train=1.0, val=losses[step])

    monkeypatch.setattr(training.evaluator, "estimate", given)


LOSSES = {0: 4.0, 2: 3.0, 4: 2.0, 6: 2.5, 8: 2.2, 10: 1.9, 12: 1.8}
EARLY: dict[str, Any] = {"eval_interval": 2, "stop_when": {"patience": 2}, "max_steps": 12}


def test_a_run_ends_early_when_val_gets_no_better(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training, context = start(tiny(text, **EARLY), tmp_path)
    given_val_losses(training, LOSSES, monkeypatch)
    assert training.run() == 0
    assert training.step == 8
    assert context.published == [8]
    assert context.values("stopped_early") == {("stopped_early", 8): 1.0}
    assert "stopped early, as stop_when says: no lower val loss in 2 evaluations" in capsys.readouterr().out


def test_an_interruption_does_not_change_when_it_is_enough(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, context = start(tiny(text, **EARLY), tmp_path)
    given_val_losses(first, LOSSES, monkeypatch)
    context.stop = lambda: first.step >= 7
    assert first.run() == EXIT_SAVED
    second, _ = start(tiny(text, **EARLY), tmp_path, tmp_path / "step-00000007")
    given_val_losses(second, LOSSES, monkeypatch)
    assert second.run() == 0
    assert second.step == 8
    again, context = start(tiny(text, **EARLY), tmp_path, tmp_path / "step-00000008")
    given_val_losses(again, LOSSES, monkeypatch)
    assert again.run() == 0
    assert (again.step, again.since_best, context.published) == (8, 2, [8])
    longer, context = start(tiny(text, **{**EARLY, "stop_when": None}), tmp_path, tmp_path / "step-00000008")
    given_val_losses(longer, LOSSES, monkeypatch)
    assert longer.run() == 0
    assert longer.step == 12
    assert not context.values("stopped_early")


def test_a_new_best_val_loss_is_saved(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, context = start(tiny(text, eval_interval=2, checkpoint_best=True), tmp_path)
    given_val_losses(training, LOSSES, monkeypatch)
    assert training.run() == 0
    assert context.published == [2, 4, 10, 12]
