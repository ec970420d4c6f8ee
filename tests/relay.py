"""A relay in front of a real server that passes bytes on as they come, counts them, and can go away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_BLOCK = 1 << 16


@dataclass
class Relay:
    """Where it is, and what has passed."""

    upstream: str
    url: str = ""
    up: list[tuple[float, int]] = field(default_factory=list)
    """Monotonic time and number of bytes of each block that a client has sent."""
    down: list[tuple[float, int]] = field(default_factory=list)
    """The same for what the server has sent."""
    away: bool = False
    """Every connection is cut, and none is taken."""
    away_after: int | None = None
    """Go away once a client has sent that many bytes in all."""

    def __post_init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def sent(self) -> int:
        """Bytes that clients have sent."""
        return sum(size for _, size in self.up)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        where = urlsplit(self.upstream)
        if self.away:
            writer.transport.abort()
            return
        there, to_there = await asyncio.open_connection(where.hostname, where.port)
        self._writers |= {writer, to_there}
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(self._pass(reader, to_there, self.up), self._pass(there, writer, self.down))
        self._writers -= {writer, to_there}
        for one in (writer, to_there):
            one.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: list[tuple[float, int]]
    ) -> None:
        while data := await reader.read(_BLOCK):
            count.append((time.monotonic(), len(data)))
            if self.away_after is not None and self.sent > self.away_after:
                self.away, self.away_after = True, None
                for one in self._writers:
                    one.transport.abort()
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@contextmanager
def relay(upstream: str) -> Iterator[Relay]:
    """Run one on a free port of the loopback device until the end of the block."""
    made = Relay(upstream)
    started: Future[tuple[str, Callable[[], object]]] = Future()

    async def work() -> None:
        ended = asyncio.Event()
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        port = server.sockets[0].getsockname()[1]
        started.set_result((f"http://127.0.0.1:{port}", lambda: loop.call_soon_threadsafe(ended.set)))
        await ended.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)
    thread.start()
    made.url, end = started.result(10)
    try:
        yield made
    finally:
        end()
        thread.join(10)


def most_within(passed: list[tuple[float, int]], seconds: float) -> int:
    """The largest number of bytes that passed within any stretch of this length."""
    most = first = within = 0
    for at, size in passed:
        within += size
        while passed[first][0] < at - seconds:
            within -= passed[first][1]
            first += 1
        most = max(most, within)
    return most
