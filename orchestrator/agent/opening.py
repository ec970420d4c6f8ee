"""The beginning of an attempt: take the run in the store, and bring back the checkpoint to go on from."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from orchestrator.agent.job import AgentJob, RestoreFrom
from orchestrator.agent.transfer import Meter
from orchestrator.clock import SYSTEM, Clock
from orchestrator.contract import MARK_FILE
from orchestrator.domain.states import Phase
from orchestrator.errors import (
    NotFoundError,
    OrchError,
    Problem,
    SpecError,
    StoreUnavailableError,
)
from orchestrator.messages import Transfer
from orchestrator.settings import flag
from orchestrator.store.cache import NO_CACHE, CheckpointCache
from orchestrator.store.checkpoints import Restored, restore, restore_path
from orchestrator.store.objects import ObjectStore, open_store, store_id
from orchestrator.store.runlog import Claim, RunLog

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a store that cannot be reached is tried again before the attempt gives up."""
_MARK_LIMIT = 1 << 20


@dataclass(frozen=True)
class Opened:
    """What an attempt has once it has begun."""

    store: ObjectStore
    claim: Claim
    restored: Restored | None
    """The checkpoint of the store that it goes on from."""
    directory: Path | None
    """Where the checkpoint is on this machine; None where the program begins at its beginning."""
    first_step: int | None
    """The step to go on from; 0 at the beginning, None where a plain directory does not say."""
    cache: CheckpointCache
    """Where this node keeps checkpoints, so as not to fetch them."""
    shares_compiled: bool = False
    """Whether this node takes compiled steps from the store."""
    pins_cpus: bool = True
    """Whether programs on this node get processors of their own."""


@dataclass(frozen=True)
class Telling:
    """How the beginning tells what it is doing."""

    phase: Callable[[Phase], None]
    timing: Callable[[str, float], None]
    event: Callable[[str], None]
    transfer: Callable[[Transfer | None], None]


class Opening:
    """Claims and restores in a thread of its own, so that an order to stop is heard meanwhile."""

    def __init__(
        self,
        job: AgentJob,
        node_home: Path,
        into: Path,
        telling: Telling,
        notify: Callable[[], None],
        clock: Clock = SYSTEM,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.opened: Opened | None = None
        self.error: OrchError | None = None
        self._job = job
        self._node_home = node_home
        self._into = into
        self._telling = telling
        self._notify = notify
        self._clock = clock
        self._patience_s = patience_s
        self._cache = NO_CACHE
        self._meter = Meter(telling.transfer, clock)
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)

    @property
    def done(self) -> bool:
        """One of `opened` and `error` is set."""
        return self.opened is not None or self.error is not None

    def start(self) -> None:
        """Begin; `notify` is called at the end."""
        self._thread.start()

    def _run(self) -> None:
        try:
            shares = flag("ORCH_SHARE_COMPILED")
            pins = flag("ORCH_PIN_CPUS", default=True)
            self.opened = replace(self._open(), shares_compiled=shares, pins_cpus=pins)
        except OrchError as error:
            self.error = error
        except Exception as error:
            # The edge of a thread: whatever it is, the attempt has to end with a reason.
            log.exception("the attempt cannot begin")
            self.error = OrchError(f"{type(error).__name__}: {error}")
        self._notify()

    def _open(self) -> Opened:
        began = self._clock.monotonic()
        self._telling.phase(Phase.CLAIMING)
        store = open_store(store_uri(self._job, self._node_home))
        self._cache = CheckpointCache.of_node(self._node_home)
        self._patiently(lambda: _check_mounted(store))
        log_of_run = RunLog(store, self._job.run_id)
        claim = self._patiently(lambda: log_of_run.claim(self._job.attempt, node=self._job.node))
        claimed = self._clock.monotonic()
        self._telling.timing("claim", claimed - began)
        self._telling.phase(Phase.RESTORING)
        opened = self._restore(store, claim)
        self._telling.timing("restore", self._clock.monotonic() - claimed)
        return opened

    def _restore(self, store: ObjectStore, claim: Claim) -> Opened:
        """The run's own newest checkpoint, else where its spec says it begins, else the beginning."""
        try:
            restored = self._fetched(store, self._job.run_id, None)
        except NotFoundError:
            return self._restore_from(store, claim, self._job.restore_from)
        return self._restored(store, claim, restored)

    def _restore_from(self, store: ObjectStore, claim: Claim, source: RestoreFrom | None) -> Opened:
        if source is None:
            return Opened(store, claim, None, None, 0, self._cache)
        try:
            if source.path is not None:
                directory = Path(source.path).expanduser()
                restore_path(directory, self._into)
                self._telling.event(f"begins from {directory}")
                return Opened(store, claim, None, self._into, _step(self._into), self._cache)
            assert source.run_id is not None
            restored = self._fetched(store, source.run_id, source.step)
        except NotFoundError as error:
            raise SpecError([Problem("", 0, 0, "resume_from", error.message)]) from error
        return self._restored(store, claim, restored)

    def _fetched(self, store: ObjectStore, run_id: str, step: int | None) -> Restored:
        def fetch() -> Restored:
            with self._meter.measuring("down", step, None) as moved:
                return restore(store, run_id, step, self._into, cache=self._cache, on_bytes=moved)

        return self._patiently(fetch)

    def _restored(self, store: ObjectStore, claim: Claim, restored: Restored) -> Opened:
        record = restored.record
        for skipped, why in restored.skipped:
            self._telling.event(f"checkpoint of step {skipped.step} is damaged and was skipped: {why}")
        for slot in restored.unreadable:
            self._telling.event(f"record {slot.slot} of the run log is damaged: {slot.why}")
        whose = "" if record.run == self._job.run_id else f" of run {record.run}"
        self._telling.event(f"goes on from step {record.step}{whose}, saved by attempt {record.attempt}")
        return Opened(store, claim, restored, restored.directory, record.step, self._cache)

    def _patiently(self, action: Callable[[], T]) -> T:
        deadline = self._clock.monotonic() + self._patience_s
        pause, said = 0.5, False
        while True:
            try:
                return action()
            except StoreUnavailableError as error:
                if self._clock.monotonic() + pause > deadline:
                    raise
                if not said:
                    self._telling.event(f"waits for the store: {error.message}")
                    said = True
            self._clock.sleep(pause)
            pause = min(5.0, pause * 2)


def _check_mounted(store: ObjectStore) -> None:
    """A folder that is not mounted yet looks like an empty store; the identity file tells them apart."""
    try:
        store_id(store)
    except NotFoundError as error:
        raise StoreUnavailableError(error.message, remedy=error.remedy) from error


def _step(directory: Path) -> int | None:
    """The step that a plain checkpoint directory names; whether it is a good one, the program decides."""
    try:
        with (directory / MARK_FILE).open("rb") as file:
            step = json.loads(file.read(_MARK_LIMIT))["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) and step >= 0 else None


def store_uri(job: AgentJob, node_home: Path) -> str:
    """The object store as this node reaches it: its own settings win, because mount points differ."""
    try:
        settings = json.loads((node_home / "node.json").read_text())
    except FileNotFoundError:
        return job.store_uri
    return str(settings.get("store_uri") or job.store_uri)
