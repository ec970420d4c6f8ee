"""Notices that another rank has ended while this one waits for its GPU.

A sum over ranks on GPUs is only queued. If a rank ends, the GPUs of the others wait for it for ever, and so
do the processes as soon as they want a number from their GPU: none comes to the next control message, which
would tell. Therefore each rank keeps a connection to rank 0, which ends with its process.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import NoReturn

from orchestrator.contract import EXIT_LOST_RANK

GRACE_S = 5.0
"""How long the process may take to notice it in another way, which explains more."""
_QUIET_S, _ASK_EVERY_S = 30, 15
"""A machine that has been silent for so long is asked so often whether it is still there."""


class Vigil:
    """From its creation, by all ranks, to :meth:`leave`.

    `broadcast` makes rank 0's number everybody's. `address` is rank 0's machine. A machine that does not
    answer for `patience_s` counts as gone. A rank that cannot reach rank 0 says so and does without.
    """

    def __init__(
        self, rank: int, world: int, address: str, broadcast: Callable[[float], float], patience_s: float
    ) -> None:
        self._who = f"rank {rank} of {world}"
        self._patience_s = patience_s
        self._left = threading.Event()
        self._met = threading.Event()
        self._others: list[Connection] = []
        key = b"%d" % int(broadcast(float(secrets.randbits(50))))
        if rank == 0:
            listener = _listen(address, key)
            broadcast(float(listener.address[1]))

            def meet() -> None:
                with listener:
                    self._others = [self._kept(_accept(listener)) for _ in range(world - 1)]

        else:
            port = int(broadcast(0.0))

            def meet() -> None:
                self._others = [self._kept(Client((address, port), authkey=key))]

        threading.Thread(target=self._watch, args=[meet], name="vigil", daemon=True).start()

    def leave(self) -> None:
        """This rank ends in order."""
        self._left.set()
        self._met.wait(GRACE_S)
        for other in self._others:
            with suppress(OSError):  # it has gone before
                other.send_bytes(b"left")

    def _watch(self, meet: Callable[[], None]) -> None:
        try:
            meet()
        except (OSError, EOFError, AuthenticationError) as e:
            print(f"{self._who} will not notice that another one ends while it waits for its GPU: {e}")
        self._met.set()
        there = list(self._others)
        while there:
            ready = wait(there)
            for other in [one for one in there if one in ready]:
                try:
                    other.recv_bytes()  # it leaves in order
                    there.remove(other)
                except (EOFError, OSError):
                    if self._left.wait(GRACE_S):
                        return
                    self._end()

    def _end(self) -> NoReturn:
        """End without whatever waits for the GPU."""
        print(f"trainer: {self._who} lost another rank: it has ended", file=sys.stderr, flush=True)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(EXIT_LOST_RANK)

    def _kept(self, connection: Connection) -> Connection:
        """Have the system notice a machine that is gone without a word."""
        with socket.socket(fileno=os.dup(connection.fileno())) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if sys.platform == "linux":
                asks = max(1, round((self._patience_s - _QUIET_S) / _ASK_EVERY_S))
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET_S)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_EVERY_S)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, asks)
        return connection


def _listen(address: str, key: bytes) -> Listener:
    try:
        return Listener((address, 0), authkey=key)
    except OSError:  # the others know this machine by an address that it does not have itself
        return Listener(("", 0), authkey=key)


def _accept(listener: Listener) -> Connection:
    while True:
        with suppress(AuthenticationError, EOFError, ConnectionError):  # not one of us
            return listener.accept()
