"""TPE against random search: 30 points each, over learning rate and width of the laptop configuration.

The points come from the very class that sweeps use; each is trained by the trainer itself, in this process's
children, one thread each, for fewer steps than the whole configuration has. Both samplers get the same seeds.
Reported is the best val loss after 30 points, and after how many points TPE has reached what random search
has at its end. What is measured does not depend on how busy the machine is. `--svg FILE` draws the curves.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.report import Row, parser, report, row
from benchmarks.svg import COLOURS, Band, Line, Plot, render
from orchestrator.control.sampling import Search
from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.spec.sweep import SweepSpec

POINTS = 30
SPACE = {
    "trainer.learning_rate": {"float": [1e-4, 3e-2], "log": True},
    "trainer.n_embd": {"choice": [32, 48, 64, 96, 128, 160, 192]},
}
KINDS = ("random", "tpe")


def main() -> None:
    """Measure and report."""
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=5, help="searches of each kind")
    options.add_argument("--steps", type=int, default=150, help="of each trial")
    options.add_argument("--processes", type=int, default=2, help="searches at a time")
    options.add_argument("--svg", type=Path, metavar="FILE", help="draw the curves here")
    args = options.parse_args()
    seeds, points, steps = (2, 8, 40) if args.quick else (args.seeds, POINTS, args.steps)
    tasks = [(kind, seed, points, steps) for seed in range(seeds) for kind in KINDS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        found = list(pool.map(search, tasks))
    curves: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for (kind, *_), trials in zip(tasks, found, strict=True):
        curves[kind].append(list(accumulate((value for _, value in trials), min)))
    if args.svg:
        args.svg.write_text(render(plot(curves, steps)), encoding="utf-8")
    searches = [{"kind": k, "seed": s, "trials": t} for (k, s, *_), t in zip(tasks, found, strict=True)]
    report(rows(curves), args.json, {"steps": steps, "searches": searches})


def search(task: tuple[str, int, int, int]) -> list[tuple[dict[str, Any], float]]:
    """One search: each point and its best val loss, in order."""
    kind, seed, points, steps = task
    spec = SweepSpec.model_validate(
        {
            "name": "search",
            "base": {"trainer": settings(steps)},
            "space": SPACE,
            "sampler": {"kind": kind, "seed": seed},
            "budget": {"trials": points},
        }
    )
    chooser = Search(spec)
    history: list[TrialRecord] = []
    for number in range(points):
        suggestion = chooser.ask(history, number)
        assert suggestion is not None
        value = best_val(spec, suggestion.params, number)
        history.append(_trial(number, suggestion.params, suggestion.attrs, value))
        print(json.dumps({"search": kind, "seed": seed, "trial": number, "value": value}), flush=True)
    return [(trial.params, trial.value or 0.0) for trial in history]


def settings(steps: int) -> dict[str, Any]:
    """The laptop configuration, shorter."""
    return {
        "dataset": "tiny-shakespeare",
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "block_size": 64,
        "batch_size": 12,
        "max_steps": steps,
        "warmup_steps": steps // 10,
        "min_lr": 0.0,
        "beta2": 0.99,
        "eval_interval": steps // 3,
        "eval_batches": 20,
        "log_interval": steps,
        "sample_tokens": 0,
        "compile": False,
        "dtype": "float32",
        "device": "cpu",
    }


def best_val(spec: SweepSpec, params: dict[str, Any], number: int) -> float:
    """Train one point in this process; its best val loss."""
    import tempfile

    from orchestrator.contract import NullContext
    from trainer.train import Training

    run = spec.trial_spec(params, number, 0)
    assert run.trainer is not None
    with tempfile.TemporaryDirectory(prefix="search-") as folder, open(os.devnull, "w") as nowhere:
        import contextlib

        with contextlib.redirect_stdout(nowhere):
            outside = NullContext(Path(folder))
            outside.cpus = 1
            training = Training(run.trainer, outside, Path(folder))
            training.run()
    assert training.best is not None
    return training.best.val


def _trial(number: int, params: dict[str, Any], attrs: dict[str, Any], value: float) -> TrialRecord:
    at = datetime(2027, 1, 1, tzinfo=UTC)
    return TrialRecord(
        "search", number, f"r{number}", number, 0, params, TrialState.COMPLETE, at, attrs=attrs, value=value
    )


def rows(curves: dict[str, list[list[float]]]) -> list[Row]:
    """What is reported."""
    ends = {kind: [curve[-1] for curve in found] for kind, found in curves.items()}
    pairs = zip(ends["tpe"], ends["random"], strict=True)
    needed = [
        float(next((n for n, value in enumerate(tpe, 1) if value <= random[-1]), len(tpe) + 1))
        for tpe, random in zip(curves["tpe"], curves["random"], strict=True)
    ]
    peer = f"random, {len(curves['random'][0])} points"
    return [
        row(
            "best val loss, TPE",
            ends["tpe"],
            "nats",
            peer=peer,
            peer_values=ends["random"],
            limit=1.0,
            of="ratio",
        ),
        row("points until TPE is as good", needed, "points", peer=peer),
        row("searches in which TPE ends lower", [100.0 * statistics.fmean(a < b for a, b in pairs)], "%"),
    ]


def plot(curves: dict[str, list[list[float]]], steps: int) -> Plot:
    """Best so far by number of points: median and range over the seeds."""
    lines, bands = [], []
    for colour, (kind, found) in zip(COLOURS, curves.items(), strict=False):
        by_point = list(zip(*found, strict=True))
        x = [float(n) for n in range(1, len(by_point) + 1)]
        middle = [statistics.median(values) for values in by_point]
        name = {"tpe": "TPE", "random": "random"}[kind]
        lines.append(
            Line(f"{name}: median and range of {len(found)}", list(zip(x, middle, strict=True)), colour)
        )
        low = [(a, min(v)) for a, v in zip(x, by_point, strict=True)]
        high = [(a, max(v)) for a, v in zip(x, by_point, strict=True)]
        bands.append(Band("", low, high, colour))
    title = f"laptop configuration, {steps} steps: best val loss over learning rate and width"
    worst = max(y for line in lines for _, y in line.points[4:])
    return Plot(title, "points tried", "nats", lines, bands, top=worst * 1.05)


if __name__ == "__main__":
    main()
