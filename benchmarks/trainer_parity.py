"""The trainer against nanoGPT on nanoGPT's documented laptop run (its README, "I only have a macbook").

4 layers, 4 heads, 128 wide, block 64, batch 12, 2,000 iterations, evaluations over 20 batches, on the CPU.
Runs of the two alternate, so that both see the same machine; each seed is used once by each. The text is that
in ORCH_DATA_DIR, prepared by nanoGPT's own `prepare.py` in a copy of the checkout. Threads of both wait for
each other as the trainer's do (GOMP_SPINCOUNT), or a busy machine would decide the comparison.

Compared with the weights after 2,000 updates: the printed estimate, and the loss over the whole val split,
which has no sampling noise. Both also make the same updates in turn, from the same weights on the same
batches: that gives the difference of their losses and the time per step. Short runs tell the processor time,
start included, and the time from the start of the process to the first update.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.report import Row, parser, report, row
from orchestrator.contract import NullContext, step_name
from trainer.checkpoint import MODEL_FILE, copy_into, read_tensors
from trainer.config import TrainerConfig
from trainer.corpus import find_corpus
from trainer.optimizer import learning_rate
from trainer.train import Training

PUBLISHED_VAL = 1.88
"""nanoGPT's README for this configuration."""
ESTIMATE_NOISE = 0.03
"""Two standard deviations of an estimate over 20 batches of 12 x 64 characters."""
CONFIG = TrainerConfig(device="cpu", log_interval=1, sample_tokens=0)
NANOGPT_ARGUMENTS = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--dropout=0.0",
    "--always_save_checkpoint=True",
]


@dataclass(frozen=True)
class Outcome:
    """What one run ended with."""

    train: float
    val: float
    val_full: float


def main() -> None:
    """Measure and report."""
    options = parser(__doc__ or "")
    options.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="checkout of nanoGPT")
    options.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--part", choices=("losses", "speed"), help="measure this part only")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="trainer-parity-") as name:
        folder = Path(name)
        peer = prepare(args.nanogpt, folder / "nanogpt")
        if args.part != "speed":
            steps, seeds = (300, args.seeds[:1]) if args.quick else (CONFIG.max_steps, args.seeds)
            rows += measure_losses(folder, peer, seeds, steps)
        rows += in_turn(peer, updates=60 if args.quick else 400)
        if args.part != "losses":
            rows += measure_speed(folder, peer, rounds=2 if args.quick else 5)
    report(rows, args.json)


def measure_losses(folder: Path, peer: Path, seeds: list[int], steps: int) -> list[Row]:
    """Train to the end with each seed."""
    ours, theirs = [], []
    for seed in seeds:
        ours.append(run_ours(folder, seed, steps)[0])
        theirs.append(run_nanogpt(peer, seed, steps)[0])
        print(f"seed {seed}: {ours[-1]}, nanoGPT {theirs[-1]}", flush=True)
    return loss_rows(ours, theirs, published=steps == CONFIG.max_steps)


def measure_speed(folder: Path, peer: Path, rounds: int, steps: int = 150) -> list[Row]:
    """Whole processes in turn."""
    ours, theirs, our_starts, their_starts = [], [], [], []
    for number in range(rounds):
        ours.append(run_ours(folder, 100 + number, steps)[1])
        theirs.append(run_nanogpt(peer, 100 + number, steps)[1])
        our_starts.append(first_update_ours())
        their_starts.append(first_update_nanogpt(peer))
    return [
        row(
            f"processor time of {steps} steps, start included",
            ours,
            "s",
            peer="nanoGPT",
            peer_values=theirs,
            limit=1.0,
            of="ratio",
        ),
        row(
            "start of the process to the first update",
            our_starts,
            "s",
            peer="nanoGPT",
            peer_values=their_starts,
            limit=1.0,
            of="ratio",
        ),
    ]


def loss_rows(ours: list[Outcome], theirs: list[Outcome], published: bool) -> list[Row]:
    """The losses after the last update."""
    rows = [
        row(
            "val loss, whole split",
            [run.val_full for run in ours],
            "nats",
            peer="nanoGPT, same machine",
            peer_values=[run.val_full for run in theirs],
            limit=1.01,
            of="ratio",
        ),
        row(
            "val loss, 20 batches",
            [run.val for run in ours],
            "nats",
            peer="nanoGPT, same machine",
            peer_values=[run.val for run in theirs],
            limit=1 + ESTIMATE_NOISE / PUBLISHED_VAL,
            of="ratio",
        ),
        row(
            "train loss, 20 batches",
            [run.train for run in ours],
            "nats",
            peer="nanoGPT, same machine",
            peer_values=[run.train for run in theirs],
        ),
    ]
    if published:
        rows.append(
            row(
                "val loss, 20 batches, against the README",
                [run.val for run in ours],
                "nats",
                peer="nanoGPT's README",
                peer_values=[PUBLISHED_VAL],
                limit=PUBLISHED_VAL + ESTIMATE_NOISE,
            )
        )
    return rows


def prepare(checkout: Path, copy: Path) -> Path:
    """A copy of nanoGPT with its data prepared."""
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "out*"))
    data = copy / "data" / "shakespeare_char"
    (data / "input.txt").write_text(find_corpus(CONFIG.dataset).text, encoding="utf-8")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)
    return copy


