"""Nodes on which nothing starts for a while: several runs have failed there, or nothing is heard of them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from orchestrator.clock import Clock
from orchestrator.domain.exclusion import MEMORY_S, exclusions
from orchestrator.domain.fleet import NodeInfo
from orchestrator.domain.records import AttemptRecord
from orchestrator.store.ledger import Ledger

log = logging.getLogger(__name__)

_MOST: Final = 5000
"""Ended attempts that are remembered."""


def with_exclusions(
    nodes: Sequence[NodeInfo], attempts: Iterable[AttemptRecord], now: datetime
) -> list[NodeInfo]:
    """The nodes, `excluded` set where the attempts that have ended lately ask for it."""
    excluded = exclusions(attempts, now)
    return [
        replace(node, excluded=excluded[node.name].why) if node.name in excluded else node for node in nodes
    ]


class NodeHealth:
    """Remembers ended attempts of the last day, and marks nodes. Safe to use from several threads."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        with ledger.read() as reading:
            since = clock.now() - timedelta(seconds=MEMORY_S)
            self._ended = deque(reading.ended_since(since, _MOST), maxlen=_MOST)
        self._excluded = exclusions(self._ended, clock.now())
        self._quiet: dict[str, str] = {}

    def ended(self, attempt: AttemptRecord) -> None:
        """An attempt has ended; an exclusion that follows is told in the history of its run."""
        now = self._clock.now()
        oldest = now - timedelta(seconds=MEMORY_S)
        with self._lock:
            self._ended.append(attempt)
            while self._ended[0].ended_at is None or self._ended[0].ended_at < oldest:
                self._ended.popleft()
            before, self._excluded = self._excluded, exclusions(self._ended, now)
            new = [e for name, e in self._excluded.items() if before.get(name) != e]
        for exclusion in new:
            log.warning("%s is %s", exclusion.node, exclusion.why)
            with self._ledger.begin() as ledger:
                ledger.add_event(exclusion.run_id, now, "node", f"{exclusion.node} is {exclusion.why}")

    def quiet(self, why: Mapping[str, str]) -> None:
        """Nodes of which nothing is heard, by Ray id, and why to start nothing there."""
        with self._lock:
            self._quiet = dict(why)

    def told(self, node: NodeInfo) -> NodeInfo:
        """The node as it should be seen now."""
        with self._lock:
            excluded, quiet = self._excluded.get(node.name), self._quiet.get(node.ray_id, "")
        why = excluded.why if excluded is not None and excluded.until > self._clock.now() else quiet
        return replace(node, excluded=why) if why != node.excluded else node
