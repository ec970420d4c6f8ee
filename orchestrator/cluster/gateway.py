"""The way to Ray: a child process holds the driver, so that a hung or killed driver harms nobody else.

Requests and answers are JSON lines over the child's pipes; see :mod:`orchestrator.cluster.ray_gateway`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import IO, Any, Final, Protocol

from orchestrator.agent.job import AgentJob
from orchestrator.clock import SYSTEM, Clock
from orchestrator.domain.fleet import ActorInfo, NodeInfo, NodeReport
from orchestrator.errors import UnavailableError, from_kind

log = logging.getLogger(__name__)

READY_S: Final = 45.0
"""Longest time that a child may take to connect; on a busy machine importing Ray alone has taken 5 s."""
SLACK_S: Final = 2.0
"""The child gives up by itself first; the parent waits this much longer for its answer."""
SILENT_S: Final = 10.0
"""A request that timed out while no answer at all came for this long means that the child hangs."""
BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
LOG_BYTES: Final = 5_000_000


class Gateway(Protocol):
    """What the controller needs of Ray. Every call ends within its timeout.

    All raise :class:`UnavailableError` where Ray cannot be asked; what was asked may have happened or not.
    """

    @property
    def connected(self) -> bool:
        """Whether a driver is connected now."""
        ...

    def nodes(self, timeout_s: float = 5.0) -> list[NodeInfo]:
        """The nodes with a pool, one for each name: the newest living one, else the newest."""
        ...

    def launch(
        self,
        name: str,
        ray_id: str,
        cpus: float,
        memory: int,
        job: AgentJob,
        timeout_s: float = 30.0,
    ) -> bool:
        """Create the detached actor `name` on this Ray node and wait until its agent has been started.

        Repeating it is harmless: False where an actor of that name lives already. ConflictError where that
        agent was started there before, but its actor is gone. `memory` is in bytes. Of GPUs Ray knows
        nothing: which ones the agent may use, the job says.
        """
        ...

    def probe(self, name: str, timeout_s: float = 5.0) -> ActorInfo:
        """What Ray says about an actor, and what the actor says about its agent."""
        ...

    def kill(self, name: str, timeout_s: float = 5.0) -> None:
        """End the actor, if there is one, which returns its resources. Its agent outlives it."""
        ...

    def actors(self, timeout_s: float = 5.0) -> list[str]:
        """Names of all living actors."""
        ...

    def close(self) -> None:
        """Let go of Ray. Detached actors live on."""
        ...


class RayGateway:
    """Keeps one child with a Ray driver and passes requests to it. Safe to use from several threads.

    A child that ends is replaced after a growing pause; one that hangs is killed and replaced.
    """

    def __init__(
        self,
        address: str,
        log_path: Path,
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._address = address
        self._log_path = log_path
        self._python = python
        self._env = dict(os.environ if env is None else env)
        self._clock = clock
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._stop = threading.Event()
        self._why = "not started"
        self._keeper = threading.Thread(target=self._keep, name="ray-gateway", daemon=True)

    def start(self) -> None:
        """Begin to connect in the background."""
        self._keeper.start()

    def close(self) -> None:
        """End the child. Detached actors live on."""
        self._stop.set()
        child = self._child
        if child is not None:
            child.kill()
        if self._keeper.is_alive():
            self._keeper.join(5.0)

    @property
    def connected(self) -> bool:
        """Whether a driver is connected now."""
        child = self._child
        return child is not None and child.ready.is_set() and child.alive()

    def nodes(self, timeout_s: float = 5.0) -> list[NodeInfo]:
        """See :meth:`Gateway.nodes`."""
        # What a node says of itself comes another way.
        return [NodeInfo(**{**node, "report": NodeReport()}) for node in self._ask("nodes", timeout_s)]

    def launch(
        self,
        name: str,
        ray_id: str,
        cpus: float,
        memory: int,
        job: AgentJob,
        timeout_s: float = 30.0,
    ) -> bool:
        """See :meth:`Gateway.launch`."""
        answer = self._ask(
            "launch",
            timeout_s,
            name=name,
            ray_id=ray_id,
            cpus=cpus,
            memory=memory,
            job=job.model_dump_json(),
        )
        return bool(answer["created"])

    def probe(self, name: str, timeout_s: float = 5.0) -> ActorInfo:
        """See :meth:`Gateway.probe`."""
        return ActorInfo(**self._ask("probe", timeout_s, name=name))

    def kill(self, name: str, timeout_s: float = 5.0) -> None:
        """See :meth:`Gateway.kill`."""
        self._ask("kill", timeout_s, name=name)

    def actors(self, timeout_s: float = 5.0) -> list[str]:
        """See :meth:`Gateway.actors`."""
        return list(self._ask("actors", timeout_s))

    def _ask(self, operation: str, timeout_s: float, **arguments: Any) -> Any:
        child = self._child
        if child is None or not child.ready.is_set():
            raise UnavailableError(f"Ray at {self._address} cannot be asked: {self._why}")
        asked_at = self._clock.monotonic()
        future = child.send(operation, timeout_s, arguments)
        try:
            return future.result(timeout_s + SLACK_S)
        except FutureTimeout as error:
            child.forget(future)
            silent_s = self._clock.monotonic() - max(child.answered_at, asked_at - SILENT_S)
            if silent_s >= SILENT_S:
                log.warning("the Ray driver has been silent for %.0f s, replacing it", silent_s)
                self._why = "the driver hung and is being replaced"
                child.kill()
            raise UnavailableError(f"Ray did not answer `{operation}` within {timeout_s:g} s") from error

    def _keep(self) -> None:
        failures = 0
        while not self._stop.is_set():
            if self._connect():
                failures = 0
                self._wait_for_end()
            self._stop.wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    def _connect(self) -> bool:
        """Start a child and wait until it is connected; False and a reason in `_why` where it is not."""
        try:
            child = _Child(self._argv(), self._env, self._log_path, self._clock)
        except OSError as error:
            self._why = f"the driver process cannot be started: {error}"
            log.error(self._why)
            return False
        with self._lock:
            self._child = child
        deadline = self._clock.monotonic() + READY_S
        while not child.ready.wait(0.1):
            if child.alive() and self._clock.monotonic() < deadline and not self._stop.is_set():
                continue
            why = child.failure or ("it took too long" if child.alive() else "the driver process ended")
            if why != self._why:
                log.warning("no connection to Ray at %s: %s", self._address, why)
            self._why = why
            child.kill()
            return False
        log.info("connected to Ray at %s", self._address)
        return True

    def _wait_for_end(self) -> None:
        child = self._child
        while child is not None and child.alive() and not self._stop.is_set():
            child.ended.wait(1.0)
        if child is not None:
            child.kill()
        if not self._stop.is_set():
            self._why = (child.failure if child else None) or "the connection was lost"
            log.warning("the Ray driver ended (%s), starting another", self._why)

    def _argv(self) -> list[str]:
        # -P: Ray would put the working directory and the script's directory on the path of every worker.
        module = "orchestrator.cluster.ray_gateway"
        return [self._python, "-P", "-m", module, "--address", self._address]


class _Child:
    """One child process and the answers that are awaited from it."""

    def __init__(self, argv: list[str], env: dict[str, str], log_path: Path, clock: Clock) -> None:
        self.ready = threading.Event()
        self.ended = threading.Event()
        self.failure: str | None = None
        self._clock = clock
        self.answered_at = clock.monotonic()
        self._lock = threading.Lock()
        self._number = 0
        self._waiting: dict[int, Future[Any]] = {}
        self._process = _spawn(argv, env, log_path)
        threading.Thread(target=self._read, name="ray-gateway-reader", daemon=True).start()

    def alive(self) -> bool:
        return self._process.poll() is None and not self.ended.is_set()

    def kill(self) -> None:
        """End the process and fail whatever is waited for."""
        self._process.kill()
        self._process.wait()
        with self._lock:
            _close(self._process.stdin)
        self._fail_all()

    def send(self, operation: str, timeout_s: float, arguments: dict[str, Any]) -> Future[Any]:
        """Pass one request on; the future ends with the answer or an error."""
        future: Future[Any] = Future()
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = future
            line = json.dumps({"id": number, "op": operation, "timeout_s": timeout_s, **arguments})
            try:
                _stream(self._process.stdin).write(line.encode() + b"\n")
                _stream(self._process.stdin).flush()
            except (OSError, ValueError) as error:
                del self._waiting[number]
                raise UnavailableError("the Ray driver has ended") from error
        if self.ended.is_set():
            self._fail_all()
        return future

    def forget(self, future: Future[Any]) -> None:
        """Drop an answer that nobody waits for any more."""
        with self._lock:
            self._waiting = {number: known for number, known in self._waiting.items() if known is not future}

    def _read(self) -> None:
        for line in _stream(self._process.stdout):
            self._take(json.loads(line))
        _close(self._process.stdout)
        self.ended.set()
        self._fail_all()

    def _take(self, answer: dict[str, Any]) -> None:
        self.answered_at = self._clock.monotonic()
        if answer.get("event") == "ready":
            self.ready.set()
        elif answer.get("event") == "failed":
            self.failure = answer["message"]
        else:
            with self._lock:
                future = self._waiting.pop(answer["id"], None)
            if future is None:
                return
            if "error" in answer:
                future.set_exception(from_kind(answer["error"]["kind"], answer["error"]["message"]))
            else:
                future.set_result(answer["result"])

    def _fail_all(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(UnavailableError("the Ray driver ended before it answered"))


def _spawn(argv: list[str], env: dict[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if log_path.exists() and log_path.stat().st_size > LOG_BYTES:
        log_path.replace(log_path.with_name(log_path.name + ".1"))
    empty = log_path.parent / ".empty"
    empty.mkdir(exist_ok=True)
    with log_path.open("ab") as err:
        return subprocess.Popen(
            argv, env=env, cwd=empty, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err
        )


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "opened as a pipe"
    return stream


def _close(stream: IO[bytes] | None) -> None:
    try:
        _stream(stream).close()
    except BrokenPipeError:
        log.debug("the driver ended before it read its last request")