def run_ours(folder: Path, seed: int, steps: int) -> tuple[Outcome, float]:
    """``python -m trainer`` in a process of its own, and its processor time in seconds."""
    settings = {**CONFIG.model_dump(exclude_none=True), "seed": seed, "max_steps": steps}
    settings["eval_interval"] = evaluation_interval(steps)
    out = folder / f"ours-{seed}-{steps}"
    command = [sys.executable, "-m", "trainer", "--out", str(out)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    output, processor_s = timed(command, Path.cwd())
    weights = read_tensors(out / step_name(steps) / MODEL_FILE)
    return Outcome(*losses(output, steps), whole_val(weights)), processor_s


def run_nanogpt(peer: Path, seed: int, steps: int) -> tuple[Outcome, float]:
    """nanoGPT's train.py with this seed instead of the one written into it, and its processor time."""
    script = (peer / "train.py").read_text(encoding="utf-8")
    seeded = script.replace("manual_seed(1337", f"manual_seed({seed}")
    (peer / "seeded.py").write_text(seeded, encoding="utf-8")
    out = peer / f"out-{seed}"
    lengths = [f"--max_iters={steps}", f"--lr_decay_iters={steps}"]
    lengths.append(f"--eval_interval={evaluation_interval(steps)}")
    command = [sys.executable, "seeded.py", *NANOGPT_ARGUMENTS, *lengths, f"--out_dir={out}"]
    output, processor_s = timed(command, peer)
    weights = nanogpt_weights(out / "ckpt.pt", steps)
    return Outcome(*losses(output, steps), whole_val(weights)), processor_s


def evaluation_interval(steps: int) -> int:
    """250 where the last step is one of its multiples."""
    return 250 if steps % 250 == 0 else steps


def timed(command: list[str], cwd: Path) -> tuple[str, float]:
    """Output of a command that succeeds, and the processor time that it took in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def losses(output: str, step: int) -> tuple[float, float]:
    """Estimated train and val loss at a step; both programs print them alike."""
    found = re.findall(rf"^step {step}: train loss ([\d.]+), val loss ([\d.]+)$", output, re.MULTILINE)
    return float(found[-1][0]), float(found[-1][1])


def nanogpt_weights(file: Path, steps: int) -> dict[str, Tensor]:
    """The weights in nanoGPT's checkpoint of iteration `steps`, by our names."""
    saved = torch.load(file, map_location="cpu", weights_only=True)
    if saved["iter_num"] != steps:
        sys.exit(f"{file} is of iteration {saved['iter_num']}, expected {steps}")
    prefix = "transformer."
    model: dict[str, Tensor] = saved["model"]
    return {name.removeprefix(prefix): model[name] for name in model if name.startswith(prefix)}


def whole_val(weights: dict[str, Tensor]) -> float:
    """Loss over the whole val split."""
    training = quiet_training(CONFIG)
    copy_into(dict(training.model.named_parameters()), weights, "model")
    loss = training.evaluator.whole_val()
    if loss is None:
        sys.exit("interrupted")
    return loss


def in_turn(peer: Path, updates: int, warm_up: int = 5) -> list[Row]:
    """Both from the same weights on the same batches, update by update.

    The losses are compared over the first 20 updates, after which rounding errors have had time to grow. Ours
    includes drawing the batch.
    """
    training = quiet_training(CONFIG)
    theirs = NanoGPT(peer, training)
    worst, our_ms, their_ms = 0.0, [], []
    for step in range(updates):
        x, y = (part.contiguous() for part in training.batches.train(step))
        expected = training.evaluator.batch_loss(step)
        begin = time.perf_counter()
        loss = theirs.update(x, y, learning_rate(CONFIG, step))
        middle = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            training.update()
        end = time.perf_counter()
        if step < 20:
            worst = max(worst, abs(loss - expected))
        if step >= warm_up:
            their_ms.append((middle - begin) * 1000)
            our_ms.append((end - middle) * 1000)
    return [
        row("loss in lock step, largest difference", [worst], "nats", limit=1e-4),
        row(
            "time per step",
            medians(our_ms),
            "ms",
            peer="nanoGPT",
            peer_values=medians(their_ms),
            limit=1.0,
            of="ratio",
        ),
    ]


def medians(values: list[float], parts: int = 5) -> list[float]:
    """The median of each fifth, so that their spread tells how steady it was."""
    size = len(values) // parts
    return [statistics.median(values[part * size : (part + 1) * size]) for part in range(parts)]


class NanoGPT:
    """nanoGPT's model and optimizer, with the weights of a training of ours."""

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
        """What one iteration of its loop does after it has a batch; the loss."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        loss = self.model(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.limit)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return float(loss.item())


def quiet_training(config: TrainerConfig) -> Training:
    """A training that keeps nothing and prints nothing until it is stepped."""
    with contextlib.redirect_stdout(io.StringIO()):
        return Training(config.model_copy(update={"log_interval": 10**9}), NullContext(), Path(os.devnull))


def load_module(path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None:
        sys.exit(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def first_update_ours() -> float:
    """Seconds from the start of the process to the first update's line, after an evaluation of one batch."""
    settings = ["device=cpu", "eval_batches=1", "max_steps=1", "sample_tokens=0"]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "trainer", "--out", out]
        command += [part for setting in settings for part in ("--set", setting)]
        return seconds_to_line(command, Path.cwd(), "step 0: loss")


def first_update_nanogpt(peer: Path) -> float:
    """The same of nanoGPT."""
    arguments = [*NANOGPT_ARGUMENTS, "--eval_iters=1", "--max_iters=0", f"--out_dir={peer / 'out-start'}"]
    return seconds_to_line([sys.executable, "-u", "train.py", *arguments], peer, "iter 0: loss")


def seconds_to_line(command: list[str], cwd: Path, line: str) -> float:
    """Seconds until a command prints a line that begins so."""
    begin = time.perf_counter()
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        for printed in process.stdout or ():
            if printed.startswith(line):
                seconds = time.perf_counter() - begin
                process.communicate()
                return seconds
    sys.exit(f"{' '.join(command)} did not print {line!r}")


if __name__ == "__main__":
    main()
