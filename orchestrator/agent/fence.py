"""Whether this attempt still owns its run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from orchestrator.errors import FencedError, StoreError
from orchestrator.store.runlog import Claim

log = logging.getLogger(__name__)

FENCE_CHECK_S = 5.0


class FenceWatch:
    """Looks every few seconds whether a newer attempt has taken the run, also while a long upload goes on."""

    def __init__(self, claim: Claim, notify: Callable[[], None], every: float = FENCE_CHECK_S) -> None:
        self.fenced: str | None = None
        self._claim = claim
        self._notify = notify
        self._every = every
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _run(self) -> None:
        reachable = True
        while not self._closed.wait(self._every):
            try:
                self._claim.check()
                reachable = True
            except FencedError as error:
                self.fenced = error.message
                return self._notify()
            except StoreError as error:
                if reachable:
                    log.warning("the run log cannot be read at the moment: %s", error)
                reachable = False
        return None
