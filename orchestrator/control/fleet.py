"""The controller's picture of the cluster, refreshed in the background so that nothing waits for Ray."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.cluster.gateway import Gateway
from orchestrator.domain.fleet import NodeInfo
from orchestrator.errors import OrchError

log = logging.getLogger(__name__)

PERIOD_S = 1.0
IDLE_PERIOD_S = 4.0
SETTLED_S = 30.0
"""Where nothing waits or executes and the picture has been the same for so long, Ray is asked less often."""


@dataclass(frozen=True)
class Fleet:
    """What Ray said last; the last known nodes while `connected` is False and Ray cannot be asked."""

    nodes: tuple[NodeInfo, ...] = ()
    connected: bool = False

    def alive(self, ray_id: str) -> bool | None:
        """Whether this Ray node lives; None while nobody can say."""
        if not self.connected:
            return None
        return any(node.ray_id == ray_id and node.alive for node in self.nodes)


class FleetWatcher:
    """Asks the gateway about once a second and calls `on_change` when the picture differs.

    `told` adds to each node what else is known of it; `idle` says whether nobody needs the picture just now.
    """

    def __init__(
        self,
        gateway: Gateway,
        on_change: Callable[[], None],
        told: Callable[[NodeInfo], NodeInfo] = lambda node: node,
        idle: Callable[[], bool] = lambda: False,
    ) -> None:
        self._gateway = gateway
        self._on_change = on_change
        self._told = told
        self._idle = idle
        self._ray = Fleet()
        self._fleet = Fleet()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fleet", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End watching."""
        self._stop.set()

    @property
    def fleet(self) -> Fleet:
        """The last picture."""
        return self._fleet

    def refresh(self) -> None:
        """Draw the picture anew from what Ray said last, because something else has changed."""
        with self._lock:
            before = self._fleet
            self._fleet = replace(self._ray, nodes=tuple(map(self._told, self._ray.nodes)))
            changed = before != self._fleet and _for_placing(before) != _for_placing(self._fleet)
        if changed:
            self._on_change()

    def _watch(self) -> None:
        settled = time.monotonic()
        while not self._stop.is_set():
            before, self._ray = self._ray, self._ask()
            self.refresh()
            now = time.monotonic()
            if self._ray != before or not self._idle():
                settled = now
            self._stop.wait(IDLE_PERIOD_S if now - settled > SETTLED_S else PERIOD_S)

    def _ask(self) -> Fleet:
        try:
            return Fleet(tuple(self._gateway.nodes()), connected=True)
        except OrchError as error:
            if self._ray.connected:
                log.warning("Ray does not answer: %s", error)
            return Fleet(self._ray.nodes, connected=False)


def _for_placing(fleet: Fleet) -> Fleet:
    """What may start where does not depend on how busy somebody else keeps a GPU just now."""
    return replace(fleet, nodes=tuple(map(_without_use, fleet.nodes)))


def _without_use(node: NodeInfo) -> NodeInfo:
    if not any(gpu.foreign_use for gpu in node.report.gpus):
        return node
    gpus = tuple(replace(gpu, foreign_use=0.0) for gpu in node.report.gpus)
    return replace(node, report=replace(node.report, gpus=gpus))
