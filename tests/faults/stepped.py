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


Then = Callable[[Any, BaseException | None], None]
"""Gets the result of a job, or its error."""


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
        self._job: tuple[Callable[[], Any], Then] | None = None
        self._ended: tuple[Then, Any, BaseException | None] | None = None
        self._order = ""
        # Binary semaphores: `go` lets the thread run on, `back` says that it waits again.
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """True where it has nothing to do and is alive."""
        return self._job is None and not self.dead

    def begin(self, work: Callable[[], Any], then: Then) -> None:
        """Start a job and wait until it asks for its first operation; `then` is called in this thread."""
        assert self.idle
        self._job = (work, then)
        self._switch()

    def step(self, order: str) -> None:
        """Let the next operation happen in one of the ways, and wait for the one after it."""
        assert self._job is not None
        self._order = order
        self._switch()

    def close(self) -> None:
        """End the thread; what it was doing crashes."""
        if not self.dead:
            self._order = "crash"
            self._switch()
        assert self.dead

    def _switch(self) -> None:
        self._go.release()
        assert self._back.acquire(timeout=PATIENCE_S), f"attempt {self.attempt} hangs"
        if self._ended is not None:
            (then, result, error), self._ended = self._ended, None
            then(result, error)

    def _run(self) -> None:
        while not self.dead:
            self._go.acquire()
            if self._job is None:
                self.dead = True
            else:
                self._work(*self._job)
            self._back.release()

    def _work(self, work: Callable[[], Any], then: Then) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = work()
        except Crash:
            assert self.dead
        except BaseException as error:  # noqa: BLE001
            failure = error
        self._job = None
        if not self.dead:
            self._ended = (then, result, failure)

    def _hook(self, operation: str, key: str, act: Callable[[], object]) -> object:
        if self.dead:
            raise Crash
        self.next_operation = operation
        self._back.release()
        self._go.acquire()
        order = self._order
        if order in ("do", "lost", "died"):
            result = act()
            if order == "do":
                return result
        if order in ("late", "delayed") and operation in ("create", "put"):
            self.late.append(act)
        if order in ("lost", "fail", "delayed"):
            raise StoreUnavailableError(f"{operation} {key}: {order}")
        self.dead = True
        raise Crash
