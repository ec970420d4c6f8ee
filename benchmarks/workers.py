"""Starts a program under test (:mod:`benchmarks.programs`) and tells it what to do."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import nanogpt
from benchmarks.serving import Slice
from trainer.config import TrainerConfig

STEPS_TIMEOUT_S = 900.0
"""The first steps of a program may include compiling it."""


class WorkerError(Exception):
    """A program under test failed or did not answer; the message has the end of its log."""


class Worker:
    """One program under test in a process of its own."""

    def __init__(self, spec: Mapping[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        self._facts: dict[str, Any] | None = None
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.programs", json.dumps(dict(spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                bufsize=0,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self, count: int, timeout_s: float = STEPS_TIMEOUT_S) -> Slice:
        """Make some steps.

        Raises:
            WorkerError: the program failed or took longer.
        """
        return Slice(**self.ask("steps", timeout_s, n=count))

    def val(self) -> float:
        """fp32 loss of the present weights over the whole val split."""
        return float(self.ask("val", 300.0))

    def facts(self) -> dict[str, Any]:
        """What the program says about itself; see the programs."""
        if self._facts is None:
            self._facts = dict(self.ask("facts", 300.0))
        return self._facts

    def ask(self, command: str, timeout_s: float, **arguments: Any) -> Any:
        """Give a command and wait for its answer.

        Raises:
            WorkerError: the program failed or did not answer in time.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a worker is started with pipes")
        try:
            stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerError(self._explained("ended")) from None
        if not select.select([stdout], [], [], timeout_s)[0]:
            raise WorkerError(self._explained(f"did not answer {command!r} within {timeout_s:g} s"))
        line = stdout.readline()
        if not line:
            raise WorkerError(self._explained("ended"))
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(self._explained(reply["error"]))
        return reply["answer"]

    def close(self) -> None:
        """End the program: politely, then not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _explained(self, what: str) -> str:
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
        return f"{self._log.stem} {what}\n{tail}"


SPIN = {"GOMP_SPINCOUNT": "1000"}
"""What ``python -m trainer`` sets before it loads PyTorch."""


@dataclass(frozen=True)
class Bench:
    """Where the programs are and how they are started."""

    checkout: Path
    folder: Path
    threads: int
    polite_peer: bool
    gpu: int | None = None
    """The only GPU that a program sees; None: those that this process sees."""

    def ours(self, config: dict[str, Any], name: str = "ours", restore: str | None = None) -> Worker:
        """Our trainer with these settings."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        spec = {"program": "ours", "settings": config, "folder": str(folder), "restore": restore}
        return Worker(spec, self.folder / f"{name}.log", {**self._environment(), **SPIN})

    def nanogpt(
        self, config: TrainerConfig, device: str, dtype: str, compiled: bool, name: str, tf32: bool = True
    ) -> Worker:
        """nanoGPT with these hyperparameters.

        `tf32`: whether the products of its fp32 are rounded to TF32 on a GPU, as its train.py has it.
        """
        started = nanogpt.arguments(config, device=device, dtype=dtype, compiled=compiled)
        started.append(f"--out_dir={self.folder / f'out-{name}'}")
        spec = {"program": "nanogpt", "folder": str(self.checkout), "arguments": started, "seed": config.seed}
        spec["tf32"] = tf32
        environment = {**self._environment(), **(SPIN if self.polite_peer else {})}
        return Worker(spec, self.folder / f"nanogpt-{name}.log", environment)

    def _environment(self) -> dict[str, str]:
        one = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": str(self.gpu)}
        return {"OMP_NUM_THREADS": str(self.threads), **one}


def prepared(checkout: Path, folder: Path, threads: int, polite_peer: bool) -> Bench:
    """A bench in an empty folder, with a copy of nanoGPT and its data."""
    copy = nanogpt.prepare(checkout.resolve(), folder / "nanogpt", TrainerConfig().dataset)
    return Bench(copy, folder, threads, polite_peer)
