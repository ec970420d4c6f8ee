"""A real MLflow server for tests: start, freeze, thaw, kill, restart."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from orchestrator.cluster.mlflow_command import initialise, mlflow_command
from tests.support import end_group, free_port, wait_until

START_TIMEOUT_S = 240.0


class MlflowServer:
    """One server process group on a fixed port; its data stays in `root` over restarts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root / "server.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        initialise(self.root)
        argv, env = mlflow_command(self.root, "127.0.0.1", self.port)
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                argv, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **env}, start_new_session=True, cwd=self.root,
            )  # fmt: skip
        wait_until(self.healthy, START_TIMEOUT_S, lambda: self.log.read_text()[-2000:], every=0.1)

    def healthy(self) -> bool:
        """True where it answers within a second; fails early where the process has ended."""
        assert self._child is not None
        assert self._child.poll() is None, f"the MLflow server ended: {self.log.read_text()[-2000:]}"
        try:
            return httpx.get(f"{self.url}/health", timeout=1.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self._signal(signal.SIGKILL)
        assert self._child is not None
        self._child.wait(10)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._child is not None and self._child.poll() is None:
            self.thaw()
            end_group(self._child)

    def _signal(self, number: signal.Signals) -> None:
        assert self._child is not None
        os.killpg(self._child.pid, number)


@contextmanager
def mlflow_server(root: Path) -> Iterator[MlflowServer]:
    """A started server that is ended with the block."""
    root.mkdir(parents=True, exist_ok=True)
    server = MlflowServer(root)
    try:
        server.start()
        yield server
    finally:
        server.stop()
