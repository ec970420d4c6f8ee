"""Whether this attempt still owns its run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import FencedError, StoreError
from orchestrator.store.runlog import Claim

log = logging.getLogger(__name__)

FENCE_CHECK_S = 5.0
TICK_S: Final = 0.5


class FenceWatch:
    """Looks every few seconds whether a newer attempt has taken the run, also while a long upload goes on;
    at once when this machine has slept, and again and again until the store has answered.

    Storage alone decides what can be committed, and every commit looks before it uploads anything. This is to
    end before the program has run on for long.
    """

    def __init__(
        self,
        claim: Claim,
        notify: Callable[[], None],
        every: float = FENCE_CHECK_S,
        clock: Clock = SYSTEM,
        tick: float = TICK_S,
    ) -> None:
        self.fenced: str | None = None
        self._claim = claim
        self._notify = notify
        self._every = every
        self._clock = clock
        self._tick = tick
        self._seen = clock.boottime()
        """When the run was last seen to be ours, on the clock that goes on while the machine sleeps."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _age(self) -> float:
        return self._clock.boottime() - self._seen

    def _look(self) -> None:
        """FencedError, StoreError."""
        began = self._clock.boottime()
        try:
            self._claim.check()
        except FencedError as error:
            self.fenced = error.message
            self._notify()
            raise
        self._seen = began

    def _run(self) -> None:
        reachable = True
        # Short waits: one that is longer would have to run to its end after the machine has slept in it.
        while not self._closed.wait(self._tick):
            if self._age() < self._every:
                continue
            try:
                self._look()
                reachable = True
            except FencedError:
                return
            except StoreError as error:
                if reachable:
                    log.warning("the run log cannot be read at the moment: %s", error)
                reachable = False
