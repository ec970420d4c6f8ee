"""`orch gc`: delete what no checkpoint needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Json, connect, err, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.messages import GarbageView

COLUMNS = [
    Column("RUN"),
    Column("NAME", least=8),
    Column("OBJECTS", right=True),
    Column("SIZE", right=True),
    Column("", wrap=True),
]


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(rich_help_panel=CLUSTER)(gc)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what no checkpoint needs from the checkpoint store.

    That is the data of checkpoints that retention has removed (after the `grace` of their spec), what dead
    attempts have sent and never committed, unfinished uploads older than a day, and compiled steps that have
    been shared for 90 days. Running runs are not disturbed. The controller does this by itself for runs that
    have ended, but for compiled steps; checkpoints that are listed as kept are never touched. Ends with 8
    where something could not be read.

    - `orch gc --dry-run`
    """
    with connect() as client:
        if not as_json:
            err.print("looking through the checkpoint store …", style="dim")
        found = client.collect_garbage(dry_run=dry_run)
    if as_json:
        print_json(found)
    else:
        _print(found, dry_run)
    if any(view.problem for view in found):
        raise typer.Exit(8)


def _print(found: list[GarbageView], dry_run: bool) -> None:
    if found:
        out.print(render.table(COLUMNS, [_row(view) for view in found], width()))
    objects, size = sum(view.objects for view in found), sum(view.size for view in found)
    what = f"{objects} objects, {render.size(size)}"
    if not objects:
        out.print("nothing to delete")
    elif dry_run:
        out.print(f"{what} would be deleted")
    else:
        out.print(f"deleted {what}")


def _row(view: GarbageView) -> list[Cell]:
    name = view.name if view.run or view.name else "unfinished uploads"
    return [view.run or "-", name, str(view.objects), render.size(view.size), view.problem]
