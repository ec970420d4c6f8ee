"""What MLflow's failures mean for the shipper: try again, or never again.

Reads the exceptions without importing mlflow: by attribute and class name.
"""

from __future__ import annotations

import re

from orchestrator.tracking.sink import SinkRefusedError, SinkUnavailableError

_TRANSIENT = frozenset({408, 425, 429})
_ACCESS = frozenset({401, 403})
_OVERLOAD = ("QueuePool limit", "database is locked", "too many clients")
"""Failures of MLflow's database that come as HTTP 400."""
_NO_ROUTE = "ENDPOINT_NOT_FOUND"
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
"""`//user:password@` of an address, which has no place in a log."""
_MAX_MESSAGE = 500


def translated(error: Exception) -> SinkUnavailableError | SinkRefusedError:
    """The shipper's view of an exception of mlflow or requests."""
    message = _CREDENTIALS.sub("//", str(error))[:_MAX_MESSAGE]
    if any(sign in str(error) for sign in _OVERLOAD):
        return SinkUnavailableError(message, whole_server=False)
    cause = _request_failure(error)
    if cause is not None:
        # RetryError: the server answered, with a status that says "not now".
        return SinkUnavailableError(message, whole_server=type(cause).__name__ != "RetryError")
    status = _status(error)
    if status in _ACCESS or getattr(error, "error_code", None) == _NO_ROUTE:
        return SinkUnavailableError(message, whole_server=True)
    if status >= 500 or status in _TRANSIENT:
        return SinkUnavailableError(message, whole_server=False)
    return SinkRefusedError(message)


def _request_failure(error: Exception) -> BaseException | None:
    """The exception of `requests` that says no usable answer came, where that is what happened."""
    seen: BaseException | None = error
    while seen is not None:
        is_requests = any(cls.__module__.startswith("requests.") for cls in type(seen).__mro__)
        if is_requests and getattr(seen, "response", None) is None:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _status(error: Exception) -> int:
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    ask = getattr(error, "get_http_status_code", None)
    return int(ask()) if callable(ask) else 500
