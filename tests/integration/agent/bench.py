"""A node with a store and a controller, on which tests start real agents that run small programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from orchestrator.agent.job import AgentJob
from orchestrator.agent.launch import AgentHandle, attempt_dir, start_agent
from orchestrator.agent.workdir import WorkDir
from orchestrator.messages_agent import Outcome
from orchestrator.spec.models import RunSpec
from orchestrator.store.checkpoints import checkpoints
from orchestrator.store.objects import ObjectStore, open_store, store_id
from orchestrator.store.runlog import CheckpointRecord
from tests.integration.agent.controller import TOKEN, StandInController
from tests.support import wait_until

RUN = "run-1"


class Bench:
    """One node. Everything that was started is ended by :meth:`close`."""

    def __init__(self, root: Path, store_uri: str | None = None) -> None:
        """The store is a folder below `root`, unless it is named."""
        self.root = root
        self.home = root / "node"
        self.home.mkdir()
        (self.home / "token").write_text(TOKEN + "\n")
        self.store_path = root / "store"
        self.store_uri = store_uri or f"file://{self.store_path}"
        self.controller = StandInController()
        self.controller.start()
        self.agents: list[AgentHandle] = []
        self.actor = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.with_store()

    def with_store(self) -> Bench:
        """Make the store's folder a store."""
        store_id(self.store, create=True)
        return self

    @property
    def store(self) -> ObjectStore:
        return open_store(self.store_uri)

    def close(self) -> None:
        self.controller.stop()
        for agent in self.agents:
            if agent.alive():
                os.kill(agent.pid, signal.SIGKILL)
        self.actor.kill()
        self.actor.communicate()
        wait_until(lambda: not any(agent.alive() for agent in self.agents), 10)
        wait_until(lambda: not self.processes(), 10, lambda: f"left running: {self.processes()}")

    # ------------------------------------------------------------------ start

    def job(self, spec: dict[str, Any], attempt: int = 1, **fields: Any) -> AgentJob:
        run = RunSpec.model_validate({"name": "t", **spec})
        return AgentJob(
            run_id=fields.pop("run_id", RUN),
            attempt=attempt,
            spec=run,
            variant=run.placement[0],
            node="n1",
            controller_url=self.controller.url,
            store_uri=self.store_uri,
            **fields,
        )

    def script(self, code: str, name: str = "program.py") -> dict[str, Any]:
        """A spec that runs this Python code."""
        file = self.root / name
        file.write_text(code)
        return {"command": {"argv": ["{python}", str(file)]}}

    def start(self, spec: dict[str, Any], attempt: int = 1, **fields: Any) -> AgentHandle:
        job = self.job(spec, attempt, **fields)
        agent = start_agent(job, self.home, [], self.actor.pid)
        self.agents.append(agent)
        return agent

    # ------------------------------------------------------------------ look

    def folder(self, attempt: int = 1) -> WorkDir:
        return WorkDir(attempt_dir(self.home, RUN, attempt))

    def records(self) -> list[CheckpointRecord]:
        return checkpoints(self.store, RUN)

    def steps(self) -> list[int]:
        return [record.step for record in self.records()]

    def wait_step(self, step: int, timeout: float = 15.0) -> None:
        wait_until(lambda: self.controller.last_step >= step, timeout, self.evidence)

    def wait_outcome(self, timeout: float = 20.0, attempt: int = 1) -> Outcome:
        """The outcome that the controller got, once the agent has ended as well."""
        outcome = wait_until(lambda: self.controller.outcome, timeout, lambda: self.evidence(attempt))
        wait_until(lambda: not self.agents[-1].alive(), 10, lambda: self.evidence(attempt))
        return outcome

    def saved_outcome(self, attempt: int = 1) -> dict[str, Any]:
        file = self.folder(attempt).outcome
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def processes(self) -> list[int]:
        """Everything that runs with a path of this bench on its command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(self.root).encode() in line and state != "Z":
                found.append(int(entry.name))
        return found

    def program_pid(self) -> int:
        """The process of the program that the last agent runs."""
        agents = {agent.pid for agent in self.agents}
        return wait_until(
            lambda: next((p for p in self.processes() if p not in agents), 0), 10, self.evidence
        )

    def evidence(self, attempt: int = 1) -> str:
        text = [self.controller.evidence(), f"processes: {self.processes()}"]
        for name in ("agent.log", "agent.err", "output.log"):
            file = self.folder(attempt).root / name
            if file.exists():
                text.append(f"--- {name}\n{file.read_text(errors='replace')[-6000:]}")
        return "\n".join(text)
