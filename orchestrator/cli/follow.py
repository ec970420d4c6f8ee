"""Watching a run until it is over, live in a terminal and in calm lines elsewhere."""

from __future__ import annotations

from orchestrator.cli import render
from orchestrator.cli.common import out
from orchestrator.client import Client
from orchestrator.messages import RunDetail


def follow_run(client: Client, ref: str, as_json: bool) -> int:
    """Watch and answer the exit code."""
    last: RunDetail | None = None
    for update in client.follow(ref):
        if isinstance(update, RunDetail):
            last = update
            out.print(render.one_line(f"{update.run.state.value} {update.run.step} {update.run.message}"))
    assert last is not None
    return 0 if last.run.state.value == "succeeded" else 1
