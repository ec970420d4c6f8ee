"""What each part of ``recipe: fast`` gives: the whole val split's loss with parts left out or changed.

Each variant is trained with every seed, by the trainer's own engine. Sets of variants:

``ablation``  each ingredient left out of the recipe, and each added alone to nanoGPT's training;
``tuning``    the recipe's settings, one at a time;
``gpu``       what may reach nanoGPT's best val loss soonest at 6 x 384, one setting at a time.

Printed are the val loss at the end, the first measured step (see `--points`) with a val loss of at most the
target, and the seconds of training until then: processor time on a CPU, wall time on a GPU, without the
evaluations. The first 20 steps, which set things up, count by the rate of the others.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.cases import GPU, LAPTOP
from benchmarks.report import parser, write
from benchmarks.to_loss import FAST_GPU
from orchestrator.contract import NullContext
from trainer.config import TrainerConfig
from trainer.data import Batches, load_dataset
from trainer.device import choose_hardware
from trainer.engine import EagerEngine
from trainer.evaluate import Evaluator
from trainer.model_fast import FULL, NONE, FastGPT, Ingredients
from trainer.ranks import Ranks
from trainer.rng import Stream, stream_seed

TARGETS = {"cpu": 1.898, "cuda": 1.4697}
"""nanoGPT's val loss over the whole split: its laptop run's after 2,000 iterations, and its README's best."""
STEPS = {"cpu": 100, "cuda": 350}
"""About what the recipe needs to reach them."""
WARM_STEPS = 20


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    ingredients: Ingredients | None = None
    """None: all, with the n-grams of the settings."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """On top of the shape, `max_steps` and `recipe: fast`."""


@dataclass(frozen=True)
class Run:
    """What one variant with one seed came to."""

    variant: str
    seed: int
    steps: int
    val: float
    """Over the whole split, at the end."""
    reached_step: int | None
    """The first measured step at which the target is reached."""
    reached_s: float | None
    step_ms: float
    curve: list[tuple[int, float]]


def main() -> None:
    """Train and report."""
    args = _arguments()
    config = TrainerConfig(device=args.device, dtype="auto", dropout=0.0)
    device = choose_hardware(config, NullContext()).device.type
    target = args.target or TARGETS[device]
    steps = args.steps or (40 if args.quick else STEPS[device])
    points = args.points or (20 if device == "cuda" else 1)
    wanted = [v for v in SETS[args.set]() if any(fnmatch.fnmatch(v.name, p) for p in args.variants)]
    print(f"{device}: {len(wanted)} variants, {steps} steps, target {target}", flush=True)
    runs: list[Run] = []
    for variant in wanted:
        for seed in args.seeds[: 1 if args.quick else None]:
            runs.append(measure(variant, steps, seed, device, target, points))
        print(_line([run for run in runs if run.variant == variant.name]), flush=True)
        if args.json:
            write([], args.json, {"target": target, "runs": [asdict(run) for run in runs]})


def measure(variant: Variant, steps: int, seed: int, device: str, target: float, points: int) -> Run:
    """Train one variant; the val loss is measured at the end of each of `points` parts of the second half."""
    shape = {**(GPU if device == "cuda" else LAPTOP), "max_steps": steps}
    config = TrainerConfig.model_validate(
        {**shape, "recipe": "fast", "device": device, "dtype": "auto", "seed": seed, **variant.settings}
    )
    steps = config.max_steps
    hardware = choose_hardware(config, NullContext())
    dataset = load_dataset(config)
    batches = Batches(dataset, config, hardware.device)
    model = FastGPT(config, len(dataset.vocabulary), stream_seed(seed, Stream.INIT), variant.ingredients).to(
        hardware.device
    )
    engine = EagerEngine(config, model, batches, hardware)
    evaluator = Evaluator(model, model, batches, hardware, lambda: False, ranks=Ranks())
    clock = time.process_time if device == "cpu" else time.perf_counter
    marks = sorted({steps - steps * part // (2 * points) for part in range(points)})
    curve: list[tuple[int, float]] = []
    seconds, done = 0.0, 0
    for mark in [min(WARM_STEPS, marks[0]), *marks]:
        begin = clock()
        for step in range(done, mark):
            engine.update(step)
        hardware.synchronize()
        if done:
            seconds += clock() - begin
        done = mark
        if mark >= marks[0]:
            val = evaluator.whole_val()
            assert val is not None
            curve.append((mark, val))
    per_step = seconds / max(1, steps - min(WARM_STEPS, marks[0]))
    reached = next((step for step, val in curve if val <= target), None)
    seconds_to = None if reached is None else reached * per_step
    return Run(variant.name, seed, steps, curve[-1][1], reached, seconds_to, per_step * 1e3, curve)


_PARTS: Mapping[str, Mapping[str, Any]] = {
    "rotary": {"rotary": False},
    "rms-norm": {"rms_norm": False},
    "qk-norm": {"qk_norm": False},
    "relu2": {"relu2": False},
    "zero-init": {"zero_init": False},
    "untied": {"untied": False},
    "n-grams": {"ngrams": 1},
    "softcap": {"softcap": 0.0},
}
"""Ingredients of the model, and what leaves each of them out."""
_ADAMW = {"recipe": "nanogpt"}
"""The optimizer and the settings of nanoGPT, whatever the model."""


def _ablation() -> Iterator[Variant]:
    yield Variant("full")
    for name, change in _PARTS.items():
        yield Variant(f"full - {name}", replace(FULL, **change))
    for order in (2, 3, 5):
        yield Variant(f"full, n-grams to {order}", replace(FULL, ngrams=order))
    for rate in (2e-3, 4e-3, 1e-2):
        settings = {**_ADAMW, **_plain_schedule(rate)}
        yield Variant(f"full - muon, AdamW {rate:g}", settings=settings)
    cosine = {"lr_schedule": "cosine", "warmup_steps": 100}
    yield Variant("full - schedule (cosine, warm-up 100)", settings=cosine)
    yield Variant("full - learning rate (AdamW 1e-3)", settings={"learning_rate": 1e-3})
    yield Variant("base", NONE, _ADAMW)
    for name, change in _PARTS.items():
        added = {key: getattr(FULL, key) for key in change}
        yield Variant(f"base + {name}", replace(NONE, **added), _ADAMW)
    yield Variant("base + muon", NONE, {"learning_rate": 1e-3, "lr_schedule": "cosine", "warmup_steps": 100})
    yield Variant("base + schedule", NONE, {**_ADAMW, **_plain_schedule(1e-3)})
    for rate in (2e-3, 4e-3):
        yield Variant(f"base + AdamW {rate:g}", NONE, {**_ADAMW, "learning_rate": rate})


def _plain_schedule(rate: float) -> dict[str, Any]:
    """The recipe's schedule and regularisation, where `recipe` says nanogpt."""
    fast = TrainerConfig(recipe="fast")
    keys = ("lr_schedule", "min_lr", "warmup_steps", "weight_decay", "grad_clip")
    return {**{key: getattr(fast, key) for key in keys}, "learning_rate": rate}


