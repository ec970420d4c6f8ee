"""Whether Ray still counts this machine's nodes, as the controller sees it.

A raylet ends by itself when it learns that it was declared dead or that its head is another one. This is for
the case that it does not.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from orchestrator.clock import SYSTEM, Clock
from orchestrator.cluster.config import StackConfig
from orchestrator.cluster.probes import get_json
from orchestrator.errors import UnavailableError
from orchestrator.settings import Home

log = logging.getLogger(__name__)

PERIOD_S: Final = 10.0
LOST_S: Final = 30.0
"""A node that runs here but is missing there for this long is started again."""


class Membership:
    """Asks the controller in the background and remembers since when each node has been missing."""

    def __init__(self, config: StackConfig, home: Home, clock: Clock = SYSTEM) -> None:
        self._config = config
        self._home = home
        self._clock = clock
        self._missing: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="membership", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Do not ask again."""
        self._stop.set()

    def lost_for_s(self, node: str) -> float:
        """How long the controller has been saying that the node is not there; 0 where it is."""
        since = self._missing.get(node)
        return 0.0 if since is None else self._clock.monotonic() - since

    def forget(self, node: str) -> None:
        """Begin to count anew, because the node is being started again."""
        self._missing.pop(node, None)

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD_S):
            ready = self._ready_nodes()
            if ready is None:
                self._missing.clear()
                continue
            now = self._clock.monotonic()
            for node in self._config.nodes:
                if node.name in ready:
                    self._missing.pop(node.name, None)
                else:
                    self._missing.setdefault(node.name, now)

    def _ready_nodes(self) -> set[str] | None:
        """Names of living nodes; None where nobody knows at the moment."""
        try:
            token = self._home.token_file.read_text().strip()
            nodes = get_json(f"{self._config.controller_url}/v1/nodes", token)
            ready = {node["name"] for node in nodes if node["state"] == "ready"}
            if ready.issuperset(node.name for node in self._config.nodes):
                return ready
            health = get_json(f"{self._config.controller_url}/v1/health", token)
            return ready if health.get("ray_connected") else None
        except (OSError, UnavailableError) as error:
            log.debug("nobody says which nodes are alive: %s", error)
            return None
