"""What checkpoints cost training: stretches of steps with one and without, in turns, in one process.

::

    python -m benchmarks.checkpoint_cost [--quick] [--json FILE] [--device cpu|cuda] [--config-like 6x384]

A stretch with a checkpoint counts from before the snapshot until the last step is made *and* the checkpoint
is published, so nothing is left to the stretch after it. The excess over the stretch beside it, as a share of
:data:`EVERY` steps, is what checkpointing at that interval costs. On a processor the same is given in
processor time, which other programs disturb less; stretches are short there, since a step takes long.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Row, parser, report, row
from orchestrator.contract import NullContext
from trainer.config import TrainerConfig
from trainer.train import Training

EVERY = 50
LIMIT = 0.01
SHAPES: dict[str, dict[str, Any]] = {
    "4x128": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12},
    "6x384": {
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "block_size": 256,
        "batch_size": 64,
        "dropout": 0.2,
        "dtype": "auto",
    },
}


@dataclass(frozen=True)
class Stretch:
    """Seconds by the clock and of the processor, and those that the loop waited for the snapshot."""

    wall_s: float
    cpu_s: float
    snapshot_s: float


def measure(training: Training, steps: int, saving: bool) -> Stretch:
    """One stretch of training."""
    training.hardware.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    if saving:
        training.save()
    snapshot_s = time.perf_counter() - wall
    for _ in range(steps):
        training.update()
    training.writer.wait()
    training.hardware.synchronize()
    return Stretch(time.perf_counter() - wall, time.process_time() - cpu, snapshot_s)


def rows(shape: str, steps: int, saving: Sequence[Stretch], plain: Sequence[Stretch], cpu: bool) -> list[Row]:
    """The table."""
    pairs = list(zip(saving, plain, strict=True))
    found = [
        row(
            f"{shape}: ms/step, {steps} steps and a checkpoint",
            [s.wall_s / steps * 1e3 for s in saving],
            "ms",
            peer="without",
            peer_values=[s.wall_s / steps * 1e3 for s in plain],
        ),
        row(f"{shape}: the loop waits for a snapshot", [s.snapshot_s * 1e3 for s in saving], "ms"),
        *cost(shape, "", steps, [(a.wall_s, b.wall_s) for a, b in pairs]),
    ]
    if cpu:
        found += cost(shape, ", CPU time", steps, [(a.cpu_s, b.cpu_s) for a, b in pairs])
    return found


def cost(shape: str, of: str, steps: int, pairs: Sequence[tuple[float, float]]) -> list[Row]:
    """What a checkpoint adds to a stretch, and that as a share of the interval between two checkpoints."""
    step_s = statistics.median(plain for _, plain in pairs) / steps
    added = [saving - plain for saving, plain in pairs]
    share = [seconds / (EVERY * step_s) * 100.0 for seconds in added]
    return [
        row(f"{shape}: a checkpoint adds{of}", [seconds * 1e3 for seconds in added], "ms"),
        row(f"{shape}: share of {EVERY} steps{of}", share, "%", limit=LIMIT * 100.0),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--config-like", choices=sorted(SHAPES), default="6x384", help="model and batch")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    options.add_argument("--steps", type=int, help="steps per stretch (default: 50 on a GPU, 2 on a CPU)")
    arguments = options.parse_args(argv)
    config = TrainerConfig.model_validate(
        {
            **SHAPES[arguments.config_like],
            "device": arguments.device,
            "max_steps": 1_000_000,
            "eval_interval": 1_000_000,
            "compile": True,  # first, so that all stretches are of the same steps
            **dict(item.split("=", 1) for item in arguments.set),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        training = Training(config, NullContext(), Path(folder))
        on_cpu = training.hardware.device.type == "cpu"
        steps = arguments.steps or (2 if on_cpu else EVERY)
        measure(training, steps, True)  # warms up, and allocates the snapshot's buffers
        measure(training, steps, False)
        saving, plain = [], []
        rounds = 10 if on_cpu else 60  # a single stretch on a GPU varies by more than a checkpoint costs
        for _ in range(3 if arguments.quick else rounds):
            plain.append(measure(training, steps, False))
            saving.append(measure(training, steps, True))
        training.close()
    report(rows(arguments.config_like, steps, saving, plain, on_cpu), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