def _tuning() -> Iterator[Variant]:
    yield Variant("full")
    choices: Mapping[str, Sequence[float]] = {
        "learning_rate": (3e-3, 5e-3, 1.5e-2, 2e-2, 3e-2),
        "muon_lr": (5e-3, 0.01, 0.015, 0.03, 0.04),
        "muon_momentum": (0.8, 0.85, 0.9, 0.97),
        "beta1": (0.7, 0.8, 0.95),
        "beta2": (0.9, 0.95, 0.999),
        "weight_decay": (0.01, 0.1, 1.0),
        "warmup_steps": (10, 50),
        "grad_clip": (1.0,),
        "dropout": (0.05, 0.1, 0.2),
    }
    for key, values in choices.items():
        for value in values:
            yield Variant(f"{key} {value:g}", settings={key: value})
    for cap in (10.0, 30.0):
        yield Variant(f"softcap {cap:g}", replace(FULL, softcap=cap))


def _gpu() -> Iterator[Variant]:
    yield Variant("centre", settings=FAST_GPU)
    choices: Mapping[str, Sequence[float]] = {
        "max_steps": (250, 300, 400, 500),
        "ngrams": (1, 3, 4),
        "dropout": (0.0, 0.05, 0.2),
        "weight_decay": (0.0, 0.1, 1.0),
        "learning_rate": (3e-3, 0.01),
        "muon_lr": (0.01, 0.015, 0.03),
        "muon_momentum": (0.9,),
        "beta2": (0.95,),
        "min_lr": (5e-4,),
        "batch_size": (48, 96),
    }
    for key, values in choices.items():
        for value in values:
            yield Variant(f"{key} {value:g}", settings={**FAST_GPU, key: value})
    yield Variant("batch_size 32, 600 steps", settings={**FAST_GPU, "batch_size": 32, "max_steps": 600})


SETS = {"ablation": _ablation, "tuning": _tuning, "gpu": _gpu}


def _line(runs: Sequence[Run]) -> str:
    """One variant over its seeds."""
    vals = [run.val for run in runs]
    reached = sorted(run.reached_step for run in runs if run.reached_step is not None)
    times = sorted(run.reached_s for run in runs if run.reached_s is not None)
    spread = f" ({min(vals):.4f} to {max(vals):.4f})" if len(vals) > 1 else ""
    end = (
        f"reached by {len(reached)} of {len(runs)}: step {statistics.median(reached):g}, "
        f"{statistics.median(times):.2f} s"
        if reached
        else "not reached"
    )
    step_ms = statistics.median(run.step_ms for run in runs)
    return f"{runs[0].variant:40} val {statistics.median(vals):.4f}{spread}, {step_ms:.2f} ms/step, {end}"


def _arguments() -> argparse.Namespace:
    options = parser(__doc__ or "")
    options.add_argument("--set", choices=tuple(SETS), default="ablation", help="list of variants")
    options.add_argument(
        "--variants",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help="those of the list; * stands for anything",
    )
    options.add_argument(
        "--steps", type=int, help="where the variant does not say; 100 on a CPU, 350 on a GPU"
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--points", type=int, help="val losses per run; by default 1 on a CPU, 20 on a GPU")
    options.add_argument("--target", type=float, help="val loss to reach")
    return options.parse_args()


if __name__ == "__main__":
    main()
