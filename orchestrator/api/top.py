"""The route of `orch top`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import AwareDatetime

from orchestrator.api.agents import controller
from orchestrator.api.health import whole
from orchestrator.messages_top import TopView

router = APIRouter(prefix="/v1")


@router.get("/top", response_model=TopView)
def top(request: Request, since: AwareDatetime) -> Response:
    """The whole cluster at one look, with the energy that was used since an instant of the last two days."""
    view = controller(request).top.view(whole(request), since)
    return Response(view.model_dump_json(), media_type="application/json")
