"""Starts the agent of an attempt so that it outlives whatever started it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.agent.identity import ProcessId, identify
from orchestrator.agent.job import AgentJob
from orchestrator.agent.template import AGENT, VARIABLE, TemplateError, ask, own_template
from orchestrator.agent.workdir import WorkDir
from orchestrator.clock import SYSTEM
from orchestrator.errors import ConflictError, SetupError

log = logging.getLogger(__name__)

_DETACH = Path(__file__).with_name("detach.py")
_START_TIMEOUT_S = 30.0
_LEAKED_PREFIXES = ("RAY_", "ORCH_SERVICE")
_LEAKED = ("SPT_NOENV", "OMP_NUM_THREADS", "ORCH_TOKEN", VARIABLE)


@dataclass(frozen=True)
class LaunchNote:
    """What the agent is told about its launch. Travels through a file on the node."""

    watched: ProcessId
    """The Ray actor."""
    gpu_ids: tuple[str, ...]
    monotonic: float
    """When, in seconds of the monotonic clock, which all processes share."""

    def write(self, file: Path) -> None:
        """For :meth:`read`."""
        file.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(file: Path) -> LaunchNote:
        """What :meth:`write` wrote."""
        data = json.loads(file.read_text())
        watched = ProcessId(int(data["watched"]["pid"]), float(data["watched"]["create_time"]))
        return LaunchNote(watched, tuple(map(str, data["gpu_ids"])), float(data["monotonic"]))


@dataclass(frozen=True)
class AgentHandle:
    """A started agent. `create_time` is in seconds since the machine started."""

    pid: int
    create_time: float

    def alive(self) -> bool:
        """False once the agent has ended."""
        return ProcessId(self.pid, self.create_time).alive()


def attempt_dir(node_home: Path, run_id: str, attempt: int, rank: int = 0) -> Path:
    """Folder of one attempt, or of a rank of it, on its node."""
    name = f"{run_id}-a{attempt}"
    return node_home / "attempts" / (f"{name}-r{rank}" if rank else name)


def node_gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs of this node in order, as CUDA_VISIBLE_DEVICES names them; the node's supervisor says."""
    return [name for name in environ.get("ORCH_NODE_GPUS", "").split(",") if name]


def granted_gpus(job: AgentJob, gpus: Sequence[str]) -> list[str]:
    """The names of the granted ones among the node's GPUs. SetupError where it has not so many."""
    if any(index >= len(gpus) for index in job.gpu_ids):
        raise SetupError(
            f"GPU {max(job.gpu_ids)} was granted, but node {job.node} has {len(gpus)}, counted from 0",
            remedy="`orch up` or `orch join` counts them anew.",
        )
    return [gpus[index] for index in job.gpu_ids]


def start_agent(job: AgentJob, node_home: Path, gpus: Sequence[str], watch_pid: int) -> AgentHandle:
    """Start the agent of an attempt; it runs on when the caller dies, and notices that by itself.

    The agent stops its program once the process `watch_pid` has ended. Of the node's `gpus` the program sees
    those that the job names, and no others. Raises ConflictError where this attempt was started on this node
    before, SetupError where the agent cannot be started.
    """
    watched = identify(watch_pid)
    if watched is None:
        raise SetupError(f"process {watch_pid}, which the agent should watch, does not exist")
    gpu_ids = granted_gpus(job, gpus)
    folder = WorkDir(attempt_dir(node_home, job.run_id, job.attempt, job.rank))
    try:
        folder.root.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.root.mkdir(mode=0o700)
        folder.job.write_text(job.model_dump_json())
        LaunchNote(watched, tuple(gpu_ids), SYSTEM.monotonic()).write(folder.launch)
    except FileExistsError as error:
        raise ConflictError(f"attempt {job.attempt} of run {job.run_id} was started here before") from error
    except OSError as error:
        raise SetupError(f"cannot write {folder.root}: {error.strerror}", remedy="Check its disk.") from error
    env = agent_environment(os.environ, node_home, gpu_ids)
    return _fork(folder, env) or _detach(folder, env)


def agent_environment(base: Mapping[str, str], node_home: Path, gpu_ids: list[str]) -> dict[str, str]:
    """The agent's environment: the caller's, without what marks a Ray worker or one of our services.

    Ray's own variables would make a program that uses Ray itself believe that it is a worker of ours. With
    no GPU granted, CUDA_VISIBLE_DEVICES is empty rather than unset, because Ray leaves every GPU visible to
    CPU work.
    """
    env = {
        name: value
        for name, value in base.items()
        if not name.startswith(_LEAKED_PREFIXES) and name not in _LEAKED
    }
    if env.get("PYTHONBREAKPOINT", "").startswith("ray."):
        del env["PYTHONBREAKPOINT"]
    env["ORCH_NODE_HOME"] = str(node_home)
    env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
    # CUDA counts the fastest first, everybody else by place on the bus.
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return env


def _fork(folder: WorkDir, env: dict[str, str]) -> AgentHandle | None:
    """Have the node's template fork the agent; None where there is none that can."""
    template = own_template()
    if template is None:
        return None
    try:
        pid = ask(template, AGENT, [], env, str(folder.root))
    except TemplateError as error:
        log.warning("%s; the agent starts without it", error)
        return None
    return _wait_for(folder, pid)


def _detach(folder: WorkDir, env: dict[str, str]) -> AgentHandle:
    agent = [sys.executable, "-P", "-m", "orchestrator.agent", str(folder.root)]
    argv = [sys.executable, "-I", "-S", str(_DETACH), str(folder.root), *agent]
    try:
        done = subprocess.run(
            argv,
            env=env,
            cwd=folder.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START_TIMEOUT_S,
            start_new_session=True,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or b""
        raise SetupError(
            f"the agent could not be started: {error} {detail.decode(errors='replace')}"
        ) from error
    return _wait_for(folder, int(done.stdout))


def _wait_for(folder: WorkDir, pid: int) -> AgentHandle:
    deadline = SYSTEM.monotonic() + _START_TIMEOUT_S
    while not folder.agent.exists():
        if SYSTEM.monotonic() > deadline:
            raise SetupError(f"the agent (process {pid}) did not start; see {folder.root / 'agent.err'}")
        SYSTEM.sleep(0.005)
    who = json.loads(folder.agent.read_text())
    return AgentHandle(int(who["pid"]), float(who["create_time"]))
