"""The HTTP application: routes, the token, and errors as messages."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from orchestrator import __version__
from orchestrator.api import agents, clients, health, schedules, sweeps, top
from orchestrator.api.auth import authorized
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
from orchestrator.messages import Problem

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
    app.include_router(top.router, dependencies=[Depends(authorized)])
    app.add_api_route("/v1/health", health.health, methods=["GET"])
    app.add_exception_handler(OrchError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    return app


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
