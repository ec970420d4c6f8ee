"""The controller's picture of the cluster, refreshed in the background so that nothing waits for Ray."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cluster.gateway import Gateway
from orchestrator.domain.fleet import NodeInfo
from orchestrator.errors import OrchError

log = logging.getLogger(__name__)

PERIOD_S = 1.0


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
    """Asks the gateway about once a second and calls `on_change` when the answer differs."""

    def __init__(
        self,
        gateway: Gateway,
        on_change: Callable[[], None],
        told: Callable[[NodeInfo], NodeInfo] = lambda node: node,
    ) -> None:
        self._gateway = gateway
        self._told = told
        self._on_change = on_change
        self._fleet = Fleet()
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

    def _watch(self) -> None:
        while not self._stop.is_set():
            fleet = self._ask()
            if fleet != self._fleet:
                self._fleet = fleet
                self._on_change()
            self._stop.wait(PERIOD_S)

    def _ask(self) -> Fleet:
        try:
            return Fleet(tuple(map(self._told, self._gateway.nodes())), connected=True)
        except OrchError as error:
            if self._fleet.connected:
                log.warning("Ray does not answer: %s", error)
            return Fleet(self._fleet.nodes, connected=False)
