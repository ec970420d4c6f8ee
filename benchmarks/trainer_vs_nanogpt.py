"""The trainer against nanoGPT's own train.py: time per step, and time to a loss.

Both are processes of their own that make a slice of steps in turn while the other sleeps, again and again, in
the steady state. nanoGPT runs its unchanged loop, eager and with `torch.compile`. A speed-up is the median of
the rounds' ratios, each of two slices that ran one after the other. A finished part writes its rows at once.

On a CPU, nanoGPT trains in fp32. Its threads wait for each other as PyTorch's default has it, ours as
``python -m trainer`` sets it; `--polite-peer` gives nanoGPT ours, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import CASES, GPU, LAPTOP, Case, Device, hyperparameters, settings
from benchmarks.report import Row, row, unmeasured
from benchmarks.serving import Slice
from benchmarks.to_loss import FAST_CPU, FAST_GPU, compute_to_loss, time_to_loss
from benchmarks.workers import Bench, Worker, WorkerError, prepared
from trainer import processor


def main() -> None:
    """Measure and report."""
    args = _options()
    threads = args.threads or len(os.sched_getaffinity(0))
    rows: list[Row] = []
    raw: dict[str, Any] = {"threads": threads, "cases": {}}
    failed = False
    with tempfile.TemporaryDirectory(prefix="trainer-bench-") as name:
        bench = prepared(args.nanogpt, Path(name), threads, args.polite_peer)
        for part, measure in _parts(bench, args).items():
            print(f"\n{part}", flush=True)
            try:
                found, details = measure()
            except (WorkerError, OSError, ValueError, LookupError, ArithmeticError) as e:
                traceback.print_exc()  # the other parts are measured all the same
                failed = True
                found, details = [unmeasured(part, str(e))], {"error": str(e)}
            rows += found
            raw["cases"][part] = details
            if args.json is not None:
                report.write(rows, args.json, raw)
    report.report(rows, args.json, raw)
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    options = report.parser(__doc__ or "")
    names = [*(case.name for case in CASES), "time-to-loss", "compute-to-loss"]
    options.add_argument("--nanogpt", type=Path, required=True, metavar="PATH", help="checkout of nanoGPT")
    options.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if PyTorch sees a GPU")
    options.add_argument("--only", nargs="+", choices=names, help="measure these parts, `--quick` or not")
    options.add_argument("--threads", type=int, help="of both, default: all cores")
    options.add_argument("--rounds", type=int, help="instead of each case's own number")
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[1337, 1, 2, 3, 4], help="of the fast recipe"
    )
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours, in time per step"
    )
    options.add_argument("--set-fast", action="append", default=[], metavar="KEY=VALUE", help="… to a loss")
    options.add_argument("--polite-peer", action="store_true", help="nanoGPT's threads sleep soon, too")
    return options.parse_args()


Measure = Callable[[], tuple[list[Row], dict[str, Any]]]


def _parts(bench: Bench, args: argparse.Namespace) -> dict[str, Measure]:
    """What to measure, by name, in order."""
    device = args.device or default_device()
    extra = dict(parse_setting(text) for text in args.set)
    parts: dict[str, Measure] = {}
    for case in CASES:
        chosen = case.name in args.only if args.only else case.device == device
        if not chosen or (args.quick and not case.quick and not args.only):
            continue
        case = sized(case, args.quick, args.rounds)
        parts[case.name] = lambda case=case: per_step(bench, case, extra)  # type: ignore[misc]
    gpu, laptop, seeds = _until_losses(args)
    if _wanted("time-to-loss", args, device == "cuda"):
        parts["time-to-loss"] = lambda: time_to_loss(bench, GPU, gpu, seeds)
    if _wanted("compute-to-loss", args, device == "cpu"):
        steps = 200 if args.quick else LAPTOP["max_steps"]
        shape = {**LAPTOP, "max_steps": steps}
        parts["compute-to-loss"] = lambda: compute_to_loss(bench, shape, laptop, seeds[:3])
    return parts


def _until_losses(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """Settings of the fast recipe on a GPU and on a CPU, and its seeds."""
    fast = dict(parse_setting(text) for text in args.set_fast)
    gpu, laptop = {**FAST_GPU, **fast}, {**FAST_CPU, **fast}
    if args.quick:
        laptop = {**laptop, "max_steps": 80}
    return gpu, laptop, args.seeds[:1] if args.quick else args.seeds


def sized(case: Case, quick: bool, rounds: int | None) -> Case:
    """The case in fewer and shorter rounds; without compiling nanoGPT where it has to be quick."""
    if quick:
        case = replace(case, goals={"eager": case.goals["eager"]}, **case.quick)
    return replace(case, rounds=rounds) if rounds else case


def _wanted(name: str, args: argparse.Namespace, here: bool) -> bool:
    return name in args.only if args.only else here and not args.quick


def default_device() -> Device:
    """``cuda`` where PyTorch sees a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` as the trainer's ``--set`` reads it.

    Raises:
        ValueError: there is no ``=``.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text}: expected key=value")
    return key, yaml.safe_load(value)


def per_step(bench: Bench, case: Case, extra: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """Time per step of ours and of nanoGPT's variants in turn."""
    if case.device == "cpu" and case.dtype == "bfloat16" and not processor.multiplies_bf16():
        reason = "this processor has neither AVX512-BF16 nor AMX; the fp32 figure stands"
        goals = [(peer, f"value >= {goal:g}") for peer, goal in case.goals.items() if goal is not None]
        return [unmeasured(f"{case.name}: speed-up over {peer}", reason, goal) for peer, goal in goals], {}
    config = {**settings(case.shape, case.device, case.dtype), **extra}
    peer_dtype = "bfloat16" if case.device == "cuda" else "float32"
    rows: list[Row] = []
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(bench.ours(config))}
        warm(workers["ours"], case)
        for peer in case.goals:
            compiled = peer == "compiled"
            worker = bench.nanogpt(hyperparameters(case.shape), case.device, peer_dtype, compiled, peer)
            stack.enter_context(worker)
            try:
                warm(worker, case)
            except WorkerError as e:
                rows.append(unmeasured(f"{case.name}: speed-up over {peer}", str(e)))
                continue
            workers[peer] = worker
        slices = in_turn(workers, case)
        facts = workers["ours"].facts()
    rows = case_rows(case, slices, facts) + rows
    return rows, {"settings": config, "facts": facts, "slices": _plain(slices)}


def warm(worker: Worker, case: Case) -> None:
    """Compile, fill caches, and reach the steady state."""
    first = worker.steps(case.warm_up)
    again = worker.steps(case.steps)
    print(f"  warm: {first.wall_s:.1f} s, then {again.ms:.3g} ms per step", flush=True)


def in_turn(workers: dict[str, Worker], case: Case) -> dict[str, list[Slice]]:
    """One slice of each program, `rounds` times."""
    slices: dict[str, list[Slice]] = {name: [] for name in workers}
    for _ in range(case.rounds):
        for name, worker in workers.items():
            slices[name].append(worker.steps(case.steps))
        print("  " + "  ".join(f"{n} {done[-1].ms:.3f} ms" for n, done in slices.items()), flush=True)
    return slices


def case_rows(case: Case, slices: dict[str, list[Slice]], facts: dict[str, Any]) -> list[Row]:
    """Speed-ups and times against each peer, and how near ours is to the device's limit."""
    ours = slices["ours"]
    rows = []
    for peer, theirs in slices.items():
        if peer == "ours":
            continue
        name, label = f"{case.name}: %s", f"nanoGPT {peer}"
        faster = [b.wall_s / a.wall_s for a, b in zip(ours, theirs, strict=True)]
        limit = case.goals[peer]
        rows.append(row(name % f"speed-up over {peer}", faster, "x", limit=limit, at_most=False))
        rows.append(
            row(
                name % "time per step",
                [s.ms for s in ours],
                "ms",
                peer=label,
                peer_values=[s.ms for s in theirs],
            )
        )
        if case.device == "cpu":
            rows.append(
                row(
                    name % "processor time per step",
                    [s.cpu_ms for s in ours],
                    "ms",
                    peer=label,
                    peer_values=[s.cpu_ms for s in theirs],
                )
            )
    return rows + limit_rows(case, ours, facts)


def limit_rows(case: Case, ours: list[Slice], facts: dict[str, Any]) -> list[Row]:
    """The share of the measured GEMM peak, and nanoGPT's convention of 312 TFLOP/s.

    Other programs on the machine lower the share by the clock, but not that by processor time.
    """
    flops, peak = facts["flops_per_step"], facts["gemm_flops"]
    note = f"{peak / 1e12:.4g} TFLOP/s measured, {facts['dtype']}"
    note += ", compiled" if facts["compiled"] else ", not compiled"
    share = f"{case.name}: share of the GEMM peak"
    rates = [flops * s.steps / s.wall_s for s in ours]
    rows = [row(share, [rate / peak * 100 for rate in rates], "%", note=note)]
    if case.device == "cpu":
        busy = [flops * s.steps / s.cpu_s * facts["threads"] / peak * 100 for s in ours]
        rows.append(row(f"{share}, by processor time", busy, "%", note=note))
    name = f"{case.name}: MFU by nanoGPT's convention"
    return [*rows, row(name, [rate / 312e12 * 100 for rate in rates], "%")]


def _plain(slices: dict[str, list[Slice]]) -> dict[str, Any]:
    summary = {name: statistics.median(s.ms for s in found) for name, found in slices.items()}
    return {"median_ms": summary, **{name: [asdict(s) for s in found] for name, found in slices.items()}}


if __name__ == "__main__":
    main()
