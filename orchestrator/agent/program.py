"""The training program of an attempt: its command line, its environment, and its life through the keeper."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.agent.gpu_share import gpu_share
from orchestrator.agent.identity import session_members
from orchestrator.agent.job import AgentJob
from orchestrator.agent.workdir import WorkDir
from orchestrator.clock import SYSTEM, Clock
from trainer.config import TrainerConfig

_KEEPER = Path(__file__).with_name("keeper.py")
_SECRETS = frozenset(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"}
)
"""The store's credentials. A program that prints its environment would put them into the run's log."""
_OURS = "ORCH_"
_KEPT = frozenset({"ORCH_DATA_DIR", "ORCH_CACHE_DIR"})
"""What a program may inherit of our own variables."""


@dataclass(frozen=True)
class Command:
    """What to execute."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    output: str
    cores: list[int] = field(default_factory=list)
    """Processors that it may run on; all where there are none."""


def build_command(
    job: AgentJob,
    folder: WorkDir,
    base_env: Mapping[str, str],
    *,
    gpus: bool,
    resume: Path | None,
    mlflow_run_id: str | None,
    shared_cache: Path | None = None,
    ranks: Mapping[str, str] = MappingProxyType({}),
    network: Mapping[str, str] = MappingProxyType({}),
    cores: Sequence[int] = (),
) -> Command:
    """The command of an attempt; writes the trainer's configuration where the spec has one. With
    `shared_cache` the trainer keeps compiled steps there, and asks for those that it lacks. `ranks` is what a
    gang needs besides, and `network` too where the spec does not say otherwise.
    """
    extra: dict[str, str] = {}
    cwd = str(folder.program)
    if job.spec.command is not None:
        argv = [part.replace("{python}", sys.executable) for part in job.spec.command.argv]
        extra = job.spec.command.env
        cwd = str(Path(job.spec.command.workdir).expanduser()) if job.spec.command.workdir else cwd
    else:
        folder.config.write_text(_trainer_config(job).model_dump_json(indent=1))
        argv = [sys.executable, "-m", "trainer", "--config", str(folder.config)]
    contract = _contract(job, folder, gpus=gpus, resume=resume, mlflow_run_id=mlflow_run_id)
    if shared_cache is not None:
        contract |= {"ORCH_CACHE_DIR": str(shared_cache), "ORCH_COMPILED_WANTED": str(folder.wanted)}
    inherited = {**_inherited(base_env), "PYTHONUNBUFFERED": "1", **network, **extra}
    env = {**inherited, **contract, **ranks, **gpu_share(job, argv, inherited)}
    return Command(argv, env, cwd, str(folder.output), list(cores))


def _trainer_config(job: AgentJob) -> TrainerConfig:
    """The variant's configuration with the spec's checkpoint policy folded in."""
    config = job.spec.trainer_for(job.variant)
    assert config is not None
    policy = job.spec.checkpoint
    updates: dict[str, Any] = {}
    if policy.every_steps is not None:
        updates["checkpoint_interval"] = policy.every_steps
    if policy.every_minutes is not None:
        updates["checkpoint_minutes"] = policy.every_minutes
    return config.model_copy(update=updates)


def _inherited(base: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in base.items()
        if name in _KEPT or not (name.startswith(_OURS) or name in _SECRETS)
    }


def _contract(
    job: AgentJob, folder: WorkDir, *, gpus: bool, resume: Path | None, mlflow_run_id: str | None
) -> dict[str, str]:
    """The variables of :mod:`orchestrator.contract`, and the granted threads for numeric libraries."""
    threads = str(job.variant.cpus)
    env = {
        "ORCH_RUN_ID": job.run_id,
        "ORCH_ATTEMPT": str(job.attempt),
        "ORCH_CHECKPOINT_DIR": str(folder.checkpoints),
        "ORCH_ARTIFACT_DIR": str(folder.artifacts),
        "ORCH_DEVICE": "cuda" if gpus else "cpu",
        "ORCH_CPUS": threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    if job.pause_at is not None:
        env["ORCH_PAUSE_STEP"] = str(job.pause_at)
    if job.rank == 0:
        env["ORCH_METRICS_FILE"] = str(folder.metrics)
    if resume is not None:
        env["ORCH_RESTORE_DIR"] = str(resume)
    if job.mlflow_uri:
        env["MLFLOW_TRACKING_URI"] = job.mlflow_uri
    if mlflow_run_id:
        env["MLFLOW_RUN_ID"] = mlflow_run_id
    return env


class Program:
    """A program under a keeper of its own. The keeper starts at once, so that the program can follow quickly.

    `notify` is called from another thread whenever :attr:`failed`, :attr:`exit_code` or :attr:`done` has
    changed.
    """

    def __init__(self, notify: Callable[[], None], clock: Clock = SYSTEM) -> None:
        self.pid: int | None = None
        self.failed: str | None = None
        """Why it could not be started."""
        self.exit_code: int | None = None
        """Negative: the number of the signal that ended it."""
        self.done = False
        """Neither the program nor a descendant of it runs."""
        self.killed = False
        """It did not end in the time that it got, by :meth:`kill_in`."""
        self._clock = clock
        self._kill_at: float | None = None
        self.ended_at: float | None = None
        """When, in boot-time seconds of the clock."""
        self._notify = notify
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_KEEPER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._listen, name="program", daemon=True).start()

    def start(self, command: Command) -> None:
        """Execute the command; returns at once."""
        self._tell(json.dumps(vars(command)))

    def terminate(self) -> None:
        """SIGTERM to the program; once it has ended, to those of its descendants that have not."""
        self._tell("term")

    def kill(self) -> None:
        """SIGKILL to the program and every descendant."""
        self._tell("kill")

    @property
    def doomed(self) -> bool:
        """Whether it will be killed if it does not end."""
        return self._kill_at is not None

    def kill_in(self, seconds: float) -> None:
        """Have it killed that late, unless an earlier time was set before."""
        at = self._clock.monotonic() + seconds
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)

    def kill_if_due(self) -> bool:
        """Kill it when its time has come; True then, once."""
        if self._kill_at is None or self.killed or self._clock.monotonic() < self._kill_at:
            return False
        self.killed = True
        self.kill()
        return True

    def close(self) -> None:
        """Kill whatever still runs, and end the keeper."""
        assert self._keeper.stdin is not None
        try:
            self._keeper.stdin.close()
        except BrokenPipeError:
            return  # It has ended already, with a word of ours unread.

    def _tell(self, line: str) -> None:
        assert self._keeper.stdin is not None
        try:
            self._keeper.stdin.write(line.encode() + b"\n")
            self._keeper.stdin.flush()
        except BrokenPipeError:
            return  # The keeper has ended; _listen says so.

    def _keeper_lost(self, pid: int) -> None:
        """The keeper was killed. The kernel has killed the program with it, but not what that had started."""
        if self.exit_code is None:
            self.exit_code = -signal.SIGKILL
        for member in session_members(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member, signal.SIGKILL)

    def _listen(self) -> None:
        assert self._keeper.stdout is not None
        for line in self._keeper.stdout:
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            if word == "pid":
                self.pid = int(rest)
            elif word == "exit":
                self.ended_at, self.exit_code = self._clock.boottime(), int(rest)
            elif word == "failed":
                self.failed = rest
            self._notify()
        if self._keeper.wait() != 0 and self.pid is not None:
            self._keeper_lost(self.pid)
        self.done = True
        self._notify()
