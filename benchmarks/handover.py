"""A run that begins on the CPU and goes on on the GPU, against runs that were on the GPU from the start.

nanoGPT's laptop configuration, 1,000 steps: fp32 on the CPU to step 500, its checkpoint restored on the
second device in each dtype, and on to the end. The probe batch is evaluated in fp32 before and after; the
curve of the whole val split's loss is compared with those of several seeds on the second device. "Within the
spread" at a step means no further from the seeds' median than the seeds' (max - min) there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import LAPTOP, Device, settings
from benchmarks.curves import Curve, follow
from benchmarks.report import Row, row, unmeasured
from benchmarks.workers import Bench, WorkerError
from trainer.config import TrainerConfig

SEED = 1337
"""Of the run that is handed over."""


def main() -> None:
    """Measure and report."""
    args = _options()
    bench_threads = args.threads or len(os.sched_getaffinity(0))
    switch, steps, every = (20, 40, 10) if args.quick else (500, 1000, 100)
    seeds = args.seeds[:2] if args.quick else args.seeds
    rows: list[Row] = []
    extra: dict[str, Any] = {"switch": switch, "second": args.second, "threads": bench_threads, "parts": {}}
    failed = False
    with tempfile.TemporaryDirectory(prefix="trainer-handover-") as name:
        handover = Handover(Bench(Path(), Path(name), bench_threads, True), args.second, switch, steps, every)
        for dtype in args.dtypes:
            try:
                found, details = handover.compare(dtype, seeds, args.jobs)
            except (WorkerError, OSError) as e:  # the other dtype is measured all the same
                traceback.print_exc()
                failed = True
                found, details = (
                    [unmeasured(f"handover to {args.second}, {dtype}", str(e))],
                    {"error": str(e)},
                )
            rows += found
            extra["parts"][dtype] = details
            if args.json is not None:
                report.write(rows, args.json, extra)
    report.report(rows, args.json, extra)
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    options = report.parser(__doc__ or "")
    options.add_argument("--second", choices=("cpu", "cuda"), default="cuda", help="where it goes on")
    options.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[SEED, 1, 2, 3, 4])
    options.add_argument("--threads", type=int, help="default: all cores")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time on the second device")
    return options.parse_args()


class Handover:
    """One run on the CPU and what becomes of it on the second device."""

    def __init__(self, bench: Bench, second: Device, switch: int, steps: int, every: int) -> None:
        self._bench = bench
        self._second = second
        self._switch = switch
        self._steps = steps
        self._every = every
        self._checkpoint: str | None = None
        self._before: Curve = []

    def compare(self, dtype: str, seeds: Sequence[int], jobs: int) -> tuple[list[Row], dict[str, Any]]:
        """The handed-over run in `dtype` against runs with these seeds on the second device alone.

        Raises:
            WorkerError: one of the runs failed.
        """
        if self._checkpoint is None:
            self._first_part()
        after, delta = self._second_part(dtype)
        with ThreadPoolExecutor(jobs) as pool:
            alone = list(pool.map(lambda seed: self._alone(dtype, seed), seeds))
        details = {
            "before": self._before,
            "after": after,
            "probe_delta": delta,
            "alone": [{"seed": seed, "curve": curve} for seed, curve in zip(seeds, alone, strict=True)],
        }
        same_seed = alone[seeds.index(SEED)] if SEED in seeds else None
        return handover_rows(f"handover to {self._second}, {dtype}", after, delta, alone, same_seed), details

    def _first_part(self) -> None:
        with self._bench.ours(self._settings("cpu", "float32", SEED), "first") as worker:
            self._before = follow(worker, 0, self._switch, self._every)[0]
            self._checkpoint = worker.ask("save", 120.0)
        print(f"CPU: val {self._before[-1][1]:.4f} at step {self._switch}", flush=True)

    def _second_part(self, dtype: str) -> tuple[Curve, float]:
        config = self._settings(self._second, dtype, SEED)
        with self._bench.ours(config, f"second-{dtype}", self._checkpoint) as worker:
            delta = worker.ask("logged", 300.0)["probe/delta"]
            after = follow(worker, self._switch, self._steps, self._every)[0]
        print(f"{self._second} {dtype}: probe delta {delta:.2e}, val {after[-1][1]:.4f}", flush=True)
        return after, float(delta)

    def _alone(self, dtype: str, seed: int) -> Curve:
        config = self._settings(self._second, dtype, seed)
        with self._bench.ours(config, f"alone-{dtype}-{seed}") as worker:
            curve = follow(worker, 0, self._steps, self._every)[0]
        print(f"{self._second} {dtype}, seed {seed}: val {curve[-1][1]:.4f}", flush=True)
        return curve

    def _settings(self, device: Device, dtype: str, seed: int) -> dict[str, Any]:
        return settings({**LAPTOP, "max_steps": self._steps}, device, dtype, seed=seed)


def handover_rows(
    name: str, after: Curve, delta: float, alone: Sequence[Curve], same_seed: Curve | None
) -> list[Row]:
    """The probe's difference, how far the curve is from the seeds' median, and from its own seed's curve."""
    tolerance = TrainerConfig().probe_tolerance
    rows = [row(f"{name}: probe delta", [delta], "", limit=tolerance)]
    distances = relative_distances(after, alone)
    note = "largest distance from the seeds' median, in units of their (max - min) at that step"
    rows.append(row(f"{name}: distance", [max(distances)], "spreads", limit=1.0, note=note))
    if same_seed is not None:
        own = dict(same_seed)
        apart = max(abs(loss - own[step]) for step, loss in after)
        rows.append(row(f"{name}: largest difference from the same seed", [apart], "nats"))
    return rows


def relative_distances(curve: Curve, seeds: Sequence[Curve]) -> list[float]:
    """|loss - median of the seeds| / (max - min of the seeds) at each step of `curve`."""
    by_step = [dict(seed) for seed in seeds]
    result = []
    for step, loss in curve:
        losses = [losses_of[step] for losses_of in by_step]
        spread = max(losses) - min(losses)
        apart = abs(loss - statistics.median(losses))
        result.append(apart / max(spread, 1e-9))
    return result


if __name__ == "__main__":
    main()
