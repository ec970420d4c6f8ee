"""How soon things happen: a freed slot is used, a run is cancelled, a run goes on elsewhere, a run begins.

On a stack of its own with two Ray nodes of one processor each (`laptop`, `gpu`). Programs write the times of
their start and end into files; the trainer's points carry theirs. The peer of a handover is the bare trainer,
`python -m trainer` resumed by hand from the same checkpoint, and that of a submit is the bare trainer from
the beginning; both interleaved with ours, one thread each, nanoGPT's laptop configuration.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Row, parser, report, row
from orchestrator.agent.launch import LaunchNote
from orchestrator.client import Client
from orchestrator.messages import SubmitRequest
from orchestrator.spec.models import RunSpec
from orchestrator.store.checkpoints import restore
from orchestrator.store.objects import open_store
from tests.stack import Stack, running_stack
from tests.support import WaitError, wait_until

ROOT = Path(__file__).parents[1]
WAIT_S = 180.0
SHORT = "date +%s.%N > $0.began; sleep 0.3; date +%s.%N > $0.ended"
STOPPED = """
import pathlib, signal, sys, time
def stop(*_):
    file.with_suffix(".told").write_text(repr(time.time()))
    sys.exit(75)
file = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, stop)
file.with_suffix(".began").write_text(repr(time.time()))
while True:
    signal.pause()
"""


def main() -> None:
    """Measure and report."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=7, help="handovers, and starts")
    options.add_argument("--slots", type=int, default=20, help="runs that wait for one slot; cancels")
    args = options.parse_args()
    rounds, slots = (2, 5) if args.quick else (args.rounds, args.slots)
    data = Path(os.environ["ORCH_DATA_DIR"]) if "ORCH_DATA_DIR" in os.environ else None
    nodes = ("laptop:cpus=1", "gpu:cpus=1")
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name)
        with running_stack(folder / "home", *nodes, data_dir=data) as stack:
            bench = Latency(stack, folder)
            rows: list[Row] = []
            for part, count in (
                (bench.freed_slots, slots),
                (bench.cancels, slots),
                (bench.handovers, rounds),
                (bench.starts, rounds),
            ):
                rows += part(count)
                report(rows, args.json, {"rounds": rounds, "slots": slots})


