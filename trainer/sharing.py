"""Asks whoever runs this program for a step that another machine has compiled (``ORCH_COMPILED_WANTED``)."""

from __future__ import annotations

import os
import time
from pathlib import Path

PATIENCE_S = 20.0
"""How long an answer may take."""
_POLL_S = 0.05


class Request:
    """Asks for the step of a key, also where it is in the cache: others may need it. Nothing is pending where
    steps are not shared.
    """

    def __init__(self, key: str) -> None:
        self._until = time.monotonic() + PATIENCE_S
        folder = os.environ.get("ORCH_COMPILED_WANTED")
        self._file = Path(folder, key) if folder else None
        if self._file is not None:
            try:
                self._file.touch()
            except OSError:  # a full disk, which a run has worse to say about
                self._file = None

    @property
    def pending(self) -> bool:
        """Whether an answer may still come. After that the cache has the step, or nobody else can give it."""
        return self._file is not None and time.monotonic() < self._until and self._file.exists()

    def wait(self) -> None:
        """Return once nothing is pending."""
        while self.pending:
            time.sleep(_POLL_S)
