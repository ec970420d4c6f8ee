"""Shares compiled steps through the store, for the built-in trainer on a node that has opted in.

The trainer leaves an empty file named by the key of the step that its run needs. The answer is that the file
goes: before that, what the store has was put into the node's cache. What the store has not is put there once
it is in the cache, because this run or an earlier one has compiled it. Nothing of this ever fails a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import platformdirs

from orchestrator.agent.packing import ENTRY, pack, unpack
from orchestrator.agent.workdir import remove
from orchestrator.clock import SYSTEM, Clock
from orchestrator.contract import yield_processor
from orchestrator.errors import DamagedError, OrchError
from orchestrator.store.compiled import MOST, StepNote, fetch, find, is_key, publish, wipe
from orchestrator.store.protocol import ObjectStore

log = logging.getLogger(__name__)

_EVERY_S: Final = 0.25
_ASIDE: Final = ".part"
_STALE_S: Final = 86400.0
"""What is being unpacked for longer belongs to an agent that was killed."""


def cache_root(environ: Mapping[str, str]) -> Path:
    """The folder of what later runs on this node can use again: the trainer's cache."""
    return Path(environ.get("ORCH_CACHE_DIR") or platformdirs.user_cache_dir("orch")).expanduser().absolute()


class SharedSteps:
    """Answers and stores in a thread of its own, at low priority.

    `busy` says whether something that goes first is on its way to the store; `notify` is called once
    there is nothing left to do.
    """

    def __init__(
        self,
        store: ObjectStore,
        wanted: Path,
        cache: Path,
        node: str,
        busy: Callable[[], bool],
        event: Callable[[str], None],
        notify: Callable[[], None],
        clock: Clock = SYSTEM,
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._entries = cache / "compiled"
        self._node = node
        self._busy = busy
        self._event = event
        self._notify = notify
        self._clock = clock
        self._answered: set[str] = set()
        self._lacking: set[str] = set()
        """Keys of this run that the store has not, as far as is known."""
        self._ending = threading.Event()
        self._done = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compiled", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def end(
        self, patience: float, rest: Callable[[float], None], hurried: Callable[[], object] = lambda: False
    ) -> None:
        """The program has ended: store what there is. What takes more than `patience` seconds, or is still to
        be done when somebody is in a hurry, is given up; a later run on this node does it. `rest` sleeps.
        """
        self._ending.set()
        until = self._clock.monotonic() + patience
        while not (self._done.is_set() or hurried()) and self._clock.monotonic() < until:
            rest(_EVERY_S)
        self._closed.set()

    def _run(self) -> None:
        yield_processor()
        self._remove_stale()
        while True:
            ending = self._ending.is_set()
            try:
                self._round()
            except Exception as error:
                # The edge of a thread: a step that is not shared costs a minute, a run may cost a week.
                log.exception("compiled steps are not shared any more")
                self._event(f"compiled steps are not shared any more: {type(error).__name__}: {error}")
                break
            if ending or self._closed.is_set():
                break
            self._ending.wait(_EVERY_S)
        for key in self._asked():
            remove(self._wanted / key)
        self._done.set()
        self._notify()

    def _round(self) -> None:
        for key in self._asked():
            try:
                if key not in self._answered:
                    self._answered.add(key)
                    self._answer(key)
            finally:
                remove(self._wanted / key)
        for key in sorted(self._lacking):
            if self._is_here(key):
                self._lacking.discard(key)
                self._give(key)

    def _asked(self) -> list[str]:
        try:
            return sorted(filter(is_key, os.listdir(self._wanted)))
        except OSError:
            return []

    def _is_here(self, key: str) -> bool:
        return (self._entries / key / ENTRY).is_file()

    # ------------------------------------------------------------------ out of the store

    def _answer(self, key: str) -> None:
        """Bring the step here, or note that the store has not got it."""
        try:
            if self._is_here(key) or not self._take(key):
                self._lacking.add(key)
        except (OrchError, OSError) as error:
            self._lacking.add(key)
            self._event(f"the compiled step could not be taken from the store: {_text(error)}")

    def _take(self, key: str) -> bool:
        """False where the store has nothing that can be used; what is damaged is removed from it."""
        note = None
        with self._aside(key) as aside:
            try:
                note = find(self._store, key)
                if note is None:
                    return False
                fetch(self._store, key, note, aside / "archive")
                unpack(aside / "archive", aside / "entry")
            except DamagedError as error:
                self._event(f"the store's compiled step cannot be used and is removed: {error.message}")
                wipe(self._store, key, note)
                return False
            if self._place(aside / "entry", key):
                self._event(f"compiled step taken from the store ({_megabytes(note.size)})")
        return True

    def _place(self, made: Path, key: str) -> bool:
        """Make it an entry, unless there is one or somebody is compiling it at this moment."""
        with (self._entries / f".{key}.lock").open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("compiled step %s is being made here", key)
                return False
            if self._is_here(key):
                return False
            entry = self._entries / key
            if entry.exists():
                shutil.rmtree(entry)  # of a process that was killed while it compiled
            made.rename(entry)
            return True

    # ------------------------------------------------------------------ into the store

    def _give(self, key: str) -> None:
        try:
            if not self._has(key):
                self._put(key)
        except _Closed:
            log.info("the run ended before compiled step %s was stored", key)
        except (OrchError, OSError) as error:
            self._event(f"the compiled step could not be put into the store: {_text(error)}")

    def _has(self, key: str) -> bool:
        try:
            return find(self._store, key) is not None
        except DamagedError:
            wipe(self._store, key, None)
            return False

    def _put(self, key: str) -> None:
        with self._aside(key) as aside:
            archive = aside / "archive"
            pack(self._entries / key, archive)
            with archive.open("rb") as file:
                size, sha256 = archive.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
                if size > MOST:
                    return self._event(f"the compiled step has {_megabytes(size)} and is not shared")
                file.seek(0)
                note = StepNote(sha256=sha256, size=size, at=self._clock.now(), node=self._node)
                if publish(self._store, key, note, _Yielding(file, self._busy, self._closed)):
                    self._event(f"compiled step put into the store ({_megabytes(size)})")
        return None

    # ------------------------------------------------------------------ files beside the entries

    @contextmanager
    def _aside(self, key: str) -> Iterator[Path]:
        """A folder on the cache's disk that goes afterwards."""
        self._entries.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(_ASIDE, f".{key}.", self._entries))
        try:
            yield folder
        finally:
            remove(folder)

    def _remove_stale(self) -> None:
        for folder in self._entries.glob(f".*{_ASIDE}"):
            with contextlib.suppress(OSError):  # another agent may be doing the same
                if time.time() - folder.stat().st_mtime > _STALE_S:
                    shutil.rmtree(folder)


class _Closed(Exception):
    """The run does not wait any longer."""


class _Yielding:
    """An archive to be sent, which waits while something else is more important."""

    def __init__(self, file: BinaryIO, busy: Callable[[], bool], closed: threading.Event) -> None:
        self._file, self._busy, self._closed = file, busy, closed

    def read(self, size: int, /) -> bytes:
        """See Reader. Raises _Closed where the run has ended."""
        while self._busy() and not self._closed.is_set():
            self._closed.wait(_EVERY_S)
        if self._closed.is_set():
            raise _Closed
        return self._file.read(size)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _text(error: OrchError | OSError) -> str:
    return error.message if isinstance(error, OrchError) else str(error)
