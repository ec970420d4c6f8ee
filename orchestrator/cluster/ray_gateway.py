"""The process that holds the Ray driver, and the actor that it creates. The only module that imports Ray.

``python -m orchestrator.cluster.ray_gateway --address IP:PORT`` reads requests from stdin and answers on
stdout, one JSON object a line; stderr is a log. It ends with stdin, and when Ray cannot be asked any more.

::

    -> {"id": 1, "op": "nodes", "timeout_s": 5}
    <- {"id": 1, "result": [...]}       or {"id": 1, "error": {"kind": "unavailable", "message": "..."}}
    <- {"event": "ready"}               once, when connected; {"event": "failed", "message": "..."} when not
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from orchestrator.domain.fleet import ActorInfo, NodeInfo
from orchestrator.errors import ConflictError, OrchError, UnavailableError

log = logging.getLogger(__name__)

NAMESPACE: Final = "orch"
LABEL_POOL: Final = "pool"
LABEL_NAME: Final = "orch-node"
LABEL_BOOT: Final = "orch-boot"
LABEL_STARTED: Final = "orch-started"
"""Unix time in ms at which the node's supervisor started it: which of two nodes of one name is the newer."""
WORKERS: Final = 16
CONNECT_S: Final = 2.0
EXIT_LOST: Final = 3


class AttemptActor:
    """Holds the Ray resources of one attempt on its node and is the handle of its agent."""

    def __init__(self, job: str) -> None:
        from orchestrator.agent.job import AgentJob
        from orchestrator.agent.launch import node_gpus, start_agent

        self._agent = start_agent(
            AgentJob.model_validate_json(job),
            Path(os.environ["ORCH_NODE_HOME"]),
            node_gpus(os.environ),
            os.getpid(),
        )

    def probe(self) -> bool:
        """Whether the agent's process runs."""
        return bool(self._agent.alive())


class Operations:
    """What can be asked. Every method answers with something that JSON knows, or raises OrchError."""

    def __init__(self) -> None:
        self._warmed: set[str] = set()

    def nodes(self, timeout_s: float) -> list[dict[str, Any]]:
        """The nodes with a pool, one for each name."""
        found = newest(ray.nodes())
        for node in found:
            if node.alive and node.ray_id not in self._warmed:
                self._warmed.add(node.ray_id)
                _warm(node.ray_id)
        return [asdict(node) for node in found]

    def actors(self, timeout_s: float) -> list[str]:
        """Names of all living actors."""
        return sorted(ray.util.list_named_actors())

    def launch(
        self, timeout_s: float, name: str, ray_id: str, cpus: float, memory: int, job: str
    ) -> dict[str, bool]:
        """Create the actor and wait until its agent has been started, unless an actor of that name exists."""
        actor_class = ray.remote(AttemptActor).options(
            name=name,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=4,
            num_cpus=cpus,
            num_gpus=0,
            memory=memory or None,
            label_selector={"ray.io/node-id": ray_id},
        )
        try:
            actor = actor_class.remote(job)
        except ValueError as error:
            if "already taken" not in str(error):
                raise
            return {"created": False}
        try:
            ray.get(actor.probe.remote(), timeout=timeout_s)
        except GetTimeoutError as error:
            ray.kill(actor)
            raise UnavailableError(
                f"actor {name} did not start within {timeout_s:g} s: its node does not answer or is full"
            ) from error
        except ActorUnschedulableError as error:
            raise UnavailableError(f"actor {name}: its node is gone or can never hold it") from error
        except RayActorError as error:
            text = f"actor {name} could not start: {_cause(error)}"
            raise (ConflictError(text) if _is_conflict(error) else OrchError(text)) from error
        return {"created": True}

    def probe(self, timeout_s: float, name: str) -> dict[str, Any]:
        """State of an actor and of its agent."""
        try:
            actor = ray.get_actor(name)
        except ValueError:
            return asdict(ActorInfo(name, "missing"))
        try:
            return asdict(ActorInfo(name, "alive", ray.get(actor.probe.remote(), timeout=timeout_s)))
        except GetTimeoutError:
            return asdict(ActorInfo(name, _recorded_state(actor)))
        except RayActorError:
            return asdict(ActorInfo(name, "dead"))

    def kill(self, timeout_s: float, name: str) -> None:
        """End an actor, if there is one."""
        try:
            ray.kill(ray.get_actor(name))
        except ValueError:
            log.info("actor %s is gone already", name)


def _warm(ray_id: str) -> None:
    """Start a worker that does nothing: it starts the node's template, so that the first attempt finds it."""
    where = {"ray.io/node-id": ray_id}
    ray.remote(max_calls=1)(_nothing).options(num_cpus=0, max_retries=0, label_selector=where).remote()


