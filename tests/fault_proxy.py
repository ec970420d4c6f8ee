"""A proxy in front of a real HTTP server that breaks a share of what passes, by a seeded die."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

STALL_S = 5.0
_BODY = "<Error><Code>{}</Code><Message>told by the proxy</Message></Error>"
_LOSES = frozenset({"reply_lost", "cut"})
"""Faults after which the server has carried the request out."""


@dataclass
class Message:
    """A request or an answer: its head as it came, with the blank line, and the body as it came."""

    head: bytes
    body: bytes

    @property
    def first(self) -> bytes:
        """The first line."""
        return self.head.split(b"\r\n", 1)[0]


@dataclass
class FaultProxy:
    """Breaks requests with these probabilities: ``busy`` (503), ``slow_down`` (429), ``reset`` (before the
    server sees it), ``reply_lost`` (after it was carried out), ``cut`` (in the middle of the answer's body),
    ``stall``.
    """

    upstream: str
    faults: Mapping[str, float]
    seed: int = 1
    url: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._die = random.Random(self.seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        try:
            while (request := await _message(reader)) is not None:
                fault = self._roll()
                self.counts[fault] += 1
                if not await self._pass(request, fault, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.counts["broken off"] += 1
        except asyncio.CancelledError:
            pass  # the proxy ends; nobody awaits this task, so that the error would only be logged
        finally:
            writer.close()

    def _roll(self) -> str:
        place = self._die.random()
        for name, share in self.faults.items():
            if place < share:
                return name
            place -= share
        return "none"

    async def _pass(self, request: Message, fault: str, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        if fault == "reset":
            _reset(writer)
            return False
        if fault in ("busy", "slow_down"):
            status, code = (503, "SlowDown") if fault == "busy" else (429, "TooManyRequests")
            body = b"" if request.first.startswith(b"HEAD") else _BODY.format(code).encode()
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return True
        if fault == "stall":
            await asyncio.sleep(STALL_S)
        answer = await self._answer(request)
        if fault in _LOSES:
            if fault == "cut" and len(answer.body) > 1:
                writer.write(answer.head + answer.body[: len(answer.body) // 2])
                await writer.drain()
            _reset(writer)
            return False
        writer.write(answer.head + answer.body)
        await writer.drain()
        return True

    async def _answer(self, request: Message) -> Message:
        where = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1 << 20)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            answer = await _message(reader, bodiless=request.first.startswith(b"HEAD"))
            while answer is not None and b" 100 " in answer.first + b" ":
                answer = await _message(reader)
            if answer is None:
                raise ConnectionError("the server closed the connection")
            return answer
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader, bodiless: bool = False) -> Message | None:
    """The next one; None where the other side has ended."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if bodiless or head.split(b" ")[1:2] in ([b"204"], [b"304"]):
        return Message(head, b"")
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        return Message(head, await _chunked(reader))
    if fields.get(b"expect", b"").lower() == b"100-continue":
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")]
        head = b"\r\n".join(lines)
    return Message(head, await reader.readexactly(int(fields.get(b"content-length", b"0"))))


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        chunk = await reader.readexactly(size + 2)
        body += line + chunk
        if size == 0:
            return body


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection by RST."""
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def fault_proxy(upstream: str, faults: Mapping[str, float], seed: int = 1) -> Iterator[FaultProxy]:
    """Run one on a free port of the loopback device until the end of the block."""
    proxy = FaultProxy(upstream, faults, seed)
    started: Future[tuple[str, Callable[[], object]]] = Future()

    async def work() -> None:
        ended = asyncio.Event()
        async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20) as server:
            loop = asyncio.get_running_loop()
            port = server.sockets[0].getsockname()[1]
            started.set_result((f"http://127.0.0.1:{port}", lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)
    thread.start()
    proxy.url, end = started.result(10)
    try:
        yield proxy
    finally:
        end()
        thread.join(10)
