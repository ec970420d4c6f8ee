"""Whether the trainer gives nanoGPT's losses, with nanoGPT's hyperparameters.

Two configurations: `laptop` (nanoGPT's README, "I only have a macbook": 4 layers, 128 wide, block 64, batch
12, 2,000 iterations on the CPU) and `gpu` (its config/train_shakespeare_char.py: 6 layers, 384 wide, block
256, batch 64, dropout 0.2, 5,000 iterations). Each program trains with its own loop, once with each seed.

`losses` compares the loss over the whole val split, which has no sampling noise, at the end and at its best
over all evaluations; both programs' weights are evaluated in fp32. "Within the seed spread" means that the
medians differ by no more than nanoGPT's runs among themselves. On a GPU, nanoGPT's train.py rounds the
products of its fp32 to TF32; here `float32` means fp32 for both programs, and `--tf32` adds its own way.

`speed` tells the processor time of whole processes in turn, start included, and the time from the start of
the process to the first update. On the laptop configuration, both also make the same updates from the same
weights on the same batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks import lockstep, report
from benchmarks.cases import GPU, LAPTOP, Device, hyperparameters, settings
from benchmarks.curves import Curve, follow
from benchmarks.report import Row, unmeasured
from benchmarks.workers import Bench, Worker, WorkerError, prepared

OURS, NANOGPT = "ours", "nanogpt"
TF32 = "tf32"


@dataclass(frozen=True)
class Run:
    """One training from scratch, and the whole val split's loss on the way."""

    program: str
    dtype: str
    """Of the forward and backward pass."""
    seed: int
    curve: Curve
    train_s: float
    """Wall time of the steps; other runs on the machine slow them down."""
    error: str = ""

    @property
    def final(self) -> float:
        """The loss after the last step."""
        return self.curve[-1][1]

    @property
    def best(self) -> float:
        """The smallest loss of all evaluations."""
        return min(loss for _, loss in self.curve)


@dataclass(frozen=True)
class Plan:
    """Which runs to make."""

    configuration: str
    device: Device
    shape: dict[str, Any]
    dtypes: list[str]
    seeds: list[int]
    every: int
    """Steps between evaluations."""
    compiled_peer: bool
    tf32: bool = False
    """Whether nanoGPT is trained in fp32 as its train.py has it, too: with products rounded to TF32."""

    def runs(self) -> list[tuple[str, str, int]]:
        """Program, dtype and seed of each run. On a CPU, nanoGPT knows fp32 only."""
        peers = [*self.dtypes, *([TF32] if self.tf32 else [])] if self.device == "cuda" else ["float32"]
        pairs = [(OURS, dtype) for dtype in self.dtypes] + [(NANOGPT, dtype) for dtype in peers]
        return [(program, dtype, seed) for seed in self.seeds for program, dtype in pairs]


def main() -> None:
    """Measure and report."""
    args = _options()
    threads = args.threads or len(os.sched_getaffinity(0))
    plan = make_plan(args)
    rows: list[Row] = []
    runs: list[Run] = []
    extra: dict[str, Any] = {"configuration": plan.configuration, "threads": threads, "runs": []}
    with tempfile.TemporaryDirectory(prefix="trainer-parity-") as name:
        bench = prepared(args.nanogpt, Path(name), threads, polite_peer=True)
        if args.part != "speed":

            def keep(run: Run) -> None:
                runs.append(run)
                extra["runs"] = [asdict(done) for done in runs]
                if args.json is not None:
                    report.write([], args.json, extra)

            for run in earlier(args.go_on, plan) if args.go_on else []:
                keep(run)
            made = {(run.program, run.dtype, run.seed) for run in runs}
            missing = [wanted for wanted in plan.runs() if wanted not in made]
            train_all(places(bench, args.jobs, args.gpus), plan, missing, keep)
            rows += loss_rows(plan, runs)
        if plan.configuration == "laptop":
            rows += lockstep.differences(bench.checkout, args.quick)
            if args.part != "losses":
                rows += lockstep.process_rows(bench, rounds=2 if args.quick else 5)
    report.report(rows, args.json, extra)
    sys.exit(1 if any(run.error for run in runs) else 0)


