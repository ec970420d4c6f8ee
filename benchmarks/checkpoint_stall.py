"""What saving and uploading checkpoints costs a training loop, by the clock.

::

    python -m benchmarks.checkpoint_stall [--quick] [--json FILE] [--store URI]

A trainer process makes stretches of ten seconds of steps: without a checkpoint, with one that is saved, and
with one that is saved and committed to the store by another process, in turns. Weights and moments are 500
MB. Two things are told: how long the loop stands still for the snapshot, and how much longer a step takes in
a stretch with a checkpoint, as a share of the interval. The second contains what writing and uploading take
from the processor; on a machine with a GPU the loop does not need that. Here the loop has all cores but one,
and then all of them.
"""

from __future__ import annotations

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

from benchmarks.report import Row, parser, report, row
from orchestrator.contract import NullContext, parse_step, yield_processor
from orchestrator.store.checkpoints import CheckpointWriter
from orchestrator.store.objects import open_store, store_id
from orchestrator.store.runlog import RunLog

KINDS = ("plain", "saved", "committed")
LIMIT = 1.0
"""Per cent of the interval."""
SHAPE: dict[str, Any] = {
    "n_layer": 13,
    "n_head": 8,
    "n_embd": 512,
    "block_size": 64,
    "batch_size": 1,
    "device": "cpu",
    "compile": False,
    "max_steps": 1_000_000,
    "eval_interval": 1_000_000,
}
QUICK = {"n_layer": 3, "n_head": 4, "n_embd": 256}


def train(folder: Path, threads: int, stretch_s: float, rounds: int, quick: bool) -> None:
    """The trainer's process; prints what each stretch took as a JSON line."""
    import torch

    from trainer.config import TrainerConfig
    from trainer.train import Training

    torch.set_num_threads(threads)
    config = TrainerConfig.model_validate({**SHAPE, **(QUICK if quick else {})})
    training = Training(config, NullContext(), folder / "checkpoints")
    for _ in range(2):  # the snapshot's buffers are allocated, and everything is warm
        stretch(training, folder, "saved", stretch_s / 5)
    for number in range(rounds):
        for turn in range(len(KINDS)):
            kind = KINDS[(number + turn) % len(KINDS)]
            print(json.dumps({"kind": kind, **stretch(training, folder, kind, stretch_s)}), flush=True)
    training.close()


def stretch(training: Any, folder: Path, kind: str, stretch_s: float) -> dict[str, float]:
    """Steps for that long after a checkpoint, which is gone at the end."""
    (folder / "kind").write_text(kind)
    began = time.perf_counter()
    if kind != "plain":
        training.save()
    stood = time.perf_counter() - began
    steps = 0
    while time.perf_counter() - began < stretch_s:
        training.update()
        steps += 1
    seconds = time.perf_counter() - began
    training.writer.wait()
    while any(folder.glob("checkpoints/step-*")):
        time.sleep(0.05)
    return {"seconds": seconds, "steps": steps, "stood": stood, "late": time.perf_counter() - began - seconds}


def commit(folder: Path, uri: str) -> None:
    """The committer's process: takes every checkpoint, and stores those that are to be stored."""
    store = open_store(uri)
    store_id(store, create=True)
    yield_processor()  # as the agent does
    claim = RunLog(store, f"stall-{time.time_ns()}").claim(1, node="bench")
    writer = CheckpointWriter(store, claim)
    while True:
        for found in folder.glob("checkpoints/step-*"):
            if (folder / "kind").read_text() == "committed":
                step = parse_step(found.name)
                assert step is not None
                writer.commit(found, step, metrics={}, device="cpu", node="bench")
                writer.retain(1, 0, "loss", "min")
            subprocess.run(["rm", "-r", str(found)], check=True)
        time.sleep(0.05)


def measure(uri: str, threads: int, stretch_s: float, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Run both processes."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "benchmarks.checkpoint_stall", "--folder", name]
        committer = subprocess.Popen([*command, "--store", uri, "--part", "commit"])
        try:
            (Path(name) / "checkpoints").mkdir()
            size = [f"--threads={threads}", f"--stretch={stretch_s}", f"--rounds={rounds}"]
            done = subprocess.run(
                [*command, "--part", "train", *size, *(["--quick"] if quick else [])],
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
        finally:
            committer.kill()
            committer.wait()
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"kind"')]


def rows(where: str, threads: int, stretches: Sequence[dict[str, Any]]) -> list[Row]:
    """The table."""
    step_s = {kind: [s["seconds"] / s["steps"] for s in stretches if s["kind"] == kind] for kind in KINDS}
    plain = statistics.median(step_s["plain"])
    stood = [s["stood"] / s["seconds"] * 100 for s in stretches if s["kind"] != "plain"]
    of = f"{threads} of {os.cpu_count()} cores"
    found = [row(f"{where}: the loop stands still for a snapshot, {of}", stood, "%", limit=LIMIT)]
    for kind in KINDS[1:]:
        slower = [(1 - plain / seconds) * 100 for seconds in step_s[kind]]
        found.append(row(f"{where}: loop time lost, {kind}, {of}", slower, "%"))
    return found


def stall_rows(uri: str, quick: bool) -> list[Row]:
    """What `checkpoint_store` shows of it."""
    cores = os.cpu_count() or 1
    stretch_s, rounds = (2.0, 1) if quick else (10.0, 3)
    found: list[Row] = []
    for threads in dict.fromkeys((max(1, cores - 1), cores)):
        measured = measure(uri, threads, stretch_s, rounds, quick)
        found += rows("S3" if uri.startswith("s3:") else "folder", threads, measured)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--store", metavar="URI", help="the store (default: a folder of its own)")
    options.add_argument("--part", choices=("train", "commit"), help="be one of the processes")
    options.add_argument("--folder", type=Path)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--stretch", type=float, default=10.0)
    options.add_argument("--rounds", type=int, default=1)
    arguments = options.parse_args(argv)
    if arguments.part == "train":
        train(arguments.folder, arguments.threads, arguments.stretch, arguments.rounds, arguments.quick)
    elif arguments.part == "commit":
        commit(arguments.folder, arguments.store)
    else:
        with tempfile.TemporaryDirectory() as folder:
            uri = arguments.store or Path(folder, "store").as_uri()
            report(stall_rows(uri, arguments.quick), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
