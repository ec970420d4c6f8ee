"""A machine that wakes looks at the fence first, and commits nothing before it has seen that it still may."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

from orchestrator.agent.fence import FENCE_CHECK_S, FenceWatch
from orchestrator.agent.opening import Opened
from orchestrator.agent.reporter import Reporter
from orchestrator.agent.saver import Destination, Saver
from orchestrator.agent.workdir import WorkDir
from orchestrator.clock import SystemClock
from orchestrator.errors import StoreUnavailableError
from orchestrator.spec.models import CheckpointPolicy
from orchestrator.store.cache import NO_CACHE
from orchestrator.store.runlog import Claim, RunLog
from tests.support import wait_until
from tests.unit.store.memory_store import MemoryStore


class Turned(SystemClock):
    """The clock that goes on while the machine sleeps is turned by the test; the others are the system's."""

    at = 1000.0

    def boottime(self) -> float:
        return self.at


class Store(MemoryStore):
    """Counts its reads, and can be away."""

    def __init__(self) -> None:
        super().__init__(hook=self._do)
        self.reads = 0
        self.away = False

    def _do(self, operation: str, key: str, act: Callable[[], object]) -> object:
        self.reads += operation == "get"
        if self.away:
            raise StoreUnavailableError("away")
        return act()


def taken_by_another(store: Store) -> None:
    RunLog(store, "r").claim(2, node="other")


@contextmanager
def watching(store: Store, clock: Turned) -> Iterator[tuple[FenceWatch, list[str]]]:
    claim: Claim = RunLog(store, "r").claim(1, node="n")
    told: list[str] = []
    watch = FenceWatch(claim, lambda: told.append("fenced"), clock=clock, tick=0.01)
    watch.start()
    try:
        yield watch, told
    finally:
        watch.close()


def test_after_a_sleep_it_looks_at_once_and_is_fenced() -> None:
    store, clock = Store(), Turned()
    with watching(store, clock) as (watch, told):
        taken_by_another(store)
        clock.at += FENCE_CHECK_S - 0.1
        assert watch.fenced is None
        clock.at += 3600  # the monotonic clock has hardly moved
        wait_until(lambda: told, 5)
        assert watch.fenced is not None
        assert "attempt 2" in watch.fenced


def test_while_the_store_is_away_it_looks_again_and_again_and_nothing_is_told() -> None:
    store, clock = Store(), Turned()
    with watching(store, clock) as (watch, told):
        taken_by_another(store)
        store.away = True
        clock.at += 3600
        before = store.reads
        wait_until(lambda: store.reads > before + 3, 5)
        assert not told
        store.away = False
        wait_until(lambda: told, 5)
        assert watch.fenced is not None


def test_nothing_is_uploaded_before_the_look_has_succeeded(tmp_path: Path) -> None:
    store = Store()
    claim = RunLog(store, "r").claim(1, node="n")
    folder = WorkDir(tmp_path)
    folder.prepare()
    opened = Opened(store, claim, None, None, 0, NO_CACHE)
    to = Destination("n", "cpu", "memory://test", CheckpointPolicy())
    told = threading.Event()
    saver = Saver(folder, opened, to, Mock(spec=Reporter), told.set)
    taken_by_another(store)
    before = dict(store.objects)
    (folder.checkpoints / "step-00000005").mkdir()
    (folder.checkpoints / "step-00000005" / "weights").write_bytes(b"x" * 100)
    store.away = True
    saver.start()
    saver.scan()
    wait_until(lambda: saver.unsaved, 5)
    told.clear()
    store.away = False
    wait_until(lambda: saver.fenced, 5)
    assert store.objects == before
    saver.close()