def _nothing() -> None:
    """What that worker runs."""


def newest(raw: Iterable[dict[str, Any]]) -> list[NodeInfo]:
    """One node for each name from `ray.nodes()`: living before dead, then the one that started last."""
    best: dict[str, tuple[tuple[bool, int], NodeInfo]] = {}
    for entry in raw:
        labels = entry.get("Labels", {})
        if LABEL_POOL not in labels:
            continue
        node = _node_info(entry, labels)
        rank = (node.alive, int(labels.get(LABEL_STARTED, 0)))
        if node.name not in best or rank > best[node.name][0]:
            best[node.name] = (rank, node)
    return [node for _, node in sorted(best.values(), key=lambda pair: pair[1].name)]


def _node_info(entry: dict[str, Any], labels: dict[str, str]) -> NodeInfo:
    resources = entry.get("Resources", {})
    return NodeInfo(
        ray_id=entry["NodeID"],
        name=labels.get(LABEL_NAME, entry["NodeID"][:12]),
        pool=labels[LABEL_POOL],
        alive=bool(entry["Alive"]),
        address=entry["NodeManagerAddress"],
        cpus=float(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
        memory=int(resources.get("memory", 0)),
        boot_id=labels.get(LABEL_BOOT, ""),
    )


def _recorded_state(actor: Any) -> str:
    """What the head has on record for an actor that does not answer: `alive`, `pending` or `dead`."""
    from ray._private.state import actors

    state = actors(actor._actor_id.hex()).get("State", "DEAD")
    return {"ALIVE": "alive", "DEAD": "dead"}.get(state, "pending")


def _cause(error: RayActorError) -> str:
    """The last line of what the actor's constructor raised, else Ray's own words."""
    cause = error.__cause__
    if isinstance(cause, RayTaskError):
        return str(cause.cause if cause.cause is not None else cause).strip().splitlines()[-1]
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _is_conflict(error: RayActorError) -> bool:
    cause = error.__cause__
    return isinstance(cause, RayTaskError) and isinstance(cause.cause, ConflictError)


class Server:
    """Reads requests, runs them side by side, and writes answers."""

    def __init__(self, out: int, operations: Operations) -> None:
        self._out = out
        self._operations = operations
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read_requests(self) -> None:
        """Until stdin ends, which means that the parent is gone; then so is this process."""
        for line in sys.stdin.buffer:
            self._requests.put(json.loads(line))
        os._exit(0)

    def say(self, message: dict[str, Any]) -> None:
        """Write one line."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._out, data) :]

    def serve(self) -> None:
        """Answer requests for ever."""
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="request") as pool:
            while True:
                pool.submit(self._answer, self._requests.get())

    def _answer(self, request: dict[str, Any]) -> None:
        number, operation = request.pop("id"), request.pop("op")
        try:
            method: Callable[..., Any] = getattr(self._operations, operation)
            self.say({"id": number, "result": method(**request)})
        except OrchError as error:
            log.warning("%s: %s", operation, error)
            self.say({"id": number, "error": {"kind": error.kind, "message": error.message}})
        except RayError as error:
            log.warning("%s failed", operation, exc_info=True)
            self.say({"id": number, "error": {"kind": "unavailable", "message": str(error)}})
        except Exception as error:  # the boundary of this thread; a driver that fails like this is of no use
            log.exception("%s failed, ending", operation)
            message = f"{type(error).__name__}: {error}"
            self.say({"id": number, "error": {"kind": "unavailable", "message": message}})
            os._exit(EXIT_LOST)


def connect(address: str) -> None:
    """Connect the driver. The port is tried first: `ray.init` hangs for minutes on a dead address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UnavailableError(f"nothing answers at {address} ({error})") from error
    try:
        ray.init(
            address,
            namespace=NAMESPACE,
            _node_ip_address=host,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(f"Ray at {address} refused the driver: {error}") from error


def run() -> int:
    """Serve until the parent or Ray is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True, help="IP:PORT of the Ray head")
    address = parser.parse_args().address
    # Ray prints to stdout; the protocol gets a descriptor of its own and stdout becomes the log.
    out = os.dup(1)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    server = Server(out, Operations())
    threading.Thread(target=server.read_requests, name="stdin", daemon=True).start()
    try:
        connect(address)
    except UnavailableError as error:
        log.warning("%s", error)
        server.say({"event": "failed", "message": error.message})
        return EXIT_LOST
    server.say({"event": "ready"})
    server.serve()
    return 0


if __name__ == "__main__":
    # Under its real name the module can be imported by the workers that hold the actors.
    from orchestrator.cluster import ray_gateway

    sys.exit(ray_gateway.run())
