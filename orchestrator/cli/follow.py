"""Watching a run until it is over."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from orchestrator.calls import POLL_S
from orchestrator.cli import common, render
from orchestrator.cli.screen import LiveScreen, PlainScreen, Screen, path
from orchestrator.client import Away, Client
from orchestrator.clock import SYSTEM
from orchestrator.domain.states import RunState
from orchestrator.errors import OrchError
from orchestrator.messages import CheckpointView, RunDetail

DETACHED = 130
"""Exit code after Ctrl-C."""
TAIL_LINES = 15
"""Lines of the program's output that are shown when a run failed."""


def follow_run(client: Client, ref: str, as_json: bool = False) -> int:
    """Watch a run and answer the exit code: 0 where it succeeded, 130 after Ctrl-C, else 1.

    Ctrl-C ends only the watching. With `as_json` progress goes to standard error and the last state of the
    run to standard output.
    """
    screen = make_screen(common.err if as_json else common.out)
    try:
        detail = watch(client, ref, screen)
    except KeyboardInterrupt:
        screen.close()
        _say_detached(ref)
        return DETACHED
    finally:
        screen.close()
    if as_json:
        common.print_json(detail)
    else:
        common.out.print(summary(detail, _newest(client, detail.run.id)))
        if detail.run.state == RunState.FAILED:
            _print_tail(client, detail)
    return 0 if detail.run.state == RunState.SUCCEEDED else 1


def make_screen(console: Console) -> Screen:
    """Live where the console is a terminal that can move its cursor."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveScreen(console, SYSTEM) if live else PlainScreen(console, SYSTEM)


def watch(
    client: Client,
    ref: str,
    screen: Screen,
    *,
    every_s: float = POLL_S,
    act: Callable[[RunDetail], None] = lambda detail: None,
) -> RunDetail:
    """Show a run until it is over, and answer its last state; `act` is called at every look."""
    detail: RunDetail | None = None
    for update in client.follow(ref, every_s=every_s):
        if isinstance(update, Away):
            screen.away(update)
        else:
            detail = update
            screen.show(detail)
            act(detail)
    assert detail is not None, "following yields at least one look"
    return detail


def _say_detached(ref: str) -> None:
    common.err.print("detached; the run goes on", style="yellow")
    common.err.print(f"watch it again with `orch follow {ref}`, stop it with `orch cancel {ref}`")


def summary(detail: RunDetail, newest: CheckpointView | None) -> Text:
    """How a run ended, in a few lines."""
    run = detail.run
    took = (run.ended_at - run.started_at).total_seconds() if run.ended_at and run.started_at else None
    count = len(detail.attempts)
    saved = f"step {newest.step}, {render.size(newest.size)}" if newest else "none"
    head = Text.assemble((run.name, "bold"), "  ", render.state(run.state.value))
    if run.message:
        head.append(f": {render.one_line(run.message)}")
    return Text.assemble(
        head,
        "\n",
        render.fields(
            [
                ("run", run.id),
                ("step", render.progress(run.step, run.target_steps)),
                ("train loss", render.loss(run.loss)),
                ("val loss", render.loss(run.val_loss)),
                ("duration", render.duration(took)),
                ("nodes", f"{path(detail)} ({count} attempt{'s' if count != 1 else ''})" if count else ""),
                ("checkpoint", saved),
                ("mlflow", detail.links.get("run", "")),
            ]
        ),
    )


def _newest(client: Client, run: str) -> CheckpointView | None:
    try:
        kept = [checkpoint for checkpoint in client.checkpoints(run) if checkpoint.kept]
    except OrchError as e:
        common.err.print(f"its checkpoints cannot be listed: {e.message}", style="yellow")
        return None
    return max(kept, key=lambda checkpoint: checkpoint.step, default=None)


def _print_tail(client: Client, detail: RunDetail) -> None:
    if not detail.attempts:
        return
    try:
        output = b"".join(client.stream_logs(detail.run.id, detail.attempts[-1].number))
    except OrchError as e:
        common.err.print(f"its output cannot be read: {e.message}", style="yellow")
        return
    lines = render.printable(output.decode(errors="replace")).splitlines()[-TAIL_LINES:]
    common.out.print(Text("\n".join(["", "last lines of its output:", *(f"  {line}" for line in lines)])))
