"""Routes that people's clients call."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from orchestrator.api.agents import controller
from orchestrator.domain.states import RunState
from orchestrator.messages import (
    CheckpointView,
    GarbageRequest,
    GarbageView,
    LimitRequest,
    LimitsView,
    LogPage,
    MoveRequest,
    NodeView,
    NotifyRequest,
    NotifySent,
    NotifyTest,
    NotifyView,
    PlanView,
    PointView,
    RunDetail,
    RunView,
    SubmitRequest,
    Submitted,
    TagRequest,
    TariffRequest,
    TariffView,
    WhyView,
)

router = APIRouter(prefix="/v1")

LONGEST_WAIT_S = 30.0
_POLL_S = 0.2


@router.post("/runs")
def submit(request: Request, response: Response, body: SubmitRequest) -> Submitted:
    """Accept a spec as a run."""
    answer = controller(request).service.submit(body)
    response.status_code = 201 if answer.created else 200
    return answer


@router.get("/runs")
def runs(
    request: Request,
    state: Annotated[list[RunState] | None, Query()] = None,
    experiment: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 50,
) -> list[RunView]:
    """Runs, newest first."""
    return controller(request).service.runs(state or [], experiment, limit)


@router.get("/runs/{ref}")
def detail(request: Request, ref: str) -> RunDetail:
    """Everything about one run."""
    return controller(request).service.detail(ref)


@router.post("/runs/{ref}/cancel")
def cancel(request: Request, ref: str) -> RunView:
    """End a run for good."""
    return controller(request).service.cancel(ref)


@router.post("/runs/{ref}/move")
def move(request: Request, ref: str, body: MoveRequest) -> RunView:
    """Save the run and go on in another pool."""
    return controller(request).service.move(ref, body.pool)


@router.get("/runs/{ref}/why")
def why(request: Request, ref: str) -> WhyView:
    """What stands in the way of a run."""
    return controller(request).service.why(ref)


@router.post("/runs/{ref}/hold")
def hold(request: Request, ref: str) -> RunView:
    """Hold a run back."""
    return controller(request).service.hold(ref, held=True)


@router.post("/runs/{ref}/release")
def release(request: Request, ref: str) -> RunView:
    """Let a run that was held back start again."""
    return controller(request).service.hold(ref, held=False)


@router.post("/runs/{ref}/top")
def top(request: Request, ref: str) -> RunView:
    """Let a run go before all others of its priority."""
    return controller(request).service.top(ref)


@router.get("/queue")
def queue(request: Request, limit: Annotated[int, Query(ge=1, le=10_000)] = 200) -> list[RunView]:
    """Runs that wait, in the order in which they are looked at."""
    return controller(request).service.queue(limit)


@router.get("/limits")
def limits(request: Request) -> LimitsView:
    """Most attempts at a time."""
    return controller(request).service.limits()


@router.put("/limits")
def set_limit(request: Request, body: LimitRequest) -> LimitsView:
    """Set a limit, or take it away."""
    return controller(request).service.set_limit(body)


@router.get("/tariff")
def tariff(request: Request) -> TariffView:
    """What electricity costs."""
    return controller(request).tariff()


@router.put("/tariff")
def set_tariff(request: Request, body: TariffRequest) -> TariffView:
    """Set the tariff, or take it away."""
    return controller(request).set_tariff(body.tariff)


@router.get("/notify")
def notify(request: Request) -> list[NotifyView]:
    """Who is told of what happens."""
    return controller(request).telling.targets()


@router.post("/notify", status_code=201)
def add_notify(request: Request, body: NotifyRequest) -> NotifyView:
    """Tell somebody from now on."""
    return controller(request).telling.add(body)


@router.delete("/notify/{name}")
def remove_notify(request: Request, name: str) -> NotifyView:
    """Tell somebody nothing any more."""
    return controller(request).telling.remove(name)


@router.post("/notify/test")
def test_notify(request: Request, body: NotifyTest) -> list[NotifySent]:
    """Send a message to targets, now."""
    return controller(request).telling.test(body.names)


@router.get("/runs/{ref}/checkpoints")
def checkpoints(request: Request, ref: str) -> list[CheckpointView]:
    """Committed checkpoints, oldest first."""
    return controller(request).keeping.checkpoints(ref)


@router.put("/runs/{ref}/tags/{name}")
def tag(request: Request, ref: str, name: str, body: TagRequest) -> CheckpointView:
    """Give a checkpoint a name, which keeps it."""
    return controller(request).keeping.tag(ref, body.step, name)


@router.delete("/runs/{ref}/tags/{name}")
def untag(request: Request, ref: str, name: str) -> CheckpointView:
    """Take a name away; the checkpoint that had it."""
    return controller(request).keeping.untag(ref, name)


@router.post("/garbage")
def garbage(request: Request, body: GarbageRequest) -> list[GarbageView]:
    """Collect data that no checkpoint needs."""
    return controller(request).keeping.collect(dry_run=body.dry_run)


@router.get("/runs/{ref}/points")
def points(
    request: Request,
    ref: str,
    key: Annotated[list[str] | None, Query()] = None,
    after_step: int | None = None,
    limit: Annotated[int, Query(ge=1, le=1_000_000)] = 100_000,
) -> list[PointView]:
    """Measurements by step."""
    return controller(request).service.points(ref, key or [], after_step, limit)


@router.get("/runs/{ref}/logs")
async def logs(
    request: Request,
    ref: str,
    attempt: int | None = None,
    rank: Annotated[int, Query(ge=0)] = 0,
    offset: Annotated[int, Query(ge=0)] = 0,
    wait: Annotated[float, Query(ge=0)] = 0.0,
) -> LogPage:
    """Output of an attempt from a byte on; with `wait`, held back until there is some or it has ended."""
    service = controller(request).service
    deadline = asyncio.get_running_loop().time() + min(wait, LONGEST_WAIT_S)
    while True:
        page = await run_in_threadpool(service.log_page, ref, attempt, offset, rank)
        late = asyncio.get_running_loop().time() >= deadline
        if page.data or page.ended or late:
            return page
        await asyncio.sleep(_POLL_S)


@router.get("/links")
def compare_links(request: Request, ref: Annotated[list[str], Query()]) -> dict[str, str]:
    """MLflow's pages that show these runs side by side."""
    return controller(request).service.compare_links(ref)


@router.get("/report", response_class=HTMLResponse)
def report(request: Request, ref: Annotated[list[str], Query(min_length=1, max_length=50)]) -> HTMLResponse:
    """One page about a sweep, or about one or more runs."""
    return HTMLResponse(controller(request).reporting.page(ref))


@router.get("/nodes")
def nodes(request: Request) -> list[NodeView]:
    """Machines and what runs on them."""
    return controller(request).machines.nodes()


@router.post("/nodes/{name}/drain")
def drain(request: Request, name: str) -> NodeView:
    """Start nothing new on a node, and have what runs there save and go on elsewhere."""
    return controller(request).machines.drain(name)


@router.delete("/nodes/{name}/drain")
def undrain(request: Request, name: str) -> NodeView:
    """Use a node again."""
    return controller(request).machines.undrain(name)


@router.post("/plan")
def plan(request: Request, body: SubmitRequest) -> PlanView:
    """What would happen to a spec now."""
    return controller(request).service.plan(body)


@router.post("/shutdown")
def shutdown(request: Request) -> dict[str, int]:
    """Order every attempt to save and stop; their runs stay queued for the next start."""
    return {"attempts": controller(request).drain()}
