"""HTTP to the controller, with the standard library: httpx would cost every start a tenth of a second."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit

from orchestrator.errors import OrchError, UnauthorizedError, UnavailableError, from_kind

TIMEOUT_S = 10.0
_MAX_ANSWER = 1 << 20


class RefusedError(OrchError):
    """The controller has understood the request and will not have it; sending it again will not help."""


class Link:
    """One kept connection to the controller. Not for several threads at once.

    Every method raises UnavailableError where no answer comes or the controller is in trouble,
    UnauthorizedError where it does not accept the token, another OrchError by the kind that its answer
    names, and RefusedError for any other refusal.
    """

    def __init__(self, url: str, token_file: Path, timeout: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.netloc
        self._base = parts.path.rstrip("/")
        self._token_file = token_file
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes) -> bytes:
        """Send JSON; the body of the answer."""
        return self._request("POST", path, body, {"Content-Type": "application/json"})

    def put(self, path: str, file: BinaryIO, size: int) -> None:
        """Send `size` bytes of a file that is open at its start."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._request("PUT", quote(path), file, headers)

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(self, method: str, path: str, body: bytes | BinaryIO, headers: dict[str, str]) -> bytes:
        kept = self._connection is not None
        try:
            status, data = self._exchange(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept and isinstance(body, bytes):  # The controller may have closed a connection that was idle.
                return self._request(method, path, body, headers)
            raise UnavailableError(
                f"the controller does not answer: {error or type(error).__name__}"
            ) from error
        if status >= 400:
            self.close()
            raise _problem(status, data)
        return data

    def _exchange(
        self, method: str, path: str, body: bytes | BinaryIO, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = self._connection or self._connect()
        connection.request(method, self._base + path, body, {**headers, **self._authorization()})
        response = connection.getresponse()
        data = response.read(_MAX_ANSWER)
        if not response.isclosed():
            self.close()
        return response.status, data

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        self._connection = kind(self._host, timeout=self._timeout)
        return self._connection

    def _authorization(self) -> dict[str, str]:
        """Read every time, because the token may be replaced while a run goes on."""
        try:
            return {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
        except FileNotFoundError:
            return {}


def _problem(status: int, data: bytes) -> OrchError:
    try:
        answer = json.loads(data)
        kind, message = str(answer["kind"]), str(answer["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = "", data[:200].decode(errors="replace")
    text = f"the controller answered {status}: {message}"
    if status in (401, 403):
        return UnauthorizedError(text)
    if status >= 500 or status in (404, 408, 429):
        return UnavailableError(text)
    error = from_kind(kind, text)
    return RefusedError(text) if type(error) is OrchError else error
