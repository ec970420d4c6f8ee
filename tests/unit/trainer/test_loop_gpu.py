"""On a GPU: checkpoints beside the training and beside recordings, rewinds of replays, too little memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.support import SteeredContext, assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint
from trainer.errors import TrainerError, UserError
from trainer.guards import Skip
from trainer.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.progress.gemm_peak", lambda hardware, again=False: 1e12)


def test_a_checkpoint_holds_the_step_at_which_it_was_taken(text: Path, tmp_path: Path) -> None:
    training, _ = start(tiny(text, device="cuda", log_interval=100), tmp_path)
    for _ in range(6):
        training.update()
    then, probe = weights(training), training.evaluator.probe()
    training.save()
    for _ in range(50):
        training.update()
    training.writer.wait()
    saved = checkpoint.read(tmp_path / "step-00000006")
    assert_same_bits(
        {**saved.model, **saved.optimizer}, {name: tensor.cpu() for name, tensor in then.items()}
    )
    assert saved.state.probe_loss == probe


@pytest.mark.parametrize("settings", [{}, {"cuda_graph": False}, {"dtype": "bfloat16"}])
def test_checkpoints_at_each_step_change_nothing(
    text: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The writer runs while the update is recorded, too."""
    often, _ = start(tiny(text, device="cuda", checkpoint_interval=1, **settings), tmp_path / "often")
    never, _ = start(tiny(text, device="cuda", **settings), tmp_path / "never")
    assert often.run() == never.run() == 0
    assert_same_bits(weights(often), weights(never))
    assert sorted(checkpoint.published(tmp_path / "often")) == list(range(1, 13))


def test_a_rewind_of_replayed_updates(text: Path, tmp_path: Path) -> None:
    config = tiny(text, device="cuda", nonfinite="rewind", checkpoint_interval=4, log_interval=5)
    training, context = start(config, tmp_path / "rewound")
    update = training.engine.update

    def spoiling(step: int) -> Any:
        if step == 6 and not training.batches.skipped:
            with torch.no_grad():
                training.model.wte.weight[0, 0] = math.nan
        return update(step)

    training.engine.update = spoiling  # type: ignore[method-assign]
    assert training.run() == 0
    assert training.batches.skipped == (Skip(step=4, batches=3),)
    assert context.values("guard/rewinds") == {("guard/rewinds", 6): 1.0}
    straight, _ = start(config, tmp_path / "straight")
    straight.batches.skipped = (Skip(step=4, batches=3),)
    assert straight.run() == 0
    assert_same_bits(weights(training), weights(straight))


def test_divergence_of_replayed_updates_is_told(text: Path, tmp_path: Path) -> None:
    config = tiny(text, device="cuda", max_steps=50, learning_rate=1e30, grad_clip=0.0, log_interval=40)
    training, _ = start(config, tmp_path)
    with pytest.raises(TrainerError, match=r"at step \d+.*lower learning_rate"):
        training.run()
    assert not checkpoint.published(tmp_path)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_too_little_memory(text: Path, tmp_path: Path, cuda_graph: bool) -> None:
    """What it advises does fit."""
    settings = {"batch_size": 4096, "block_size": 128, "n_embd": 64, "device": "cuda", "eval_batches": 1}
    settings |= {"cuda_graph": cuda_graph, "max_steps": 6, "eval_interval": 100}
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    try:
        with pytest.raises(UserError, match=r"out of GPU memory: .*it would have fitted with") as caught:
            train(tiny(text, **settings), SteeredContext(tmp_path / "one"), tmp_path / "one")
        parts = int(str(caught.value).partition("with micro_batches: ")[2].partition(",")[0])
        torch.cuda.empty_cache()
        fitting = tiny(text, **settings, micro_batches=parts)
        assert train(fitting, SteeredContext(tmp_path / "two"), tmp_path / "two") == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
