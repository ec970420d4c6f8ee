"""On a GPU: replayed updates are the eager ones bit by bit, and runs move between processor and GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.support import assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("settings", [{}, {"micro_batches": 2}, {"dtype": "bfloat16"}, {"grad_clip": 0.0}])
def test_a_replayed_update_is_the_eager_one(text: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    eager, _ = start(tiny(text, device="cuda", cuda_graph=False, **settings), tmp_path / "eager")
    replayed, _ = start(tiny(text, device="cuda", **settings), tmp_path / "replayed")
    assert eager.run() == replayed.run() == 0
    assert_same_bits(weights(eager), weights(replayed))


def test_a_run_resumed_amid_replays_is_the_same(text: Path, tmp_path: Path) -> None:
    config = tiny(text, device="cuda", checkpoint_interval=7)
    whole, _ = start(config, tmp_path / "whole")
    whole.run()
    resumed, context = start(config, tmp_path / "resumed", tmp_path / "whole" / "step-00000007")
    resumed.run()
    assert_same_bits(weights(resumed), weights(whole))
    assert context.points["probe/delta", 7] == 0.0


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_handover(text: Path, tmp_path: Path, first: str, second: str) -> None:
    start(tiny(text, device=first, max_steps=8), tmp_path / "first")[0].run()
    restored = checkpoint.find(tmp_path / "first")
    moved, context = start(tiny(text, device=second, dtype="auto"), tmp_path / "second", restored)
    assert context.points["probe/delta", 8] < 1e-5
    assert moved.run() == 0
    assert moved.step == 12
