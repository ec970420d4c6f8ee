"""Attempts whose every store operation waits for permission, so that a test can interleave them as it
likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from orchestrator.errors import StoreUnavailableError
from tests.unit.store.memory_store import MemoryStore

PATIENCE_S = 30.0


class Crash(BaseException):
    """The machine loses power; nothing catches this."""


class Actor:
    """A thread that works on a shared store one operation at a time.

    Between operations it waits in :meth:`step`'s hands. What becomes of an operation:

    ``do``      it is carried out
    ``lost``    it is carried out, and the answer is an error
    ``fail``    it is not carried out, and the answer is an error
    ``delayed`` it is under way, and the answer is an error; it arrives when one of `late` is called
    ``crash``   the actor dies before it
    ``died``    the actor dies after it
    ``late``    the actor dies; the operation is under way
    """

    def __init__(self, objects: dict[str, bytes], attempt: int) -> None:
        self.attempt = attempt
        self.store = MemoryStore(objects, self._hook)
        self.dead = False
        self.next_operation = ""
        """What it waits to do."""
        self.late: list[Callable[[], object]] = []
        self._job: Callable[[], Any] | None = None
        self._then: Callable[[Any, BaseException | None], None] = lambda result, error: None
        self._orders: list[str] = []
        self._order = threading.Semaphore(0)
        self._paused = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """True where it has nothing to do and is alive."""
        return self._thread is None and not self.dead

    def begin(self, job: Callable[[], Any], then: Callable[[Any, BaseException | None], None]) -> None:
        """Start a job and wait until it asks for its first operation; `then` gets result or error."""
        assert self.idle
        self._job, self._then = job, then
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def step(self, order: str) -> None:
        """Let the next operation happen in one of the ways, and wait for the one after it."""
        assert self._thread is not None
        self._orders.append(order)
        self._order.release()
        self._wait()

    def _wait(self) -> None:
        assert self._paused.acquire(timeout=PATIENCE_S), f"attempt {self.attempt} hangs"

    def _run(self) -> None:
        assert self._job is not None
        result: Any = None
        failure: BaseException | None = None
        try:
            result = self._job()
        except Crash:
            self.dead = True
        except BaseException as error:  # noqa: BLE001
            failure = error
        self._thread = None
        if not self.dead:
            self._then(result, failure)
        self._paused.release()

    def _hook(self, operation: str, key: str, act: Callable[[], object]) -> object:
        if threading.current_thread() is not self._thread:
            return act()
        self.next_operation = operation
        self._paused.release()
        assert self._order.acquire(timeout=PATIENCE_S)
        order = self._orders.pop(0)
        if order in ("do", "lost", "died"):
            result = act()
            if order == "do":
                return result
        if order in ("late", "delayed") and operation in ("create", "put"):
            self.late.append(act)
        if order in ("lost", "fail", "delayed"):
            raise StoreUnavailableError(f"{operation} {key}: {order}")
        raise Crash
