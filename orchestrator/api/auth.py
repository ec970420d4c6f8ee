"""Who may call: whoever shows the cluster's token."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Header, Request

from orchestrator.errors import UnauthorizedError


def authorized(request: Request, authorization: Annotated[str, Header()] = "") -> None:
    """Refuse a request without the right bearer token."""
    if not has_token(request, authorization):
        what = "the token is wrong" if authorization else "a token is needed"
        raise UnauthorizedError(
            f"{what} for {request.url.hostname}:{request.url.port}",
            remedy="set ORCH_TOKEN, or join with the line that `orch up` printed",
        )


def has_token(request: Request, authorization: str) -> bool:
    """Whether the header carries the cluster's token; compared in constant time."""
    scheme, _, given = authorization.partition(" ")
    expected: str = request.app.state.token
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), expected.encode())
