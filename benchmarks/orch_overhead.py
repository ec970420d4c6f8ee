"""What training under `orch` costs, and how long it takes to begin.

Interleaved: the configuration as `python -m trainer`, then the same as `orch submit`, again and again, on the
stack that this script starts. Compared are the medians of the time per step that the trainer itself measures.
Also: submit to first step with the parts that it is made of, and `orch ls` as a whole process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Row, parser, report, row
from tests.stack import Stack, running_stack

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and report."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--steps", type=int, default=600)
    args = options.parse_args()
    rounds, steps = (2, 200) if args.quick else (args.rounds, args.steps)
    data = Path(os.environ["ORCH_DATA_DIR"]) if "ORCH_DATA_DIR" in os.environ else None
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
        config = _config(Path(folder), steps)
        with running_stack(Path(folder) / "home", "laptop:cpus=1", data_dir=data) as stack:
            rows = measure(stack, config, Path(folder), rounds)
    report(rows, args.json)


def measure(stack: Stack, config: dict[str, Any], folder: Path, rounds: int) -> list[Row]:
    """All figures."""
    alone, under, first, parts = [], [], [], []
    for number in range(rounds):
        alone.append(_alone(stack, config, folder / f"alone-{number}"))
        step_ms, seconds, timings = _under(stack, config, number)
        under.append(step_ms)
        first.append(seconds)
        parts.append(timings)
    rows = [
        row(
            "time per step, orch submit",
            under,
            "ms",
            peer="python -m trainer",
            peer_values=alone,
            limit=1.03,
            of="ratio",
        ),
        row("submit to first step", first, "s", limit=8.0),
    ]
    for name in parts[0]:
        rows.append(row(f"  of which {name}", [p.get(name, 0.0) for p in parts], "s"))
    listing = [_timed(stack, "ls") for _ in range(max(5, 2 * rounds))]
    bare = [_timed_python() for _ in range(max(5, 2 * rounds))]
    rows.append(row("orch ls", listing, "s", peer="python -c pass", peer_values=bare, limit=0.4))
    return rows


def _config(folder: Path, steps: int) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/trainer/laptop.yaml").read_text())
    config.update(max_steps=steps, lr_decay_steps=2000, eval_interval=steps, sample_tokens=0)
    (folder / "config.json").write_text(json.dumps(config))
    return config


def _alone(stack: Stack, config: dict[str, Any], out: Path) -> float:
    """Median ms per step of the plain trainer on one thread."""
    argv = [sys.executable, "-m", "trainer", "--config", str(out.parent / "config.json"), "--out", str(out)]
    env = {**stack.env, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, cwd=out.parent)
    found = [line.split(" ms/step")[0].split()[-1] for line in done.stdout.splitlines() if " ms/step" in line]
    return statistics.median(map(float, found[1:]))


def _under(stack: Stack, config: dict[str, Any], number: int) -> tuple[float, float, dict[str, float]]:
    """Median ms per step under `orch`, seconds from submit to the first step, and its parts."""
    spec = {
        "name": f"bench-{number}",
        "trainer": config,
        "placement": [{"pool": "laptop", "cpus": 1}],
        "checkpoint": {"every_steps": 200},
    }
    began = time.time()
    run_id = stack.submit(spec)
    detail = stack.wait_state(run_id, "succeeded", timeout=600)
    points = stack.get(f"/v1/runs/{run_id}/points", key="perf/step_ms")
    first = stack.get(f"/v1/runs/{run_id}/points", key="train/loss")[0]
    values = [point["value"] for point in points[1:]]
    return statistics.median(values), first["time_ms"] / 1000 - began, detail["attempts"][0]["timings"]


def _timed(stack: Stack, *arguments: str) -> float:
    began = time.perf_counter()
    stack.orch(*arguments)
    return time.perf_counter() - began


def _timed_python() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
