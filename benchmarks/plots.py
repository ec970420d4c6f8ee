"""Draws the plots in ``docs/`` from the benchmarks' results.

``python -m benchmarks.plots parity RESULT.json docs/parity-gpu.svg``, or ``handover`` instead of ``parity``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.curves import Curve
from benchmarks.svg import COLOURS, Band, Line, Plot, render

NAMES = {"ours": "trainer", "nanogpt": "nanoGPT"}
SHORT = {"float32": "fp32", "bfloat16": "bf16", "tf32": "TF32"}
HEADROOM = 0.25
"""Nats above the lowest loss that the plot shows, as a share of that loss."""


def main() -> None:
    """Draw one plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("parity", "handover"))
    parser.add_argument("result", type=Path, nargs="+", help="JSON of trainer_parity (several: their runs)")
    parser.add_argument("svg", type=Path)
    args = parser.parse_args()
    results = [json.loads(file.read_text(encoding="utf-8")) for file in args.result]
    plot = parity_plot(results) if args.kind == "parity" else handover_plot(results[0])
    args.svg.write_text(render(plot), encoding="utf-8")
    print(args.svg)


def parity_plot(results: Sequence[dict[str, Any]]) -> Plot:
    """Median and range over the seeds of each program and dtype."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for run in (run for result in results for run in result["runs"] if not run["error"]):
        groups.setdefault((run["program"], run["dtype"]), []).append([(s, v) for s, v in run["curve"]])
    bands, lines = [], []
    for colour, ((program, dtype), curves) in zip(COLOURS, sorted(groups.items()), strict=False):
        label = f"{NAMES[program]}, {SHORT[dtype]}"
        band, line = spread(label, curves, colour)
        bands.append(replace(band, label=""))
        seeds = f"median and range of {len(curves)}"
        lines.append(replace(line, label=f"{label}: {seeds}", dashed=program == "nanogpt"))
    configuration = results[0]["configuration"]
    title = f"{configuration} configuration: loss over the whole val split"
    return Plot(title, "step", "nats", lines, bands, top=_top(lines))


def handover_plot(result: dict[str, Any]) -> Plot:
    """The handed-over run over the range of the runs on the second device."""
    lines: list[Line] = []
    bands: list[Band] = []
    second = {"cuda": "GPU", "cpu": "CPU"}[result["second"]]
    parts = {dtype: part for dtype, part in result["parts"].items() if "error" not in part}
    for number, (dtype, part) in enumerate(parts.items()):
        short = SHORT[dtype]
        curves = [[(s, v) for s, v in run["curve"]] for run in part["alone"]]
        bands.append(spread(f"{second} {short} from the start", curves, COLOURS[2 * number])[0])
        before = [(s, v) for s, v in part["before"]]
        if not number:
            lines.append(Line("CPU fp32", before, COLOURS[5]))
        after = [before[-1], *((s, v) for s, v in part["after"])]
        lines.append(Line(f"{second} {short}, from the CPU's checkpoint", after, COLOURS[2 * number + 1]))
    title = f"From CPU to {second} at step {result['switch']}: loss over the whole val split"
    return Plot(title, "step", "nats", lines, bands, mark_x=result["switch"], top=_top(lines) * 1.2)


def spread(label: str, curves: Sequence[Curve], colour: str) -> tuple[Band, Line]:
    """The range over some runs, and their median, at the steps that all of them have."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    losses = [dict(curve) for curve in curves]
    at = {step: [run[step] for run in losses] for step in steps}
    low = [(step, min(values)) for step, values in at.items()]
    high = [(step, max(values)) for step, values in at.items()]
    middle = [(step, statistics.median(values)) for step, values in at.items()]
    seeds = f"{len(curves)} seeds" if len(curves) > 1 else "1 seed"
    return Band(f"{label}, range of {seeds}", low, high, colour), Line(f"{label}, median", middle, colour)


def _top(lines: Sequence[Line]) -> float:
    lowest = min(loss for line in lines for _, loss in line.points)
    return lowest * (1 + HEADROOM)


if __name__ == "__main__":
    main()
