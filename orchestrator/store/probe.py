"""Does a store really honour create-only writes? Some ignore the condition, and then two attempts could
commit.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Final

from orchestrator.errors import OrchError, SetupError, StoreUnavailableError
from orchestrator.store.protocol import ObjectStore, read_bytes

_WRITERS: Final = 8
_ROUNDS: Final = 5


def probe(store: ObjectStore, timeout: float = 60.0) -> None:
    """Let several writers race for the same keys; SetupError unless each key gets one winner and keeps it.

    Leaves nothing behind. StoreUnavailableError where the store has not answered within `timeout` seconds.
    """
    folder = f"probe/{uuid.uuid4()}"
    for number in range(_ROUNDS):
        key = f"{folder}/{number}"
        try:
            _round(store, key, timeout / _ROUNDS)
        finally:
            store.delete(key)


def _round(store: ObjectStore, key: str, timeout: float) -> None:
    contents = [f"{number} {uuid.uuid4()}".encode() for number in range(_WRITERS)]
    barrier = threading.Barrier(_WRITERS)

    def write(number: int) -> bool:
        barrier.wait(timeout)
        return store.put(key, contents[number], create_only=True)

    won = _parallel(store, write, timeout)
    if sum(won) != 1:
        raise _ignored(store, f"{sum(won)} of {_WRITERS} writers that created one key at once succeeded")
    expected = contents[won.index(True)]
    if read_bytes(store, key) != expected:
        raise _ignored(store, "the key does not hold what the writer that created it wrote")
    if store.put(key, b"late", create_only=True) or read_bytes(store, key) != expected:
        raise _ignored(store, "a create-only write replaced an object that was there")


def _ignored(store: ObjectStore, what: str) -> SetupError:
    return SetupError(
        f"{store.uri} does not honour create-only writes: {what}. "
        "On such a store a run's old and new attempt could both commit checkpoints.",
        remedy="Use a local folder, an NFS mount, or object storage with conditional PUT.",
    )


def _parallel(store: ObjectStore, write: Callable[[int], bool], timeout: float) -> list[bool]:
    won = [False] * _WRITERS
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            won[number] = write(number)
        except (OrchError, threading.BrokenBarrierError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if any(thread.is_alive() for thread in threads):
        raise StoreUnavailableError(
            f"{store.uri} did not answer a small write within {timeout:.0f} s",
            remedy="Check the network and the server of the store.",
        )
    if failures:
        raise failures[0]
    return won
