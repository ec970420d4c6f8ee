"""HTTP to one controller: requests with its token, answers checked, refusals raised as errors of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.clock import SYSTEM, Clock
from orchestrator.endpoint import endpoint
from orchestrator.errors import OrchError, Problem, SpecError, UnavailableError, from_kind
from orchestrator.messages import Problem as ProblemBody

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

TIMEOUT_S = 30.0
"""Longest wait for an answer."""


class LostAnswerError(UnavailableError):
    """The request may have arrived, but its answer did not."""


class Connection:
    """To one controller. A context manager; not safe to share between threads."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.url = url.rstrip("/")
        self._clock = clock
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UnavailableError(
                f"{url!r} is not an address of a controller", remedy="ORCH_URL looks like http://host:port"
            )
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
            transport=transport,
            # Reading the certificates costs more than the rest of a request; a proxy has no way to loopback.
            verify=parts.scheme == "https",
            trust_env=parts.hostname not in ("localhost", "::1") and not parts.hostname.startswith("127."),
        )

    @classmethod
    def from_settings(cls, **options: Any) -> Self:
        """The controller that ORCH_URL or the state folder names."""
        return cls(*endpoint(), **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _one(
        self,
        model: type[M],
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: BaseModel | None = None,
    ) -> M:
        return self._read(model, self._request(method, path, query, body).content)

    def _many(self, model: type[M], path: str, query: Mapping[str, Any] | None = None) -> list[M]:
        return self._read(list[model], self._request("GET", path, query).content)  # type: ignore[valid-type]

    def _read(self, kind: type[T], content: bytes | str) -> T:
        try:
            return TypeAdapter(kind).validate_json(content)
        except ValidationError as e:
            raise OrchError(
                f"the controller at {self.url} gave an answer that this program does not understand:\n{e}",
                remedy="install the same version of orch here and on the controller's machine",
            ) from e

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: BaseModel | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        content = None if body is None else body.model_dump_json().encode()
        headers = {} if body is None else {"content-type": "application/json"}
        params = {key: value for key, value in (query or {}).items() if value is not None}
        try:
            answer = self._http.request(
                method,
                path,
                params=params,
                content=content,
                headers=headers,
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as e:
            raise UnavailableError(
                f"the controller at {self.url} does not answer",
                remedy="start it with `orch up`, or check ORCH_URL",
            ) from e
        except httpx.TimeoutException as e:
            raise LostAnswerError(f"the controller at {self.url} did not answer in time") from e
        except httpx.TransportError as e:
            raise LostAnswerError(f"the connection to the controller at {self.url} broke: {e}") from e
        if answer.is_success:
            return answer
        raise self._refusal(answer)

    def _refusal(self, answer: httpx.Response) -> OrchError:
        try:
            body = ProblemBody.model_validate_json(answer.content)
        except ValidationError:
            return UnavailableError(
                f"{self.url} answers with HTTP status {answer.status_code}, unlike a controller",
                remedy="check ORCH_URL",
            )
        if body.kind == SpecError.kind and body.details.get("problems"):
            problems = self._read(list[Problem], json.dumps(body.details["problems"]))
            return SpecError(problems, remedy=body.remedy)
        return from_kind(body.kind, body.message, body.remedy)
