"""The route of `orch top`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import AwareDatetime

from orchestrator.api.agents import controller
from orchestrator.api.health import whole
from orchestrator.messages_top import TopView

router = APIRouter(prefix="/v1")
Count = Annotated[int, Query(ge=0, le=1000)]


@router.get("/top")
def top(request: Request, since: AwareDatetime, runs: Count = 50, waiting: Count = 50) -> TopView:
    """The whole cluster at one look, with the energy that was used since an instant of the last two days."""
    return controller(request).top.view(whole(request), since, runs, waiting)