class Latency:
    """All measurements, on one stack."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        url = json.loads((stack.home / "client.json").read_text())["url"]
        self._client = Client(url, (stack.home / "token").read_text().strip())
        self._count = 0

    # ------------------------------------------------------------------ programs that tell their times

    def freed_slots(self, count: int) -> list[Row]:
        """From the end of one program to what follows in its slot: the next run's agent, and its program."""
        files = [self._folder / f"slot-{number}" for number in range(count + 1)]
        runs = [self._submit(argv=["sh", "-c", SHORT, str(file)]) for file in files]
        for run in runs:
            self._stack.wait_state(run, "succeeded", timeout=WAIT_S)
        spans = sorted(
            (_time(file, "began"), self._asked(run), _time(file, "ended"))
            for run, file in zip(runs, files, strict=True)
        )
        pairs = list(itertools.pairwise(spans))
        agents = [after[1] - before[2] for before, after in pairs]
        programs = [after[0] - before[2] for before, after in pairs]
        note = f"end of a program to the start of the next run's agent on the node; worst {max(agents):.3f} s"
        return [
            row("a freed slot is used after", agents, "s", limit=0.5, note=note),
            row("  and its next program begins after", programs, "s", note=f"worst {max(programs):.3f} s"),
        ]

    def _asked(self, run: str) -> float:
        """When the first attempt's agent was asked for on its node, in seconds since 1970."""
        (note,) = self._stack.home.glob(f"nodes/*/attempts/{run}-a1/launch.json")
        return LaunchNote.read(note).monotonic + time.time() - time.monotonic()

    def cancels(self, count: int) -> list[Row]:
        """From the request to SIGTERM at the program, and to the end on record."""
        told, ended = [], []
        for number in range(count):
            file = self._folder / f"cancel-{number}"
            run = self._submit(argv=["{python}", "-c", STOPPED, str(file)])
            wait_until(file.with_suffix(".began").exists, WAIT_S, self._stack.evidence)
            self._stack.wait_state(run, "running", timeout=WAIT_S)
            time.sleep(0.137 * (number % 8))  # anywhere between two beats
            began = time.time()
            self._client.cancel(run)
            detail = wait_until(lambda run=run: self._ended(run), WAIT_S, self._stack.evidence, every=0.01)  # type: ignore[misc]
            told.append(_time(file, "told") - began)
            ended.append(detail - began)
        note = f"median {statistics.median(told):.3f} s; a program without a checkpoint to write"
        return [
            row("cancel to SIGTERM at the program, worst", [max(told)], "s", limit=1.0, note=note),
            row("cancel to its end on record", ended, "s"),
        ]

    def _ended(self, run: str) -> float | None:
        ended = self._client.run(run).run.ended_at
        return ended.timestamp() if ended else None

    # ------------------------------------------------------------------ the trainer

    def handovers(self, rounds: int) -> list[Row]:
        """Last step there to first step here, there and back again, against the bare trainer."""
        config = self._config(max_steps=1_000_000)
        run = self._submit(trainer=config, pools=["laptop", "gpu"])
        ours, bare, parts = [], [], []
        for number in range(rounds):
            attempt = number + 1
            self._wait_steps(run, attempt, 40)
            self._client.move(run, ("gpu", "laptop")[number % 2])
            first = self._wait_steps(run, attempt + 1, 1)
            points = self._stack.get(f"/v1/runs/{run}/points", key="train/loss")
            last = max(point["time_ms"] for point in points if point["attempt"] == attempt)
            ours.append((first - last) / 1000)
            parts.append(self._parts(run, attempt, last / 1000))
            step = self._client.run(run).attempts[attempt].first_step
            assert step is not None
            trainer = self._stack.program(f"{run}-a{attempt + 1}")
            trainer.suspend()  # The bare one has the machine to itself, as ours had.
            try:
                bare.append(self._bare(config, self._checkpoint(run, step)))
            finally:
                trainer.resume()
        self._client.cancel(run)
        self._stack.wait_state(run, "cancelled", timeout=WAIT_S)
        rows = [
            row(
                "handover, last step there to first step here",
                ours,
                "s",
                peer="start and restore by hand",
                peer_values=bare,
                limit=1.5,
                of="ratio",
            )
        ]
        return [*rows, *_part_rows(parts)]

    def _parts(self, run: str, attempt: int, last: float) -> dict[str, float]:
        before, after = self._client.run(run).attempts[attempt - 1 : attempt + 1]
        assert before.ended_at is not None
        assert after.started_at is not None
        return {
            "last step to its end on record": before.ended_at.timestamp() - last,
            "end to the next attempt's placing": (after.created_at - before.ended_at).total_seconds(),
            "placing to program running": (after.started_at - after.created_at).total_seconds(),
            **{f"its {name}": seconds for name, seconds in after.timings.items()},
        }

    def starts(self, rounds: int) -> list[Row]:
        """Submit to first step, against the bare trainer's start."""
        config = self._config(max_steps=20)
        ours, bare, parts = [], [], []
        for _ in range(rounds):
            began = time.time()
            run = self._submit(trainer=config, pools=["laptop"])
            ours.append(self._wait_steps(run, 1, 1) / 1000 - began)
            detail = self._stack.wait_state(run, "succeeded", timeout=WAIT_S)
            parts.append(detail["attempts"][0]["timings"])
            bare.append(self._bare(config, None))
        rows = [row("submit to first step", ours, "s", peer="the bare trainer", peer_values=bare)]
        return [*rows, *_part_rows(parts)]

    def _wait_steps(self, run: str, attempt: int, count: int) -> int:
        """Wait until an attempt has so many points; time of its first in ms."""

        def there() -> list[int]:
            state = self._client.run(run)
            if state.run.state.value == "failed" or len(state.attempts) > attempt:
                raise WaitError(f"attempt {attempt} of {run} has ended: {state.run.message}")
            points = self._stack.get(f"/v1/runs/{run}/points", key="train/loss")
            times = [point["time_ms"] for point in points if point["attempt"] == attempt]
            return times if len(times) >= count else []

        return min(wait_until(there, WAIT_S, self._stack.evidence, every=0.1))

    def _checkpoint(self, run: str, step: int) -> Path:
        """The run's checkpoint of this step in a folder."""
        into = self._folder / f"checkpoint-{step}"
        store = open_store((self._stack.home / "store").as_uri())
        return restore(store, run, step, into).directory

    def _bare(self, config: dict[str, Any], checkpoint: Path | None) -> float:
        """Seconds from the start of a process to the first step that it has made."""
        self._count += 1
        out = self._folder / f"bare-{self._count}"
        out.mkdir()
        file, metrics = out / "config.json", out / "metrics.jsonl"
        file.write_text(json.dumps(config))
        env = {**self._stack.env, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ORCH_CPUS": "1"}
        env |= {"ORCH_METRICS_FILE": str(metrics), "ORCH_CHECKPOINT_DIR": str(out), "ORCH_DEVICE": "cpu"}
        env |= {"ORCH_RUN_ID": "bare", "ORCH_ATTEMPT": "1"}
        if checkpoint is not None:
            env["ORCH_RESTORE_DIR"] = str(checkpoint)
        argv = [sys.executable, "-m", "trainer", "--config", str(file), "--out", str(out)]
        began = time.time()
        with (out / "log").open("wb") as log:
            child = subprocess.Popen(argv, env=env, cwd=out, stdout=log, stderr=log)
        try:
            return wait_until(lambda: _first_step(metrics), WAIT_S, (out / "log").read_text) - began
        finally:
            child.kill()
            child.wait()

    def _config(self, max_steps: int) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load((ROOT / "configs/trainer/laptop.yaml").read_text())
        return {
            **config,
            "max_steps": max_steps,
            "lr_decay_steps": 2000,
            "eval_interval": 1_000_000,
            "checkpoint_interval": 1_000_000,
            "log_interval": 1,
            "sample_tokens": 0,
        }

    def _submit(
        self,
        argv: list[str] | None = None,
        trainer: dict[str, Any] | None = None,
        pools: Sequence[str] = ("laptop",),
    ) -> str:
        self._count += 1
        name = f"latency-{self._count}"
        spec: dict[str, Any] = {"name": name, "placement": [{"pool": pool, "cpus": 1} for pool in pools]}
        spec |= {"trainer": trainer} if trainer is not None else {"command": {"argv": argv}}
        request = SubmitRequest(spec=RunSpec.model_validate(spec), key=name)
        return self._client.submit(request).run_id


def _part_rows(parts: list[dict[str, float]]) -> list[Row]:
    names = dict.fromkeys(name for part in parts for name in part)
    return [row(f"  of which {name}", [p[name] for p in parts if name in p], "s") for name in names]


def _time(file: Path, what: str) -> float:
    return float(file.with_suffix(f".{what}").read_text())


def _first_step(metrics: Path) -> float | None:
    """When the first step's loss was measured, in seconds since 1970."""
    if not metrics.exists():
        return None
    for line in metrics.read_text().splitlines():
        point = json.loads(line)
        if "train/loss" in point["metrics"]:
            return float(point["time"]) / 1000
    return None


if __name__ == "__main__":
    main()
