"""Commands that show runs: ls, show, logs."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import RUNS, Json, RunRef, connect, err, out, print_json, width
from orchestrator.cli.render import Cell, Column
from orchestrator.domain.energy import in_words
from orchestrator.domain.states import RunState

if TYPE_CHECKING:
    from orchestrator.client import Away
    from orchestrator.messages import AttemptView, RunDetail, RunView

RUN_COLUMNS = [
    Column("RUN"),
    Column("NAME", least=8),
    Column("STATE"),
    Column("NODE", least=6),
    Column("STEP", right=True),
    Column("LOSS", right=True),
    Column("VAL", right=True),
    Column("CREATED"),
]
ATTEMPT_COLUMNS = [
    Column("ATTEMPT", right=True),
    Column("NODE", least=6),
    Column("POOL", least=4),
    Column("DEVICE", least=6),
    Column("STEPS"),
    Column("TIME", right=True),
    Column("ENERGY", right=True),
    Column("ENDED", wrap=True),
]
EVENTS_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=RUNS)(ls)
    app.command(rich_help_panel=RUNS)(show)
    app.command(rich_help_panel=RUNS)(logs)


def _now() -> datetime:
    from orchestrator.clock import SYSTEM

    return SYSTEM.now()


def ls(
    state: Annotated[
        list[RunState] | None,
        typer.Option(metavar="STATE", help=f"Only in this state; may be repeated: {', '.join(RunState)}."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", "-e", help="Only this experiment.")
    ] = None,
    all_runs: Annotated[bool, typer.Option("--all", "-a", help="Every run there ever was.")] = False,
    count: Annotated[int, typer.Option("-n", min=1, help="At most so many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List runs, newest first.

    - `orch ls --state running --state queued`
    - `orch ls --all --json`
    """
    from orchestrator.calls import MOST_RUNS

    with connect() as client:
        runs = client.runs(state or [], experiment, MOST_RUNS if all_runs else count)
    if as_json:
        print_json(runs)
    elif not runs:
        out.print("no runs; `orch submit SPEC` begins one")
    else:
        now = _now()
        out.print(render.table(RUN_COLUMNS, [_run_row(run, now) for run in runs], width()))


def _run_row(run: RunView, now: datetime) -> list[Cell]:
    row: list[Cell] = [run.id, run.name, render.state(run.state.value)]
    if run.state.value == "queued" and run.attempt == 0:
        return [*row, Text(render.one_line(f"{run.message} ({render.ago(run.created_at, now)})"), "dim")]
    return [
        *row,
        run.node or run.pool or render.NOTHING,
        render.progress(run.step, run.target_steps),
        render.loss(run.loss),
        render.loss(run.val_loss),
        render.ago(run.created_at, now),
    ]


def show(run: RunRef, as_json: Json = False) -> None:
    """Show one run: state, attempts, events.

    - `orch show demo`
    - `orch show demo --json`, with its whole spec and the last value of every metric
    """
    with connect() as client:
        detail = client.run(run)
    if as_json:
        print_json(detail)
        return
    now = _now()
    out.print(_summary(detail, now))
    if detail.attempts:
        out.print(attempts_table(detail))
        out.print()
    for event in detail.events[-EVENTS_SHOWN:]:
        line = Text.assemble((render.clock(event.at, now), "dim"), "  ", render.one_line(event.text))
        out.print(line)
    if "run" in detail.links:
        out.print()
        out.print(render.fields([("mlflow", detail.links["run"])]))


def _summary(detail: RunDetail, now: datetime) -> Text:
    run = detail.run
    took = ((run.ended_at or now) - run.started_at).total_seconds() if run.started_at else None
    state = render.state(run.state.value)
    if run.message:
        state = Text.assemble(state, ", ", render.one_line(run.message))
    return Text.assemble(
        (run.name, "bold"),
        f"  {run.id}\n",
        render.fields(
            [
                ("state", state),
                ("where", _where(run)),
                ("step", render.progress(run.step, run.target_steps)),
                ("loss", f"{render.loss(run.loss)}, val {render.loss(run.val_loss)}"),
                ("speed", render.rate(run.tokens_per_s)),
                ("remaining", render.duration(run.eta_s)),
                ("transfer", render.transfer(run.transfer)),
                ("duration", render.duration(took)),
                ("energy", render.energy(run.energy_kwh, run.energy_source, run.cost, run.currency)),
                ("experiment", run.experiment),
                ("created", f"{render.clock(run.created_at, now)} by {run.user or 'unknown'}"),
            ]
        ),
        "\n",
    )


def _where(run: RunView) -> str:
    if run.node and run.pool and run.node != run.pool:
        return f"{run.node} (pool {run.pool})"
    return run.node or run.pool or ""


def attempts_table(detail: RunDetail) -> Text:
    """A run's attempts, one a line."""
    now = _now()
    return render.table(ATTEMPT_COLUMNS, [_attempt_row(a, now) for a in detail.attempts], width())


def _attempt_row(attempt: AttemptView, now: datetime) -> list[Cell]:
    begun = attempt.started_at or attempt.created_at
    steps = (
        f"{attempt.first_step or 0}-{attempt.last_step}" if attempt.last_step is not None else render.NOTHING
    )
    ended = attempt.reason.value if attempt.reason else attempt.phase.value
    if attempt.message:
        ended = f"{ended}: {attempt.message}"
    return [
        str(attempt.number),
        attempt.node,
        attempt.pool,
        attempt.device or render.NOTHING,
        steps,
        render.duration(((attempt.ended_at or now) - begun).total_seconds()),
        in_words(attempt.energy_kwh) if attempt.energy_kwh is not None else render.NOTHING,
        ended,
    ]


def logs(
    run: RunRef,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only this attempt; all by default.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Begin with the last N lines.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="Of several ranks, this one.")] = 0,
) -> None:
    """Print what the program of a run has written.

    - `orch logs demo --follow`
    - `orch logs demo --attempt 1 --tail 20`
    - `orch logs demo --rank 1`
    """
    from orchestrator.client import LogPlace

    with connect() as client:
        place = LogPlace(rank=rank)
        if tail is not None:
            _write(_last_lines(client.stream_logs(run, attempt, place=place), tail))
        if tail is None or follow:
            _write(client.stream_logs(run, attempt, follow=follow, place=place, notice=_say_away))


def _say_away(away: Away) -> None:
    err.print(f"{away.error.message}; trying again ({away.seconds:.0f} s)", style="yellow")


def _write(pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def _last_lines(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    kept: deque[bytes] = deque(maxlen=max(1, count))
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        kept.extend(line + b"\n" for line in whole)
    if rest:
        kept.append(rest)
    if count:
        yield from kept
