"""Routes that agents call."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from orchestrator.control.controller import Controller
from orchestrator.control.logs import ARTIFACT_LIMIT
from orchestrator.errors import ConflictError
from orchestrator.messages_agent import Beat, BeatReply, NodeNote

router = APIRouter(prefix="/v1/agent")


def controller(request: Request) -> Controller:
    """The controller behind this app."""
    found: Controller = request.app.state.controller
    return found


@router.post("/runs/{run_id}/attempts/{number}/beat")
def beat(request: Request, run_id: str, number: int, body: Beat) -> BeatReply:
    """What an agent says about once a second."""
    return controller(request).beats.take(run_id, number, body)


@router.post("/nodes/{name}/report", status_code=204)
def report(request: Request, name: str, body: NodeNote) -> None:
    """What a node says of itself every few seconds."""
    controller(request).machines.report(name, body)


@router.put("/runs/{run_id}/attempts/{number}/artifacts/{path:path}", status_code=204)
async def artifact(request: Request, run_id: str, number: int, path: str) -> None:
    """A file that the program has left. Read in pieces, so that a huge one is refused early."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > ARTIFACT_LIMIT:
            raise ConflictError(f"artifact {path} is larger than {ARTIFACT_LIMIT} bytes")
    await run_in_threadpool(controller(request).service.save_artifact, run_id, number, path, bytes(data))
