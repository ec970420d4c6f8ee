"""A checkout of nanoGPT as the peer: a copy with its data, and the arguments that its train.py is given."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from trainer.config import TrainerConfig
from trainer.corpus import find_corpus

CHARACTER_CONFIG = "config/train_shakespeare_char.py"
NEVER = 10**9


def prepare(checkout: Path, copy: Path, dataset: str) -> Path:
    """A copy of nanoGPT with a text prepared by its own ``prepare.py``; returns `copy`."""
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
    data = copy / "data" / "shakespeare_char"
    (data / "input.txt").write_text(find_corpus(dataset).text, encoding="utf-8")
    (data / "requests.py").touch()  # prepare.py imports it, and needs it for the download only
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)
    return copy


def arguments(config: TrainerConfig, *, device: str, dtype: str, compiled: bool) -> list[str]:
    """What to start nanoGPT's train.py with, so that it has the hyperparameters of `config`.

    It neither evaluates nor saves, and has no last iteration: whoever drives it decides that. On a CPU it
    trains in fp32 whatever `dtype` says.
    """
    settings = {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
        "dropout": config.dropout,
        "bias": config.bias,
        "batch_size": config.batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": config.learning_rate,
        "min_lr": config.min_lr,
        "warmup_iters": config.warmup_steps,
        "lr_decay_iters": config.decay_steps,
        "beta1": config.beta1,
        "beta2": config.beta2,
        "weight_decay": config.weight_decay,
        "grad_clip": config.grad_clip,
        "log_interval": config.log_interval,
        "max_iters": NEVER,
        "eval_interval": NEVER,
        "eval_iters": 1,
        "device": device,
        "dtype": dtype,
        "compile": compiled,
    }
    return [CHARACTER_CONFIG, *(f"--{key}={value}" for key, value in settings.items())]
