"""What the actors of quiet attempts say of their agents, asked in the background: a node that hangs must not
hold up the loop."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from orchestrator.clock import Clock
from orchestrator.cluster.gateway import Gateway
from orchestrator.domain.fleet import ActorInfo
from orchestrator.errors import OrchError

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
FRESH_S: Final = 10.0
"""An answer that is older is none."""


class Probes:
    """Answers at once with what was heard last."""

    def __init__(self, gateway: Gateway, clock: Clock) -> None:
        self._gateway = gateway
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[float, ActorInfo | None]] = {}
        """Name -> when, and what. None where it could not be asked."""
        self._asking: set[str] = set()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="probe")

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, name: str) -> ActorInfo | None:
        """What is known of this actor; asks again where that is not new."""
        now = self._clock.monotonic()
        with self._lock:
            at, known = self._answers.get(name, (now - FRESH_S - 1, None))
            if now - at > EVERY_S and name not in self._asking:
                self._asking.add(name)
                self._pool.submit(self._ask, name)
        return known if now - at <= FRESH_S else None

    def forget(self, name: str) -> None:
        """It speaks again, or has ended: what was said before does not count any more."""
        with self._lock:
            self._answers.pop(name, None)

    def _ask(self, name: str) -> None:
        info: ActorInfo | None = None
        try:
            info = self._gateway.probe(name)
        except OrchError as error:
            log.info("%s could not be asked about: %s", name, error)
        finally:
            with self._lock:
                self._asking.discard(name)
                self._answers[name] = (self._clock.monotonic(), info)
