"""What the trainer's tests share: a small text, a small model, and a context that a test steers."""

from __future__ import annotations

import atexit
import functools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.contract import NullContext
from trainer.config import TrainerConfig
from trainer.train import Training

TINY: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 4,
    "dropout": 0.2,
    "max_steps": 12,
    "warmup_steps": 4,
    "eval_interval": 4,
    "eval_batches": 3,
    "log_interval": 1,
    "sample_tokens": 0,
    "device": "cpu",
}


def write_text(folder: Path, characters: int = 6000) -> Path:
    """A text of a few dozen words with 28 distinct characters; the same every time."""
    source = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = [letters[:7], letters[7:13], letters[13:20], letters[20:]]
    known += ["".join(source.choices(letters, k=source.randint(1, 7))) for _ in range(30)]
    words = source.choices(known, k=characters // 4)
    lines = (" ".join(words[i : i + 8]) for i in range(0, len(words), 8))
    path = folder / "text.txt"
    path.write_text("\n".join(lines)[:characters], encoding="utf-8")
    return path


def tiny(text: Path, **settings: Any) -> TrainerConfig:
    """The small configuration with some settings changed."""
    return TrainerConfig.model_validate({**TINY, "dataset": str(text), **settings})


class SteeredContext:
    """Keeps what was logged, and asks to stop whenever `stop` says so."""

    def __init__(self, folder: Path, stop: Callable[[], bool] = lambda: False) -> None:
        self.run_id: str | None = "test"
        self.attempt = 1
        self.device: str | None = None
        self.cpus: int | None = 1
        self.gpu_memory: int | None = None
        self.pause_step: int | None = None
        self.restore_dir: Path | None = None
        self.checkpoint_dir: Path | None = folder
        self.artifact_dir: Path | None = None
        self.stop = stop
        self.points: dict[tuple[str, int], float] = {}
        self.published: list[int] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.update({(key, step): value for key, value in metrics.items()})

    def publish(self, directory: Path, step: int) -> Path:
        final = NullContext.publish(self, directory, step)  # type: ignore[arg-type]
        self.published.append(step)
        return final

    def stop_requested(self) -> bool:
        return self.stop()

    def values(self, *keys: str) -> dict[tuple[str, int], float]:
        """Logged points of some metrics."""
        return {point: value for point, value in self.points.items() if point[0] in keys}


def start(
    config: TrainerConfig, folder: Path, restore: Path | None = None, threads: int = 1
) -> tuple[Training, SteeredContext]:
    """A training that has not run yet, and its context."""
    context = SteeredContext(folder)
    context.cpus = threads
    return Training(config, context, folder, restore), context


def weights(training: Training) -> dict[str, Tensor]:
    """Copies of the weights and of the optimizer's moments."""
    tensors = {**dict(training.model.named_parameters()), **training.optimizer.state()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def trainer_command(*arguments: str) -> list[str]:
    """``python -m trainer`` with some arguments."""
    return [sys.executable, "-m", "trainer", *arguments]


def run_trainer(arguments: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m trainer`` to its end."""
    return subprocess.run(
        trainer_command(*arguments),
        env=clean_env(**env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def clean_env(**env: str) -> dict[str, str]:
    """This environment without what an orchestrator or a user may have set, plus `env`; an own cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORCH_", "OMP_"))}
    return {**kept, "ORCH_CACHE_DIR": _cache(), **env}


@functools.cache
def _cache() -> str:
    folder = tempfile.TemporaryDirectory(prefix="orch-test-cache-")
    atexit.register(folder.cleanup)
    return folder.name
