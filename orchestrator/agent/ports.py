"""Ports of this machine that nobody has."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from typing import Final

from orchestrator.errors import SetupError

PORTS: Final = range(20_000, 32_000)
"""Below Linux's range for outgoing connections, so that a port that was free stays free."""


def bindable(host: str, port: int) -> bool:
    """Whether somebody could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def pick_port(host: str, preferred: int = 0, taken: Collection[int] = ()) -> int:
    """`preferred` where it is free (0: no wish), else another free one; never one of `taken`.

    An empty `host` means every address. SetupError where none is found.
    """
    others = random.sample(PORTS, 200)
    for port in [preferred, *others]:
        if port and port not in taken and bindable(host, port):
            return port
    raise SetupError(f"no free port was found on {host or 'any address'}")
