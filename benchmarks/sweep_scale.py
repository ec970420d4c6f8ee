"""A sweep of 1,000 trivial trials on a real stack: does the controller's memory or latency grow?

The trials are a shell that writes one measurement, on the nodes that this script starts. Compared are the
first and the last tenth of the trials: the controller's memory (PSS), the answer to `GET /v1/sweeps`, and the
pause between trials. What a trial costs the sweep itself (settle, compare, sample, record with fsync) is
timed in this process, in the real controller over a cluster on paper, for random search and TPE.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.report import Row, parser, report, row
from orchestrator.agent.job import AgentJob
from orchestrator.messages_sweeps import SweepRequest
from orchestrator.spec.sweep import SweepSpec
from tests.paper import PaperCluster
from tests.stack import Stack, running_stack

WRITE = (
    'printf \'{"step": 1, "time": %s000, "metrics": {"loss": %s}}\\n\' $(date +%s) $X >> "$ORCH_METRICS_FILE"'
)


def main() -> None:
    """Measure and report."""
    options = parser(__doc__ or "")
    options.add_argument("--trials", type=int, default=1000)
    options.add_argument("--only", choices=("stack", "paper"))
    args = options.parse_args()
    trials = 60 if args.quick else args.trials
    rows: list[Row] = []
    if args.only != "stack":
        for kind in ("random", "tpe"):
            rows += on_paper(kind, trials)
    if args.only != "paper":
        with (
            tempfile.TemporaryDirectory(prefix="sweep-bench-") as folder,
            running_stack(Path(folder) / "home", "laptop:cpus=1", "gpu:cpus=1") as stack,
        ):
            rows += on_stack(stack, trials)
    report(rows, args.json)


def spec(trials: int, kind: str = "random") -> dict[str, Any]:
    """A sweep of trivial commands."""
    return {
        "name": "trivial",
        "base": {
            "command": {"argv": ["sh", "-c", WRITE], "env": {"X": "0"}},
            "placement": [{"pool": "laptop"}, {"pool": "gpu"}],
            "migrate": "never",
        },
        "space": {"command.env.X": {"float": [0.0, 1.0]}},
        "objective": {"metric": "loss"},
        "sampler": {"kind": kind},
        "budget": {"trials": trials},
        "parallel": 4,
    }


# ------------------------------------------------------------------ a real stack


def on_stack(stack: Stack, trials: int) -> list[Row]:
    """Submit, watch, compare the beginning with the end."""
    path = stack.home / "trivial.yaml"
    path.write_text(yaml.safe_dump(spec(trials)))
    sweep_id = stack.json("submit", str(path))["sweep_id"]
    controller = stack.service("controller")[0]
    samples: list[tuple[int, float, float, float]] = []
    while True:
        began = time.perf_counter()
        view = stack.get("/v1/sweeps", limit=1)[0]
        latency = (time.perf_counter() - began) * 1000
        done = sum(count for state, count in view["counts"].items() if state not in ("open", "rung"))
        samples.append((done, time.monotonic(), _pss(controller), latency))
        if view["state"] != "running":
            break
        time.sleep(0.5)
    found = stack.get(f"/v1/sweeps/{sweep_id}")
    complete = sum(trial["state"] == "complete" for trial in found["trials"])
    early = [one for one in samples if trials * 0.05 <= one[0] <= trials * 0.15]
    late = [one for one in samples if trials * 0.9 <= one[0] < trials]
    return [
        row("trials that completed", [float(complete)], "", limit=trials, at_most=False),
        _grown("controller's memory (PSS)", [one[2] for one in late], [one[2] for one in early], "MiB"),
        _grown("answer to GET /v1/sweeps", [one[3] for one in late], [one[3] for one in early], "ms", 2.0),
        _grown("pause between trials", [_pause(late)], [_pause(early)], "s", 1.2),
    ]


def _grown(name: str, late: list[float], early: list[float], unit: str, limit: float = 1.15) -> Row:
    peer = "the first tenth"
    return row(name, late, unit, peer=peer, peer_values=early, limit=limit, of="ratio", note="the last tenth")


def _pause(samples: list[tuple[int, float, float, float]]) -> float:
    (first, begin, *_), (last, end, *_) = samples[0], samples[-1]
    return (end - begin) / max(1, last - first)


def _pss(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / 2**20


# ------------------------------------------------------------------ on paper


def on_paper(kind: str, trials: int) -> list[Row]:
    """Milliseconds of the sweep's own work per trial, at the beginning and around the last one."""

    def curve(job: AgentJob, step: int) -> float:
        assert job.spec.command is not None
        return float(job.spec.command.env["X"])

    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as folder:
        cluster = PaperCluster(
            Path(folder), curve, pools={"laptop": 8}, every=1, mlflow_url="http://127.0.0.1:1"
        )
        values = spec(trials, kind)
        values["base"]["command"]["env"]["STEPS"] = "1"
        values["objective"] = {"metric": "val/loss"}
        values["base"]["placement"] = [{"pool": "laptop"}]
        sweeps, costs = cluster.controller.sweeps, []
        sweeps.submit(SweepRequest(spec=SweepSpec.model_validate(values), key="k"))
        look = sweeps.look

        def timed() -> float | None:
            before = _count(cluster)
            began = time.perf_counter()
            pause = look()
            more = _count(cluster) - before
            if more:
                costs.append((time.perf_counter() - began) * 1000 / more)
            return pause

        sweeps.look = timed  # type: ignore[method-assign]
        while cluster.controller.sweep_views.sweeps([], 1)[0].state == "running":
            cluster.step(5)
        cluster.controller._reports.shutdown(wait=True)
        cluster.crash()
    tenth = max(3, len(costs) // 10)
    name = f"a trial costs the sweep, {kind}"
    late, early = costs[-tenth:], costs[:tenth]
    note = f"the last tenth of {trials}; worst of them {max(late):.1f} ms"
    limit = 20.0 if kind == "random" else None
    return [
        row(name, late, "ms", peer="the first tenth", peer_values=early, limit=limit, note=note),
        row(f"{name}, median of all", [statistics.median(costs)], "ms"),
    ]


def _count(cluster: PaperCluster) -> int:
    return sum(len(live.trials) for live in cluster.controller.sweeps._live.values())


if __name__ == "__main__":
    main()
