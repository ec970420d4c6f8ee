"""A checkout of nanoGPT as the peer: its data, its arguments, and its update on its own."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.corpus import find_corpus
from trainer.train import Training

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


class LockStep:
    """nanoGPT's model and optimizer on the CPU, with the weights of a training of ours."""

    def __init__(self, checkout: Path, training: Training) -> None:
        C = training.config
        module = load_module(checkout / "model.py")
        with contextlib.redirect_stdout(io.StringIO()):
            vocabulary = len(training.dataset.vocabulary)
            shape = (C.block_size, vocabulary, C.n_layer, C.n_head, C.n_embd, C.dropout, C.bias)
            self.model = module.GPT(module.GPTConfig(*shape))
            betas = (C.beta1, C.beta2)
            self.adamw = self.model.configure_optimizers(C.weight_decay, C.learning_rate, betas, "cpu")
        weights = {f"transformer.{name}": p.detach().clone() for name, p in training.model.named_parameters()}
        self.model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
        self.limit = C.grad_clip

    def update(self, x: Tensor, y: Tensor, lr: float) -> float:
        """What one iteration of its loop does after it has a batch (B, T); the loss before the update."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        loss = self.model(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.limit)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return float(loss.item())


def load_module(path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None:
        sys.exit(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
