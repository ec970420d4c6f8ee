"""Routes of sweeps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from orchestrator.api.agents import controller
from orchestrator.domain.sweeps import SweepRecord, SweepState
from orchestrator.messages_sweeps import ExtendRequest, SweepDetail, SweepRequest, SweepSubmitted, SweepView

router = APIRouter(prefix="/v1/sweeps")


@router.post("")
def submit(request: Request, response: Response, body: SweepRequest) -> SweepSubmitted:
    """Accept a sweep."""
    answer = controller(request).sweeps.submit(body)
    response.status_code = 201 if answer.created else 200
    return answer


@router.get("")
def sweeps(
    request: Request,
    state: Annotated[list[SweepState] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 50,
) -> list[SweepView]:
    """Sweeps, newest first."""
    return controller(request).sweep_views.sweeps(state or [], limit)


@router.get("/{ref}")
def detail(request: Request, ref: str) -> SweepDetail:
    """Everything about one sweep."""
    return controller(request).sweep_views.detail(ref)


@router.post("/{ref}/pause")
def pause(request: Request, ref: str) -> SweepView:
    """No new trials and no promotions until it is resumed."""
    return _view(request, controller(request).sweeps.pause(ref))


@router.post("/{ref}/resume")
def resume(request: Request, ref: str) -> SweepView:
    """Go on with a paused sweep."""
    return _view(request, controller(request).sweeps.resume(ref))


@router.post("/{ref}/cancel")
def cancel(request: Request, ref: str) -> SweepView:
    """End a sweep and the runs of its trials for good."""
    return _view(request, controller(request).sweeps.cancel(ref))


@router.post("/{ref}/extend")
def extend(request: Request, ref: str, body: ExtendRequest) -> SweepView:
    """Give a sweep a larger budget."""
    return _view(request, controller(request).sweeps.extend(ref, body))


def _view(request: Request, sweep: SweepRecord) -> SweepView:
    return controller(request).sweep_views.sweep(sweep)
