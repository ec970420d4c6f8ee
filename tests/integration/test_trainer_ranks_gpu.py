"""Two ranks on two GPUs, which exchange gradients through NCCL. Skipped where there are not two."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.contract import EXIT_LOST_RANK, EXIT_SAVED
from tests.integration.test_trainer_ranks import LONG, arguments, assert_alike, by_itself, gang, together
from tests.support import wait_until
from tests.unit.trainer.support import run_trainer, trainer_command, write_text
from trainer import checkpoint

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

ON_GPU: dict[str, Any] = {"device": "cuda", "dtype": "float32"}
TOLERANCE = 1e-4
"""A GPU rounds otherwise than a processor, and AdamW makes more of small differences."""
COMPILING_S = 240.0


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one rank on a processor."""
    return by_itself(text, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def both(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run of two ranks on two GPUs."""
    folder = tmp_path_factory.mktemp("both")
    said = together(arguments(text, folder, **ON_GPU), folder)
    assert ", 2 ranks, float32" in said
    return folder


def test_two_gpus_train_what_one_processor_trains(alone: Path, both: Path) -> None:
    assert_alike(alone, both, 10, TOLERANCE)
    assert_alike(alone, both, 20, TOLERANCE)


@pytest.mark.parametrize("settings", [{"compile": True}, {"cuda_graph": False}, {"micro_batches": 4}])
def test_however_updates_are_made(text: Path, tmp_path: Path, alone: Path, settings: dict[str, Any]) -> None:
    together(arguments(text, tmp_path, **ON_GPU, **settings), tmp_path, COMPILING_S)
    assert_alike(alone, tmp_path, 20, TOLERANCE)


def test_one_processor_hands_over_to_two_gpus(text: Path, tmp_path: Path, alone: Path) -> None:
    resume = ["--resume", str(alone / "out/step-00000010")]
    said = together([*arguments(text, tmp_path, **ON_GPU), *resume], tmp_path)
    assert "relative difference" in said
    assert_alike(alone, tmp_path, 20, TOLERANCE)


def test_and_back(text: Path, tmp_path: Path, both: Path) -> None:
    resume = ["--resume", str(both / "out/step-00000010")]
    done = run_trainer([*arguments(text, tmp_path), *resume], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert_alike(both, tmp_path, 20, TOLERANCE)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_fast_recipe_in_bf16(text: Path, tmp_path: Path, compiled: bool) -> None:
    settings = {"device": "cuda", "dtype": "bfloat16", "recipe": "fast", "compile": compiled, "n_embd": 32}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    done = run_trainer(arguments(text, one, **settings))
    assert done.returncode == 0, done.stderr
    together(arguments(text, two, **settings), two, COMPILING_S)
    losses = [checkpoint.read_state(folder / "out/step-00000020").probe_loss for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("compiled", [False, True])
def test_sigterm_to_one_rank_stops_both(text: Path, tmp_path: Path, compiled: bool) -> None:
    log = tmp_path / "rank-0"
    command = trainer_command(*arguments(text, tmp_path, **LONG, **ON_GPU, compile=compiled))
    with gang([command] * 2, tmp_path) as children:
        wait_until(lambda: "step 100: loss" in log.read_text(), 120, log.read_text)
        children[1].send_signal(signal.SIGTERM)
        codes = [child.wait(60) for child in children]
    assert codes == [EXIT_SAVED, EXIT_SAVED], log.read_text()
    saved = checkpoint.find(tmp_path / "out")
    assert f"stopped at step {checkpoint.read_state(saved).step} of" in log.read_text()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_the_other(text: Path, tmp_path: Path, killed: int) -> None:
    """What waits for it on the GPU holds nothing up."""
    logs = [tmp_path / "rank-0", tmp_path / "rank-1"]
    command = trainer_command(*arguments(text, tmp_path, **LONG, **ON_GPU, compile=False))
    with gang([command] * 2, tmp_path) as children:
        wait_until(lambda: "step 100: loss" in logs[0].read_text(), 120, logs[0].read_text)
        children[killed].kill()
        code = children[1 - killed].wait(30)
    last = logs[1 - killed].read_text()
    assert code == EXIT_LOST_RANK, last
    assert f"trainer: rank {1 - killed} of 2 lost another rank" in last
