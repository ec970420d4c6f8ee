"""The HTTP application: routes, the token, and errors as messages."""

from __future__ import annotations

import logging
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from orchestrator import __version__
from orchestrator.api import agents, clients, schedules, sweeps
from orchestrator.api.auth import authorized, has_token
from orchestrator.control.controller import Controller
from orchestrator.errors import (
    ConflictError,
    FencedError,
    NotFoundError,
    OrchError,
    SpecError,
    StoreError,
    UnauthorizedError,
    UnavailableError,
)
from orchestrator.messages import Health, Problem

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[OrchError], int], ...] = (
    (SpecError, 422),
    (NotFoundError, 404),
    (ConflictError, 409),
    (FencedError, 409),
    (UnauthorizedError, 401),
    (UnavailableError, 503),
    (StoreError, 502),
    (OrchError, 400),
)


def create_app(controller: Controller, token: str, cluster_id: str) -> FastAPI:
    """The application around one controller, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        controller.start()
        yield
        controller.stop()

    app = FastAPI(title="orch", version=__version__, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.state.controller = controller
    app.state.token = token
    app.state.cluster_id = cluster_id
    app.include_router(clients.router, dependencies=[Depends(authorized)])
    app.include_router(sweeps.router, dependencies=[Depends(authorized)])
    app.include_router(schedules.router, dependencies=[Depends(authorized)])
    app.include_router(agents.router, dependencies=[Depends(authorized)])
    app.add_api_route("/v1/health", health, methods=["GET"])
    app.add_exception_handler(OrchError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    return app


def health(request: Request, authorization: Annotated[str, Header()] = "") -> Health:
    """Who answers. Without the token only the version is said."""
    state = request.app.state
    if not has_token(request, authorization):
        if authorization:
            authorized(request, authorization)
        return Health(version=__version__, cluster_id="")
    controller: Controller = state.controller
    shipping = controller.shipper.status() if controller.shipper else None
    return Health(
        version=__version__,
        cluster_id=state.cluster_id,
        ray_version=version("ray"),
        python_version=platform.python_version(),
        store_uri=controller.config.store_uri,
        store_id=controller.store_id,
        mlflow_url=controller.config.mlflow_url,
        ray_address=controller.config.ray_address,
        ray_connected=controller.watcher.fleet.connected,
        mlflow_connected=shipping.connected if shipping else None,
        mlflow_pending=shipping.pending_points if shipping else 0,
        mlflow_error=(shipping.last_error or "") if shipping else "",
    )


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OrchError)
    status = next(code for kind, code in _STATUS if isinstance(error, kind))
    body = Problem(kind=error.kind, message=error.message, remedy=error.remedy)
    return JSONResponse(body.model_dump(), status_code=status)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
    body = Problem(kind=SpecError.kind, message="\n".join(lines))
    return JSONResponse(body.model_dump(), status_code=422)
