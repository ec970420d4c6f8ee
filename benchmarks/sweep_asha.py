"""ASHA with rungs that climb from "laptop" to "gpu" against random search at equal compute, on real nodes.

A sweep of 12 trials of the laptop configuration (short) over learning rate and width, first rungs on one
Ray node and survivors on the other, as `orch submit` runs it; then random search with whole trials, as many
as fit into the steps that the first one took (rounded up, in its favour). Again for each seed. Compared is
the best val loss. What is measured does not depend on how busy the machine is; the times do.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Row, parser, report, row
from benchmarks.sweep_sampler import SPACE, settings
from tests.stack import Stack, running_stack
from tests.support import wait_until

FIRST, FACTOR = 40, 3


def main() -> None:
    """Measure and report."""
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--trials", type=int, default=12)
    args = options.parse_args()
    seeds, trials = (1, 6) if args.quick else (args.seeds, args.trials)
    data = Path(os.environ["ORCH_DATA_DIR"]) if "ORCH_DATA_DIR" in os.environ else None
    found: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="asha-bench-") as folder,
        running_stack(Path(folder) / "home", "laptop:cpus=1", "gpu:cpus=1", data_dir=data) as stack,
    ):
        for seed in range(seeds):
            found.append(pair(stack, seed, trials))
            print(found[-1], flush=True)
    report(rows(found), args.json, {"seeds": found})


def pair(stack: Stack, seed: int, trials: int) -> dict[str, Any]:
    """Both searches with one seed."""
    asha = finished(stack, spec(f"asha-{seed}", seed, trials, rungs=True))
    steps = sum(trial["step"] or 0 for trial in asha["trials"])
    whole = FIRST * FACTOR**2
    random = finished(stack, spec(f"random-{seed}", seed, max(1, -(-steps // whole)), rungs=False))
    return {
        "seed": seed,
        "asha": asha["sweep"]["best_value"],
        "random": random["sweep"]["best_value"],
        "asha_steps": steps,
        "random_steps": sum(trial["step"] or 0 for trial in random["trials"]),
        "asha_s": asha["seconds"],
        "random_s": random["seconds"],
        "random_trials": len(random["trials"]),
    }


def spec(name: str, seed: int, trials: int, *, rungs: bool) -> dict[str, Any]:
    """A sweep's spec."""
    none: dict[str, Any] = {"kind": "none"}
    asha = {"kind": "asha", "first_steps": FIRST, "factor": FACTOR, "pools": ["laptop", "gpu"]}
    return {
        "name": name,
        "base": {
            "experiment": "asha",
            "trainer": {**settings(FIRST * FACTOR**2), "eval_interval": FIRST},
            "placement": [{"pool": "laptop", "cpus": 1}, {"pool": "gpu", "cpus": 1}],
            "migrate": "never",
        },
        "space": SPACE,
        "sampler": {"kind": "random", "seed": seed},
        "pruner": asha if rungs else none,
        "budget": {"trials": trials},
        "parallel": 2,
    }


def finished(stack: Stack, values: dict[str, Any]) -> dict[str, Any]:
    """Run a sweep to its end; its detail, with `seconds`."""
    path = stack.home / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values))
    began = time.monotonic()
    sweep_id = stack.json("submit", str(path))["sweep_id"]

    def over() -> dict[str, Any] | None:
        detail = stack.get(f"/v1/sweeps/{sweep_id}")
        return detail if detail["sweep"]["state"] != "running" else None

    detail = wait_until(over, 3600, stack.evidence, every=1.0)
    assert detail["sweep"]["state"] == "finished", detail["sweep"]["message"]
    return {**detail, "seconds": time.monotonic() - began}


def rows(found: list[dict[str, Any]]) -> list[Row]:
    """What is reported."""
    peer = "random search, equal compute"
    return [
        row(
            "best val loss, ASHA",
            [one["asha"] for one in found],
            "nats",
            peer=peer,
            peer_values=[one["random"] for one in found],
            limit=1.0,
            of="ratio",
        ),
        row(
            "steps of training, ASHA",
            [float(one["asha_steps"]) for one in found],
            "steps",
            peer=peer,
            peer_values=[float(one["random_steps"]) for one in found],
        ),
        row(
            "wall time of the sweep, ASHA",
            [one["asha_s"] for one in found],
            "s",
            peer=peer,
            peer_values=[one["random_s"] for one in found],
        ),
        row(
            "seeds in which ASHA is at least as good",
            [100.0 * statistics.fmean(one["asha"] <= one["random"] for one in found)],
            "%",
        ),
    ]


if __name__ == "__main__":
    main()
