"""The trainer and nanoGPT side by side: the same updates from the same weights; whole processes in turn."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from benchmarks import nanogpt
from benchmarks.cases import ENGINE, LAPTOP, hyperparameters, settings
from benchmarks.report import Row, row
from benchmarks.workers import SPIN, Bench
from orchestrator.contract import NullContext
from trainer.config import TrainerConfig
from trainer.optimizer import learning_rate
from trainer.train import Training

COMPARED_UPDATES = 20
"""After more, rounding errors have had time to grow."""
NEVER = 10**9


def differences(checkout: Path, quick: bool) -> list[Row]:
    """How far the losses of the same updates are apart, eager and as the engine is timed."""
    name = "loss in lock step, largest difference"
    rows = [row(name, [lock_step(checkout, {"compile": False})], "nats", limit=1e-4)]
    if not quick:
        rows.append(row(f"{name}, compiled", [lock_step(checkout, ENGINE)], "nats", limit=1e-4))
    return rows


def lock_step(checkout: Path, engine: dict[str, object]) -> float:
    """The largest difference in nats of the losses of updates from the same weights on the same batches."""
    config = TrainerConfig.model_validate(
        {**settings(LAPTOP, "cpu", "float32"), **engine, "log_interval": NEVER}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        training = Training(config, NullContext(), Path(os.devnull))
    theirs = NanoUpdate(checkout, training)
    worst = 0.0
    for step in range(COMPARED_UPDATES):
        x, y = (part.contiguous() for part in training.batches.train(step))
        expected = training.evaluator.batch_loss(step)
        worst = max(worst, abs(theirs.update(x, y, learning_rate(config, step)) - expected))
        with contextlib.redirect_stdout(io.StringIO()):
            training.update()
    training.close()
    return worst


class NanoUpdate:
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


def process_rows(bench: Bench, rounds: int, steps: int = 150) -> list[Row]:
    """Whole processes in turn: what starting them costs."""
    ours, theirs, our_starts, their_starts = [], [], [], []
    for number in range(rounds):
        seed = 100 + number
        ours.append(processor_time(*ours_command(bench, seed, steps)))
        theirs.append(processor_time(*nanogpt_command(bench, seed, steps)))
        our_starts.append(seconds_to_line(*ours_command(bench, seed, 1), "step 0: loss"))
        their_starts.append(seconds_to_line(*nanogpt_command(bench, seed, 0), "iter 0: loss"))
    total = f"processor time of {steps} steps, start included"
    start = "start of the process to the first update"
    return [
        row(total, ours, "s", peer="nanoGPT", peer_values=theirs, limit=1.0, of="ratio"),
        row(start, our_starts, "s", peer="nanoGPT", peer_values=their_starts, limit=1.0, of="ratio"),
    ]


def ours_command(bench: Bench, seed: int, steps: int) -> tuple[list[str], Path, int]:
    """``python -m trainer`` with one batch per evaluation, where to run it, and its threads."""
    wanted = settings(LAPTOP, "cpu", "float32", seed=seed, max_steps=steps, eval_batches=1, compile=False)
    out = tempfile.mkdtemp(dir=bench.folder)
    command = [sys.executable, "-m", "trainer", "--out", out]
    command += [part for key, value in wanted.items() for part in ("--set", f"{key}={value}")]
    return command, Path.cwd(), bench.threads


def nanogpt_command(bench: Bench, seed: int, steps: int) -> tuple[list[str], Path, int]:
    """The same of nanoGPT, which has no option for the seed: `seed` only names the folder."""
    config = hyperparameters({**LAPTOP, "max_steps": max(1, steps)})
    wanted = nanogpt.arguments(config, device="cpu", dtype="float32", compiled=False)
    wanted += [f"--max_iters={steps}", f"--out_dir={bench.folder / f'out-process-{seed}'}"]
    return [sys.executable, "-u", "train.py", *wanted], bench.checkout, bench.threads


def processor_time(command: list[str], cwd: Path, threads: int) -> float:
    """Seconds of processor time that a command takes.

    Raises:
        SystemExit: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=cwd, env=_environment(threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_line(command: list[str], cwd: Path, threads: int, line: str) -> float:
    """Seconds until a command prints a line that begins so.

    Raises:
        SystemExit: it never does.
    """
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=cwd, env=_environment(threads), stdout=subprocess.PIPE, text=True
    ) as process:
        for printed in process.stdout or ():
            if printed.startswith(line):
                seconds = time.perf_counter() - begin
                process.communicate()
                return seconds
    sys.exit(f"{' '.join(command)} did not print {line!r}")


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, **SPIN, "OMP_NUM_THREADS": str(threads)}
