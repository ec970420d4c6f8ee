"""Files that the program leaves to be kept with the run: sent to the controller once they stand still."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.agent.link import Link
from orchestrator.errors import OrchError, UnauthorizedError, UnavailableError

log = logging.getLogger(__name__)

LIMIT = 64 << 20
"""Bytes of one artifact."""
EVERY_S = 2.0
_MAX_FILES = 1000

Version = tuple[int, int]
"""Size and time of the last change."""


class Artifacts:
    """Sends what is in a folder, in a thread of its own. A file that changes later is sent again."""

    def __init__(self, link: Link, base: str, folder: Path, event: Callable[[str], None]) -> None:
        self.complete = threading.Event()
        """Set after :meth:`finish`, once everything is sent or will not be."""
        self._link = link
        self._base = base
        self._folder = folder
        self._event = event
        self._sent: dict[str, Version] = {}
        self._seen: dict[str, Version] = {}
        self._told: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="artifacts", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def finish(self) -> None:
        """The program has ended: every file is final."""
        self._ending.set()

    def _run(self) -> None:
        while not self.complete.is_set():
            self._ending.wait(EVERY_S)
            ending = self._ending.is_set()
            try:
                everything = self._round(ending)
            except Exception:
                # The edge of a thread: one strange file must not keep the others from being sent.
                log.exception("artifacts could not be sent")
                everything = True
            if ending and everything:
                self.complete.set()
            elif ending:
                self.complete.wait(EVERY_S)
        self._link.close()

    def _round(self, ending: bool) -> bool:
        """Send what stands still; False where something is still to be sent."""
        found = dict(self._files())
        ready = {
            path: version for path, version in found.items() if ending or self._seen.get(path) == version
        }
        self._seen = found
        try:
            for path, version in ready.items():
                if self._sent.get(path) != version:
                    self._send(path, version)
        except (UnavailableError, UnauthorizedError) as error:
            log.info("artifacts wait: %s", error)
            return False
        return True

    def _send(self, path: str, version: Version) -> None:
        size = version[0]
        self._sent[path] = version
        if size > LIMIT:
            return self._tell(path, f"artifact {path} has {size} bytes and is not kept; the limit is {LIMIT}")
        try:
            with _open(self._folder / path) as file:
                self._link.put(f"{self._base}/{path}", file, size)
        except (UnavailableError, UnauthorizedError):
            del self._sent[path]
            raise
        except (OSError, OrchError) as error:
            return self._tell(path, f"artifact {path} cannot be kept: {error}")
        log.info("sent artifact %s, %d bytes", path, size)
        return None

    def _tell(self, path: str, text: str) -> None:
        if path not in self._told:
            self._told.add(path)
            self._event(text)

    def _files(self) -> Iterator[tuple[str, Version]]:
        """Regular files only: a link could lead to a file that is none of the run's business, such as the
        token."""
        count = 0
        for folder, _, names in os.walk(self._folder, followlinks=False):
            for name in names:
                file = Path(folder, name)
                try:
                    status = file.lstat()
                except FileNotFoundError:
                    continue
                if not stat.S_ISREG(status.st_mode):
                    continue
                count += 1
                if count > _MAX_FILES:
                    return self._tell("", f"only the first {_MAX_FILES} artifacts are kept")
                yield str(file.relative_to(self._folder)), (status.st_size, status.st_mtime_ns)
        return None


def _open(file: Path) -> BinaryIO:
    return os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
