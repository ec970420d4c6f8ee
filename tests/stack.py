"""A whole stack for tests, driven through the real command line: `orch up` to `orch down`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from orchestrator.agent.identity import ProcessId
from orchestrator.settings import Home
from tests.mlflow_database import give_database
from tests.support import wait_until

ROOT = Path(__file__).parents[1]
ORCH = Path(sys.executable).with_name("orch")
FINAL = ("succeeded", "failed", "cancelled")


class Stack:
    """One state folder and what runs from it."""

    def __init__(self, home: Path, data_dir: Path | None = None) -> None:
        self.home = home
        env = {k: v for k, v in os.environ.items() if not k.startswith(("ORCH_", "RAY_", "MLFLOW_"))}
        self.env = {**env, "ORCH_HOME": str(home), "HOME": str(home / "user"), "COLUMNS": "120"}
        if data_dir:
            self.env["ORCH_DATA_DIR"] = str(data_dir)
        self._http = httpx.Client(timeout=20, trust_env=False)

    def command(self, *arguments: str) -> list[str]:
        """How `orch` is run with these arguments."""
        return [str(ORCH), *arguments]

    def orch(self, *arguments: str, timeout: float = 60, code: int | None = 0) -> str:
        """Run a command to its end and answer what it printed; fails unless it ends with `code`."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if code is not None and done.returncode != code:
            raise AssertionError(
                f"orch {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}\n"
                f"{self.evidence()}"
            )
        return done.stdout if code in (0, None) else done.stdout + done.stderr

    def json(self, *arguments: str, timeout: float = 60) -> Any:
        """Run a command with --json and answer the value."""
        return json.loads(self.orch(*arguments, "--json", timeout=timeout))

    def submit(self, spec: dict[str, Any], *arguments: str) -> str:
        """Submit a spec and answer the run's id."""
        path = self.home / f"{spec['name']}.yaml"
        path.write_text(yaml.safe_dump(spec))
        return str(self.json("submit", str(path), *arguments)["run_id"])

    def show(self, run: str) -> dict[str, Any]:
        """Everything about a run, straight from the API."""
        return dict(self.get(f"/v1/runs/{run}"))

    def get(self, path: str, **query: Any) -> Any:
        """GET from the controller."""
        url = json.loads((self.home / "client.json").read_text())["url"]
        headers = {"Authorization": f"Bearer {(self.home / 'token').read_text().strip()}"}
        answer = self._http.get(url + path, params=query, headers=headers)
        answer.raise_for_status()
        return answer.json()

    def wait_state(self, run: str, *states: str, timeout: float = 120) -> dict[str, Any]:
        """Wait until the run is in one of these states; stops early when it has ended otherwise."""

        def there() -> dict[str, Any] | None:
            detail = self.show(run)
            state = detail["run"]["state"]
            if state in FINAL and state not in states:
                raise AssertionError(f"{run} is {state}: {detail['run']['message']}\n{self.evidence()}")
            return detail if state in states else None

        return wait_until(there, timeout, self.evidence, every=0.3)

    def wait_step(self, run: str, step: int, timeout: float = 120) -> int:
        """Wait until the run has passed this step."""

        def there() -> int | None:
            detail = self.show(run)["run"]
            if detail["state"] in FINAL and (detail["step"] or 0) < step:
                raise AssertionError(f"{run} is {detail['state']} at {detail['step']}: {detail['message']}")
            return detail["step"] if (detail["step"] or 0) >= step else None

        return int(wait_until(there, timeout, self.evidence, every=0.15))

    def wait_free(self, timeout: float = 150) -> None:
        """Wait until every node is there and nothing occupies any: also not what was killed with a node."""

        def free() -> bool:
            return all(node["state"] == "ready" and not node["runs"] for node in self.get("/v1/nodes"))

        wait_until(free, timeout, self.evidence, every=0.2)

    def service(self, name: str) -> list[psutil.Process]:
        """The processes that a service lives by, and their children."""
        state = json.loads((self.home / "state.json").read_text())
        record = state["services"][name]
        vital = [psutil.Process(p["pid"]) for p in record["vital"] or [record["leader"]]]
        return [*vital, *(child for process in vital for child in process.children(recursive=True))]

    def agents(self) -> dict[str, dict[str, Any]]:
        """`<run>-a<n>` -> what its agent.json says, of agents that live."""
        found = {}
        for path in self.home.glob("nodes/*/attempts/*/agent.json"):
            entry = json.loads(path.read_text())
            if ProcessId(entry["pid"], entry["create_time"]).alive():
                found[path.parent.name] = entry
        return found

    def program(self, attempt: str) -> psutil.Process:
        """The trainer below a living agent."""

        def there() -> psutil.Process | None:
            agent = self.agents().get(attempt)
            children = psutil.Process(agent["pid"]).children(recursive=True) if agent else []
            trainers = [child for child in children if "trainer" in " ".join(child.cmdline())]
            return trainers[-1] if trainers else None

        return wait_until(there, 30, self.evidence)

    def evidence(self, lines: int = 25) -> str:
        """The ends of all logs, for the message of a failed test."""
        parts = []
        logs = [*self.home.glob("logs/*.log"), *self.home.glob("nodes/*/attempts/*/agent.log")]
        for path in sorted(logs, key=lambda p: p.stat().st_mtime)[-12:]:
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"--- {path.relative_to(self.home)}\n" + "\n".join(tail))
        return "\n".join(parts)

    def leftovers(self) -> list[str]:
        """Processes that still belong to this state folder."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            try:
                env = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if env.get("ORCH_HOME") == str(self.home) and process.pid != os.getpid():
                found.append(f"{process.pid} {' '.join(process.info['cmdline'] or [])[:120]}")
        return found


@contextmanager
def running_stack(
    home: Path,
    *nodes: str,
    data_dir: Path | None = None,
    up: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> Iterator[Stack]:
    """A stack with these nodes (`laptop:cpus=1`), ended whatever happens."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "user").mkdir(exist_ok=True)
    give_database(Home(home).mlflow)
    stack = Stack(home, data_dir)
    stack.env |= env or {}
    flags = [flag for node in nodes for flag in ("--node", node)]
    try:
        stack.orch("up", *flags, *up, timeout=180)
        yield stack
    finally:
        stack.orch("down", timeout=180)


def tiny_gpt(name: str, data: Path, steps: int = 300, **values: Any) -> dict[str, Any]:
    """A spec of a small GPT that trains in seconds, on two pools of one CPU each.

    It stays where it begins: on a busy machine it would else take long enough to move up by itself.
    """
    trainer = {
        "dataset": str(data),
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 64,
        "block_size": 64,
        "batch_size": 8,
        "dropout": 0.1,
        "max_steps": steps,
        "eval_interval": 100,
        "eval_batches": 4,
        "log_interval": 5,
        "warmup_steps": 20,
        "sample_tokens": 50,
        **values.pop("trainer", {}),
    }
    return {
        "name": name,
        "experiment": "tests",
        "trainer": trainer,
        "placement": [{"pool": "laptop", "cpus": 1}, {"pool": "gpu", "cpus": 1}],
        "checkpoint": {"every_steps": 50},
        "migrate": "never",
        **values,
    }
