"""Commands about what waits: why, queue, limit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, RUNS, Json, RunRef, connect, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.messages import LimitsView, RunView, WhyVariant, WhyView

QUEUE_COLUMNS = [
    Column("ID"),
    Column("NAME"),
    Column("PRIORITY", right=True),
    Column("USER"),
    Column("EXPERIMENT"),
    Column("WAITS"),
    Column("WHY", wrap=True),
]
WHY_COLUMNS = [Column("POOL"), Column("NODE"), Column("UNTIL"), Column("WHY", wrap=True)]
LIMIT_COLUMNS = [Column("KIND"), Column("NAME"), Column("AT A TIME", right=True)]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=RUNS)(why)
    group = typer.Typer(
        invoke_without_command=True,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.callback()(queue)
    group.command()(hold)
    group.command()(release)
    group.command()(top)
    app.add_typer(group, name="queue", rich_help_panel=RUNS)
    app.command(rich_help_panel=CLUSTER)(limit)


def why(run: RunRef, as_json: Json = False) -> None:
    """Say why a run waits: what stands in the way of each placement on each node, and when that ends.

    The answer comes from the function that schedules. `orch plan SPEC` says the same before submitting.

    - `orch why demo`
    """
    with connect() as client:
        view = client.why(run)
    if as_json:
        print_json(view)
        return
    state = view.run.state.value
    out.print(f"run {view.run.id} ({view.run.name}) is {state}: {_reason(view)}")
    rows = [row for variant in view.variants for row in _why_rows(variant)]
    if rows:
        out.print()
        out.print(render.table(WHY_COLUMNS, rows, width()))


def _reason(view: WhyView) -> str:
    if view.first:
        return view.first
    if not view.variants:
        where = f"on {view.run.node}" if view.run.node else ""
        return view.run.message or where or "it does not wait"
    starts = next((one.node for one in view.variants if one.node), None)
    if starts:
        return f"it starts on {starts} in a moment"
    whole = [one.why for one in view.variants if not one.nodes or any(not node.why for node in one.nodes)]
    if whole:  # a limit, a gang's number of ranks: no single node is in the way
        return "; ".join(whole)
    pools = ", ".join(dict.fromkeys(one.variant.pool for one in view.variants))
    return f"nothing that it may run on is free (pools: {pools})"


def _why_rows(variant: WhyVariant) -> list[list[Cell]]:
    pool = variant.variant.pool
    if not variant.nodes:
        return [[pool, render.NOTHING, render.NOTHING, variant.why]]
    now = datetime.now(UTC)
    return [
        [
            pool,
            node.node,
            render.clock(node.until, now) if node.until else render.NOTHING,
            node.why or Text("fits", "green"),
        ]
        for node in variant.nodes
    ]


def queue(context: typer.Context, as_json: Json = False) -> None:
    """List what waits, in the order in which it is looked at; hold it back, let it go, put it first.

    Runs of higher priority go first; among equals users take turns, and whoever holds little goes before who
    holds much.

    - `orch queue`
    - `orch queue hold demo`, `orch queue release demo`
    - `orch queue top demo`
    """
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        runs = client.queue()
    if as_json:
        print_json(runs)
    elif not runs:
        out.print("nothing waits")
    else:
        now = datetime.now(UTC)
        out.print(render.table(QUEUE_COLUMNS, [_row(run, now) for run in runs], width()))


def _row(run: RunView, now: datetime) -> list[Cell]:
    return [
        run.id,
        run.name,
        str(run.priority),
        run.user or render.NOTHING,
        run.experiment,
        render.ago(run.created_at, now),
        Text(render.one_line(run.message), "dim"),
    ]


def hold(run: RunRef, as_json: Json = False) -> None:
    """Hold a run back. One that executes goes on; `orch move` and node losses apply, then it waits.

    - `orch queue hold demo`
    """
    with connect() as client:
        _told(client.hold(run), "is held back", as_json)


def release(run: RunRef, as_json: Json = False) -> None:
    """Let a run that was held back start again.

    - `orch queue release demo`
    """
    with connect() as client:
        _told(client.release(run), "is released", as_json)


def top(run: RunRef, as_json: Json = False) -> None:
    """Let a run go before all others of its priority.

    - `orch queue top demo`
    """
    with connect() as client:
        _told(client.top(run), "goes first among its priority", as_json)


def _told(view: RunView, text: str, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        out.print(f"run {view.id} ({view.name}) {text}; it is {view.state.value}")


def limit(
    kind: Annotated[
        Literal["pool", "experiment"] | None,
        typer.Argument(metavar="[pool|experiment]", help="What to limit.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Its name.", show_default=False)] = None,
    most: Annotated[
        str | None, typer.Argument(metavar="N|none", help="Runs at a time.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Limit how many runs execute at a time in a pool or of an experiment; without arguments, list limits.

    What executes already goes on.

    - `orch limit experiment sweep-3 2`
    - `orch limit pool laptop none`
    """
    from orchestrator.messages import LimitRequest

    with connect() as client:
        if kind is None:
            view = client.limits()
        elif name is None or most is None:
            raise typer.BadParameter("give a name and a number, or `none`: orch limit pool laptop 1")
        else:
            view = client.set_limit(LimitRequest(kind=kind, name=name, most=_most(most)))
    if as_json:
        print_json(view)
    else:
        _print_limits(view)


def _most(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"expected a number or `none`, got {text!r}")
    return int(text)


def _print_limits(view: LimitsView) -> None:
    rows: list[list[Cell]] = [["pool", name, str(most)] for name, most in sorted(view.pools.items())]
    rows += [["experiment", name, str(most)] for name, most in sorted(view.experiments.items())]
    if rows:
        out.print(render.table(LIMIT_COLUMNS, rows, width()))
    else:
        out.print("no limits")
