"""How many trivial runs a machine gets through a second, against Ray Tune and Ray Jobs; the cost of waiting.

200 runs of `true`, each on one of the same number of processors, in batches: ours, Tune, Jobs, ours, ... Ours
is the stack that `orch up` starts, with MLflow; a batch has ended when the controller shows every run as
succeeded, and the next begins once MLflow has them all too. A trial of Tune is a fresh actor that runs
`true`. Before that, the processor time of the idle stack, by part. Needs `ray[tune]` for Tune; what MLflow
needs is enough.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.peers import Peer
from benchmarks.report import Row, parser, report, row, unmeasured, write
from orchestrator.client import Client
from orchestrator.messages import SubmitRequest
from orchestrator.settings import Home
from orchestrator.spec.models import RunSpec
from tests.stack import Stack, running_stack
from tests.support import WaitError, wait_until

FINAL_S = 600.0


def main() -> None:
    """Measure and report."""
    options = parser(__doc__ or "")
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--batch", type=int, default=25)
    options.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    options.add_argument("--idle", type=float, default=90.0, metavar="S", help="0: not measured")
    options.add_argument("--no-peers", action="store_true")
    options.add_argument("--mlflow", default=None, help="as `orch up` takes it; `none` for none")
    args = options.parse_args()
    batches, size = (2, 10) if args.quick else (max(1, args.runs // args.batch), args.batch)
    up = ("--mlflow", args.mlflow) if args.mlflow else ()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder, contextlib.ExitStack() as running:
        stack = running.enter_context(running_stack(Path(folder) / "home", f"box:cpus={args.cpus}", up=up))
        if args.idle:
            rows += idle(stack, args.idle if not args.quick else min(args.idle, 20.0))
            report(rows, args.json)
        ours = Ours(stack)
        contenders: dict[str, Callable[[int], float]] = {"ours": ours.run}
        if not args.no_peers:
            # Jobs first: it needs a port that is the same for every Ray, which Tune can do without.
            for name in ("jobs", "tune"):
                contenders[name] = running.enter_context(Peer(name, args.cpus, Path(folder) / name)).run
        for run in contenders.values():
            run(2)
        seconds = {name: [] for name in contenders}
        extra = {"batches": batches, "size": size, "cpus": args.cpus, "seconds": seconds}
        for number in range(batches):
            for name, run in contenders.items():
                seconds[name].append(run(size))
                print(f"batch {number + 1} {name}: {size / seconds[name][-1]:.2f} runs/s", flush=True)
            if args.json is not None:  # so that nothing is lost where it is cut off
                write(rows + throughput(seconds, size), args.json, extra)
        rows += throughput(seconds, size) + ours.parts()
    report(rows, args.json, extra)


def throughput(seconds: dict[str, list[float]], size: int) -> list[Row]:
    """Runs per second, each peer against ours from the same run."""
    rate = {name: [size / s for s in found] for name, found in seconds.items()}
    goals = {"tune": ("Ray Tune, an actor a trial", 1.0), "jobs": ("Ray Jobs", 1.5)}
    rows = []
    for name, (title, limit) in goals.items():
        if name in rate:
            rows.append(
                row(
                    f"runs per second, against {title}",
                    rate["ours"],
                    "/s",
                    peer=title,
                    peer_values=rate[name],
                    limit=limit,
                    of="ratio",
                    at_most=False,
                )
            )
        else:
            rows.append(unmeasured(f"runs per second, against {title}", "without peers"))
    if len(rate) == 1:
        rows.append(row("runs per second", rate["ours"], "/s"))
    return rows


class Ours:
    """Runs through the stack, as a user's script would submit them."""

    def __init__(self, stack: Stack) -> None:
        self._home = Home(stack.home)
        self._stack = stack
        self._client = Client(*_address(stack))
        self._ids: list[str] = []
        self._count = 0

    def run(self, count: int) -> float:
        """Seconds from the first submit to the last end; returns once MLflow has been told everything."""
        began = time.perf_counter()
        ids = [self._submit() for _ in range(count)]
        wait_until(lambda: self._ended(ids), FINAL_S, self._stack.evidence)
        seconds = time.perf_counter() - began
        self._ids += ids
        wait_until(lambda: not _pending(self._home.points_file), FINAL_S)
        return seconds

    def _submit(self) -> str:
        self._count += 1
        spec = RunSpec.model_validate(
            {
                "name": f"bench-{self._count}",
                "experiment": "throughput",
                "command": {"argv": ["true"]},
                "placement": [{"pool": "box", "cpus": 1}],
            }
        )
        return self._client.submit(SubmitRequest(spec=spec, key=f"bench-{self._count}")).run_id

    def _ended(self, ids: list[str]) -> bool:
        states = {run.id: run.state.value for run in self._client.runs(limit=len(ids))}
        bad = [run for run in ids if states.get(run) in ("failed", "cancelled")]
        if bad:
            raise WaitError(f"{bad[0]} did not succeed\n{self._stack.evidence()}")
        return all(states.get(run) == "succeeded" for run in ids)

    def parts(self) -> list[Row]:
        """Where the time of a run goes, from the attempts' own records."""
        spans: dict[str, list[float]] = {}
        for run in self._ids:
            attempt = self._client.run(run).attempts[0]
            placed, began, ended = attempt.created_at, attempt.started_at, attempt.ended_at
            if began and ended:
                spans.setdefault("placed to program started", []).append((began - placed).total_seconds())
                spans.setdefault("program started to end recorded", []).append(
                    (ended - began).total_seconds()
                )
            for name, seconds in attempt.timings.items():
                spans.setdefault(name, []).append(seconds)
        return [row(f"  of which {name}", values, "s") for name, values in spans.items()]


