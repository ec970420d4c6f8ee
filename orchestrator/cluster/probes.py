"""Small questions to services, with the standard library only, so that the supervisor stays small."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from orchestrator.errors import UnavailableError

PROBE_S = 1.5
# A proxy from the environment has no way to loopback or to a private network.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Probe(Protocol):
    """Whether a service answers."""

    def __call__(self) -> bool:
        """True where it answered within PROBE_S."""
        ...


@dataclass(frozen=True)
class TcpProbe:
    """Somebody accepts connections there."""

    host: str
    port: int

    def __call__(self) -> bool:
        """True where a connection was accepted."""
        try:
            socket.create_connection((self.host, self.port), timeout=PROBE_S).close()
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class HttpProbe:
    """The URL answers with success."""

    url: str

    def __call__(self) -> bool:
        """True where the answer's status was 200."""
        try:
            with _OPENER.open(self.url, timeout=PROBE_S) as answer:
                return bool(answer.status == 200)
        except (OSError, ValueError, urllib.error.URLError):
            return False


def get_json(url: str, token: str, timeout_s: float = PROBE_S) -> Any:
    """The decoded answer; UnavailableError where there is none."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{urlsplit(url).netloc} does not answer: {error}") from error
