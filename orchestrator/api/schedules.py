"""Routes of schedules."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from orchestrator.api.agents import controller
from orchestrator.messages_schedules import (
    ComingView,
    FireRequest,
    FireView,
    ScheduleDetail,
    ScheduleRequest,
    ScheduleView,
)

router = APIRouter(prefix="/v1")
Limit = Annotated[int, Query(ge=1, le=10_000)]


@router.post("/schedules", status_code=201)
def add(request: Request, body: ScheduleRequest) -> ScheduleView:
    """Accept a schedule; the same key is the same schedule."""
    return controller(request).schedules.add(body)


@router.get("/schedules")
def schedules(request: Request, ended: bool = False) -> list[ScheduleView]:
    """Schedules, oldest first; with `ended` also those that never fire again by themselves."""
    return controller(request).schedules.all(ended=ended)


@router.get("/schedules/{ref}")
def detail(request: Request, ref: str) -> ScheduleDetail:
    """Everything about one schedule."""
    return controller(request).schedules.detail(ref)


@router.get("/schedules/{ref}/fires")
def fires(request: Request, ref: str, limit: Limit = 50) -> list[FireView]:
    """What became of due times, newest first."""
    return controller(request).schedules.fires(ref, limit)


@router.get("/coming")
def coming(request: Request, ref: str | None = None, limit: Limit = 10) -> list[ComingView]:
    """Due times that are still to come, of one schedule or of all, in their order."""
    return controller(request).schedules.coming(ref, limit)


@router.post("/schedules/{ref}/pause")
def pause(request: Request, ref: str) -> ScheduleView:
    """No due time counts until it is resumed."""
    return controller(request).schedules.pause(ref)


@router.post("/schedules/{ref}/resume")
def resume(request: Request, ref: str) -> ScheduleView:
    """Due times count from now on."""
    return controller(request).schedules.resume(ref)


@router.delete("/schedules/{ref}")
def remove(request: Request, ref: str) -> ScheduleView:
    """It never fires again; what it has created goes on."""
    return controller(request).schedules.remove(ref)


@router.post("/schedules/{ref}/fires", status_code=201)
def run(request: Request, ref: str, body: FireRequest) -> FireView:
    """Fire now; the same key is the same fire."""
    return controller(request).schedules.run(ref, body.key)