def _address(stack: Stack) -> tuple[str, str]:
    url = json.loads((stack.home / "client.json").read_text())["url"]
    return str(url), (stack.home / "token").read_text().strip()


def _pending(points: Path) -> int:
    """Tasks for MLflow that wait."""
    with contextlib.closing(sqlite3.connect(f"file:{points}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM outbox WHERE state = 'pending'").fetchone()[0])


# ---------------------------------------------------------------------- idle


def idle(stack: Stack, seconds: float) -> list[Row]:
    """Processor time per second of what waits for work, in percent of one core."""
    time.sleep(60.0)  # until everything has settled after the start
    before = _used(stack)
    began = time.perf_counter()
    time.sleep(seconds)
    after = _used(stack)
    took = time.perf_counter() - began
    percent: dict[str, float] = {}
    for key, (part, used) in after.items():
        percent[part] = percent.get(part, 0.0) + 100 * (used - before.get(key, (part, 0.0))[1]) / took
    note = f"over {took:.0f} s"
    ours = sum(value for part, value in percent.items() if part.startswith("ours"))
    rays = sum(value for part, value in percent.items() if part.startswith("Ray"))
    rows = [
        row("idle: the whole control plane", [sum(percent.values())], "%", limit=2.0, note=note),
        row("idle: our processes", [ours], "%", note=note),
        row("idle: Ray's daemons", [rays], "%", note=note),
    ]
    return [*rows, *(row(f"  of which {part}", [value], "%") for part, value in sorted(percent.items()))]


def _used(stack: Stack) -> dict[tuple[int, float], tuple[str, float]]:
    """Processor seconds of every process of the stack, and which part it belongs to."""
    found = {}
    for process in psutil.process_iter(["pid", "create_time", "cmdline"]):
        try:
            mine = process.environ().get("ORCH_HOME") == str(stack.home)
            times = process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        command = " ".join(process.info["cmdline"] or [])
        if not mine and str(stack.home) not in command:
            continue
        used = times.user + times.system
        found[process.info["pid"], process.info["create_time"]] = (_part(command), used)
    return found


def _part(command: str) -> str:
    for sign, part in (
        ("mlflow.server", "MLflow"),
        ("orchestrator.cluster.supervisor", "ours: supervisor"),
        ("orchestrator.api", "ours: controller"),
        ("orchestrator.cluster.ray_gateway", "ours: Ray driver of the controller"),
        ("orchestrator.", "ours: other"),
        ("gcs_server", "Ray: GCS"),
        ("raylet/raylet", "Ray: raylets"),
        ("runtime_env", "Ray: runtime environment agents"),
        ("dashboard/agent", "Ray: metrics agents"),
    ):
        if sign in command:
            return part
    return "Ray: " + " ".join(command.split()[:3])[-60:]


if __name__ == "__main__":
    main()
