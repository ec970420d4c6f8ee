"""Who answers, and whether what it needs answers too."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from typing import Annotated

from fastapi import Header, Request

from orchestrator import __version__
from orchestrator.api.auth import authorized, has_token
from orchestrator.control.controller import Controller
from orchestrator.messages import Health


def health(request: Request, authorization: Annotated[str, Header()] = "") -> Health:
    """Who answers. Without the token only the version is said."""
    if not has_token(request, authorization):
        if authorization:
            authorized(request, authorization)
        return Health(version=__version__, cluster_id="")
    return whole(request)


def whole(request: Request) -> Health:
    """Everything about it, for those who may know."""
    state = request.app.state
    controller: Controller = state.controller
    shipping = controller.shipper.status() if controller.shipper else None
    return Health(
        version=__version__,
        cluster_id=state.cluster_id,
        ray_version=_ray_version(),
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


@cache
def _ray_version() -> str:
    return version("ray")
