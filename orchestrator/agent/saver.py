"""Finished checkpoints of the program: taken over, committed to the store one at a time, thinned out.

A directory that the program has published is moved aside at once. From then on it is the agent's: the
program can publish the same step again without changing files that are being uploaded. While one upload
runs, of several that wait only the newest is kept.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator import __version__
from orchestrator.agent.metrics import CommitPoints
from orchestrator.agent.opening import Opened
from orchestrator.agent.reporter import Reporter
from orchestrator.agent.transfer import Meter
from orchestrator.agent.workdir import WorkDir, remove, size_of
from orchestrator.clock import SYSTEM, Clock
from orchestrator.contract import MARK_FILE, parse_step, yield_processor
from orchestrator.errors import FencedError, OrchError, StoreError, StoreFullError, StoreUnavailableError
from orchestrator.messages_agent import CheckpointNote
from orchestrator.spec.models import CheckpointPolicy
from orchestrator.store.checkpoints import CheckpointRecord, CheckpointWriter

log = logging.getLogger(__name__)

_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_RETRY_AT_END_S = 2.0
_MARK_LIMIT = 1 << 20


@dataclass(frozen=True)
class Finished:
    """A directory that the program has published."""

    step: int
    directory: Path
    since: float
    """Monotonic time at which it was found."""


@dataclass(frozen=True)
class Destination:
    """What goes into each record."""

    node: str
    device: str
    store_uri: str
    """The store as the controller names it."""
    policy: CheckpointPolicy


class Saver:
    """Commits in a thread of its own; training goes on meanwhile.

    `fenced`, `idle` and `unsaved` change in that thread, and `notify` is called when they do.
    """

    def __init__(
        self,
        folder: WorkDir,
        opened: Opened,
        destination: Destination,
        reporter: Reporter,
        notify: Callable[[], None],
        clock: Clock = SYSTEM,
    ) -> None:
        self.fenced: str | None = None
        """A newer attempt owns the run; nothing more can be committed."""
        self.unsaved: tuple[int, OrchError] | None = None
        """Step of the newest finished checkpoint where that is not in the store, and why."""
        self.last_step: int | None = None
        """Step of the last commit."""
        self._folder = folder
        self._opened = opened
        self._to = destination
        self._reporter = reporter
        self._notify = notify
        self._clock = clock
        self._writer = CheckpointWriter(opened.store, opened.claim)
        self._points = CommitPoints(folder.metrics)
        self._meter = Meter(lambda moving: reporter.update(transfer=moving), clock)
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._waiting: Finished | None = None
        self._current: Finished | None = None
        self._failures = 0
        self._count = 0
        self._said = False
        """The controller knows that checkpoints do not reach the store at the moment."""
        self._ending = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)

    @property
    def idle(self) -> bool:
        """Every checkpoint that was taken over is committed, given up, or replaced by a newer one."""
        with self._lock:
            return self._waiting is None and self._current is None

    def start(self) -> None:
        """Begin to commit."""
        self._thread.start()

    def scan(self) -> None:
        """Take over what the program has published since the last call."""
        for step, directory in sorted(self._published()):
            self._count += 1
            taken = self._folder.taken / f"{directory.name}.{self._count}"
            try:
                directory.rename(taken)
            except FileNotFoundError:
                continue  # The program is replacing it with another of the same step.
            self._offer(Finished(step, taken, self._clock.monotonic()))

    def end(self) -> None:
        """Nothing more is to come: try again sooner after an error."""
        self._ending = True
        self._news.set()

    def close(self) -> None:
        """Commit nothing more."""
        self._closed = True
        self._news.set()

    def _published(self) -> list[tuple[int, Path]]:
        found: list[tuple[int, Path]] = []
        try:
            entries = list(os.scandir(self._folder.checkpoints))
        except OSError:
            return found  # The program may do with its directory what it likes.
        for entry in entries:
            step = parse_step(entry.name)
            if step is not None and entry.is_dir(follow_symlinks=False):
                found.append((step, Path(entry.path)))
        return found

    def _offer(self, finished: Finished) -> None:
        with self._lock:
            replaced, self._waiting = self._waiting, finished
        self._failures = 0
        self._news.set()
        if replaced is not None:
            log.info("checkpoint of step %d is replaced by step %d", replaced.step, finished.step)
            remove(replaced.directory)

    def _run(self) -> None:
        yield_processor()
        while not self._over():
            self._news.clear()
            with self._lock:
                self._current, self._waiting = self._waiting, None
            if self._current is not None:
                self._commit_one(self._current)
                self._notify()
            if self._nothing_to_do():
                self._news.wait(self._pause())

    def _over(self) -> bool:
        return self._closed or self.fenced is not None

    def _nothing_to_do(self) -> bool:
        with self._lock:
            return self._waiting is None or self._failures > 0

    def _pause(self) -> float | None:
        if self.idle:
            return None
        longest = _RETRY_AT_END_S if self._ending else math.inf
        return min(longest, _RETRY_S[min(self._failures, len(_RETRY_S)) - 1])

    def _commit_one(self, finished: Finished) -> None:
        try:
            record = self._commit(finished)
        except FencedError as error:
            self.fenced = error.message
        except (StoreFullError, StoreUnavailableError) as error:
            self._later(finished, error)
        except Exception as error:
            # The edge of a thread: a checkpoint that cannot be committed must not end all later commits.
            log.exception("checkpoint of step %d cannot be committed", finished.step)
            problem = (
                error if isinstance(error, OrchError) else StoreError(f"{type(error).__name__}: {error}")
            )
            self._give_up(finished, problem)
        else:
            self._committed(finished, record)

    def _commit(self, finished: Finished) -> CheckpointRecord:
        """Commit; on a full store make room by retention and try once more."""
        try:
            return self._try_commit(finished)
        except StoreFullError as error:
            log.warning("%s; removing what need not be kept, also of dead attempts", error)
            self._retain(now=True)
        return self._try_commit(finished)

    def _try_commit(self, finished: Finished) -> CheckpointRecord:
        restored = self._opened.restored
        metrics, versions = self._mark(finished)
        with self._meter.measuring("up", finished.step, size_of(finished.directory)) as moved:
            record = self._writer.commit(
                finished.directory,
                finished.step,
                metrics=metrics,
                device=self._to.device,
                node=self._to.node,
                points=self._points.until(finished.step),
                parent=restored.record if restored else None,
                versions={"orch": __version__, "python": platform.python_version(), **versions},
                on_bytes=moved,
            )
        self._points.taken()
        return record

    def _mark(self, finished: Finished) -> tuple[dict[str, float], dict[str, str]]:
        """The metrics and versions that the program wrote into its checkpoint; none where it wrote none."""
        try:
            with (finished.directory / MARK_FILE).open("rb") as file:
                mark = json.loads(file.read(_MARK_LIMIT))
            metrics = {
                str(key): float(value)
                for key, value in mark.get("metrics", {}).items()
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            }
            versions = mark.get("versions", {}).items()
            return metrics, {str(k)[:80]: v[:80] for k, v in versions if isinstance(v, str)}
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            self._reporter.event(f"{MARK_FILE} of step {finished.step} cannot be read: {error}")
            return {}, {}

    def _committed(self, finished: Finished, record: CheckpointRecord) -> None:
        self.last_step = record.step
        self.unsaved = None
        self._failures, self._said = 0, False
        seconds = self._clock.monotonic() - finished.since
        log.info("committed step %d, %d bytes, in %.2f s", record.step, record.size, seconds)
        self._reporter.checkpoint(
            CheckpointNote(
                step=record.step,
                at=record.at,
                size=record.size,
                seconds=round(seconds, 4),
                metrics=record.metrics,
                uri=f"{self._to.store_uri.rstrip('/')}/{record.data}",
                sha256=record.sha256,
            )
        )
        self._opened.cache.take_in(finished.directory, record.files)
        self._done(finished)
        self._retain()

    def _retain(self, *, now: bool = False) -> None:
        """Thin out the checkpoints, and remove what dead attempts have left behind; `now` without grace."""
        policy = self._to.policy
        try:
            self._writer.retain(
                policy.keep_last,
                policy.keep_best,
                policy.metric,
                policy.mode,
                keep_every=policy.keep_every,
                grace_s=0.0 if now else policy.grace,
            )
        except FencedError as error:
            self.fenced = error.message
        except StoreError as error:
            log.warning("old checkpoints could not be removed: %s", error)

    def _later(self, finished: Finished, error: StoreError) -> None:
        """Keep it for another try, unless a newer one waits already."""
        if not self._said:
            self._said = True
            self._reporter.event(f"checkpoint of step {finished.step} is not stored yet: {error.message}")
        self._failures += 1
        self.unsaved = (finished.step, error)
        with self._lock:
            self._current = None
            if self._waiting is None:
                self._waiting = finished
                return
            self._failures = 0
        remove(finished.directory)

    def _give_up(self, finished: Finished, error: OrchError) -> None:
        self._reporter.event(f"checkpoint of step {finished.step} cannot be stored: {error.message}")
        self.unsaved = (finished.step, error)
        self._done(finished)

    def _done(self, finished: Finished) -> None:
        with self._lock:
            self._current = None
        remove(finished.directory)