def _options() -> argparse.Namespace:
    options = report.parser(__doc__ or "")
    options.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="checkout of nanoGPT")
    options.add_argument("--configuration", choices=("laptop", "gpu"), default="laptop")
    options.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu for laptop, cuda for gpu")
    options.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="default: both")
    options.add_argument(
        "--tf32", action="store_true", help="on a GPU, compare with nanoGPT's own fp32 as well, which is TF32"
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    options.add_argument("--steps", type=int, help="instead of the configuration's")
    options.add_argument("--every", type=int, default=250, help="steps between evaluations")
    options.add_argument("--threads", type=int, help="of each run, default: all cores")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options.add_argument("--gpus", type=int, help="spread the runs over this many GPUs, --jobs on each")
    options.add_argument("--part", choices=("losses", "speed"), help="measure this part only")
    options.add_argument(
        "--go-on", type=Path, metavar="FILE", help="JSON of a measurement that was cut off: its runs are kept"
    )
    return options.parse_args()


def make_plan(args: argparse.Namespace) -> Plan:
    """The runs that the options ask for."""
    gpu = args.configuration == "gpu"
    device: Device = args.device or ("cuda" if gpu else "cpu")
    shape = dict(GPU if gpu else LAPTOP)
    steps = args.steps or (300 if args.quick else shape["max_steps"])
    dtypes = args.dtypes or (["float32"] if args.quick else ["float32", "bfloat16"])
    return Plan(
        args.configuration,
        device,
        {**shape, "max_steps": steps},
        dtypes,
        args.seeds[:1] if args.quick else args.seeds,
        min(args.every, steps),
        compiled_peer=device == "cuda",
        tf32=args.tf32,
    )


def earlier(file: Path, plan: Plan) -> list[Run]:
    """The runs of `file` that `plan` wants too and that ended well.

    Raises:
        SystemExit: The file is of another configuration.
    """
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept["configuration"] != plan.configuration:
        raise SystemExit(f"{file}: measured {kept['configuration']}, not {plan.configuration}")
    runs = [Run(**run) for run in kept["runs"]]
    whole = plan.shape["max_steps"]
    return [
        run
        for run in runs
        if (run.program, run.dtype, run.seed) in plan.runs() and not run.error and run.curve[-1][0] == whole
    ]


def places(bench: Bench, jobs: int, gpus: int | None) -> list[Bench]:
    """One bench for each run that is made at a time: `jobs` of them, or as many on each of some GPUs."""
    return [replace(bench, gpu=gpu) for _ in range(jobs) for gpu in ([None] if gpus is None else range(gpus))]


def train_all(
    benches: Sequence[Bench], plan: Plan, wanted: Sequence[tuple[str, str, int]], keep: Callable[[Run], None]
) -> None:
    """Make the runs that are `wanted`, one on each bench at a time; `keep` is called with each when done."""
    free: SimpleQueue[Bench] = SimpleQueue()
    for bench in benches:
        free.put(bench)

    def on_free_bench(*run: Any) -> Run:
        bench = free.get()
        try:
            return train(bench, plan, *run)
        finally:
            free.put(bench)

    with ThreadPoolExecutor(len(benches)) as pool:
        for done in as_completed([pool.submit(on_free_bench, *run) for run in wanted]):
            keep(done.result())


def train(bench: Bench, plan: Plan, program: str, dtype: str, seed: int) -> Run:
    """One run; its failure is part of the result."""
    name = f"{program}-{dtype}-{seed}"
    try:
        with start(bench, plan, program, dtype, seed) as worker:
            curve, train_s = follow(worker, 0, plan.shape["max_steps"], plan.every)
    except WorkerError as e:
        print(f"{name} failed: {e}", flush=True)
        return Run(program, dtype, seed, [], 0.0, str(e))
    run = Run(program, dtype, seed, curve, train_s)
    print(f"{name}: val {run.final:.4f}, best {run.best:.4f}, {train_s:.0f} s", flush=True)
    return run


def start(bench: Bench, plan: Plan, program: str, dtype: str, seed: int) -> Worker:
    """The process of one run."""
    name = f"{program}-{dtype}-{seed}"
    if program == OURS:
        return bench.ours(settings(plan.shape, plan.device, dtype, seed=seed), name)
    config = hyperparameters({**plan.shape, "seed": seed})
    number = "float32" if dtype == TF32 else dtype
    return bench.nanogpt(config, plan.device, number, plan.compiled_peer, name, tf32=dtype == TF32)


def loss_rows(plan: Plan, runs: Sequence[Run]) -> list[Row]:
    """Our losses of each dtype beside nanoGPT's; on a CPU both dtypes are compared with its fp32."""
    pairs = [(dtype, dtype if plan.device == "cuda" else "float32") for dtype in plan.dtypes]
    if plan.tf32:
        pairs.append(("float32", TF32))
    rows = []
    for dtype, peer_dtype in pairs:
        ours = [run for run in runs if (run.program, run.dtype) == (OURS, dtype) and not run.error]
        theirs = [run for run in runs if (run.program, run.dtype) == (NANOGPT, peer_dtype) and not run.error]
        for what in ("final", "best"):
            beside = f" beside {TF32}" if peer_dtype == TF32 else ""
            name = f"{plan.configuration}, {dtype}{beside}: {what} val loss, whole split"
            if ours and theirs:
                mine, peer = [getattr(run, what) for run in ours], [getattr(run, what) for run in theirs]
                row = spread_row(name, mine, peer)
                rows.append(replace(row, goal="", met=None) if beside else row)  # another precision
            else:
                rows.append(unmeasured(name, "a program has no run that succeeded"))
    return rows


def spread_row(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Medians and ranges; met where the medians differ by at most nanoGPT's (max - min).

    One seed has no spread: there is no goal then.
    """
    mine, peer = statistics.median(ours), statistics.median(theirs)
    allowed = max(theirs) - min(theirs)
    met = abs(mine - peer) <= allowed if len(theirs) > 1 else None
    goal = f"difference <= {allowed:.4f}" if len(theirs) > 1 else ""
    note = f"{min(ours):.4f} to {max(ours):.4f} against {min(theirs):.4f} to {max(theirs):.4f}"
    spread = (max(ours) - min(ours)) / mine if len(ours) > 1 else None
    return Row(name, mine, "nats", "nanoGPT", peer, mine / peer, goal, met, spread, note)


if __name__ == "__main__":
    main()
