"""How fast bytes may travel to and from object stores: one bucket of tokens per process and direction."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from orchestrator.clock import SYSTEM, Clock
from orchestrator.settings import rate
from orchestrator.store.protocol import CHUNK

_BLOCK_S: Final = 0.025
"""A block is what may pass within that many seconds, within reason."""
_BLOCK_LEAST, _BLOCK_MOST = 8 << 10, 64 << 10
_PIECE_S: Final = 0.0625
"""What is asked for at once should pass within that many seconds."""
_CREDIT_S: Final = 0.1
"""Tokens of that many seconds are kept while nothing is sent, so that waking late costs no speed."""
_STREAM: Final = 1 << 20
"""Bytes per second that a connection should have; a part that takes long may break off."""


class Pace(Protocol):
    """One direction."""

    block: int
    """Bytes to move at a time."""

    def take(self, size: int) -> None:
        """Block until that many bytes may pass."""
        ...

    def parallel(self, most: int) -> int:
        """Connections to use side by side."""
        ...

    def blocks(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """The data, piece by piece as it may pass."""
        ...

    def body(self, data: bytes) -> bytes | PacedBody:
        """The same for botocore to send."""
        ...

    def piece(self, most: int) -> int:
        """Bytes to ask for at once: what has been asked for comes as fast as the way allows."""
        ...


class Unlimited:
    """Nothing waits."""

    block: int = CHUNK

    def take(self, size: int) -> None:
        """At once."""

    def parallel(self, most: int) -> int:
        """All of them."""
        return most

    def blocks(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """In one piece."""
        yield data

    def body(self, data: bytes) -> bytes | PacedBody:
        """As it is."""
        return data

    def piece(self, most: int) -> int:
        """As many as can be."""
        return most


class TokenBucket:
    """`rate` bytes per second, whoever takes them; those who wait are served in the order of their coming."""

    def __init__(self, rate: float, clock: Clock = SYSTEM) -> None:
        self.rate = rate
        self.block = int(min(_BLOCK_MOST, max(_BLOCK_LEAST, rate * _BLOCK_S)))
        self._clock = clock
        self._lock = threading.Lock()
        self._free = float("-inf")
        """Monotonic time at which all bytes that were let through so far have passed at this rate."""

    def take(self, size: int) -> None:
        """See Pace."""
        with self._lock:
            now = self._clock.monotonic()
            self._free = max(self._free, now - _CREDIT_S) + size / self.rate
            wait = self._free - now
        if wait > 0:
            self._clock.sleep(wait)

    def parallel(self, most: int) -> int:
        """See Pace."""
        return max(1, min(most, int(self.rate / _STREAM)))

    def blocks(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """See Pace."""
        view = memoryview(data)
        for place in range(0, len(view), self.block):
            piece = view[place : place + self.block]
            self.take(len(piece))
            yield piece

    def body(self, data: bytes) -> bytes | PacedBody:
        """See Pace."""
        return PacedBody(data, self)

    def piece(self, most: int) -> int:
        """See Pace."""
        return int(min(most, max(_BLOCK_MOST, self.rate * _PIECE_S)))


class PacedBody(io.BytesIO):
    """The body of a request. Waits for tokens once it is being sent, and not while it is hashed and signed
    before.
    """

    def __init__(self, data: bytes, pace: Pace) -> None:
        super().__init__(data)
        self._pace = pace
        self.sending = False

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes; while it is sent few of them, when they may pass."""
        if not self.sending:
            return super().read(size)
        most = self._pace.block
        data = super().read(most if size is None or size < 0 else min(size, most))
        self._pace.take(len(data))
        return data


@dataclass(frozen=True)
class Paces:
    """Both directions."""

    up: Pace
    down: Pace


FREE: Final = Paces(Unlimited(), Unlimited())


@functools.cache
def process_paces() -> Paces:
    """What this process shares, by its environment. SetupError where a limit is nonsense."""
    return Paces(_pace(rate("ORCH_UPLOAD_LIMIT")), _pace(rate("ORCH_DOWNLOAD_LIMIT")))


def _pace(limit: float | None) -> Pace:
    return Unlimited() if limit is None else TokenBucket(limit)
