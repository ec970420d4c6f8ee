"""Commands for specs: plan, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import SPECS, Json, Set, SpecFile, connect, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.messages import PlanLine, PlanView

PLAN_COLUMNS = [
    Column("POOL"),
    Column("CPUS", right=True),
    Column("GPUS", right=True),
    Column("MEMORY", right=True),
    Column("NODE"),
    Column("WHY", wrap=True),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=SPECS)(plan)
    app.command(rich_help_panel=SPECS)(schema)


def plan(spec: SpecFile, changes: Set = None, as_json: Json = False) -> None:
    """Check a spec and say where it would run now, and why.

    Nothing is submitted.

    - `orch plan configs/handover.yaml --set priority=10`
    """
    from orchestrator.messages import SubmitRequest
    from orchestrator.spec import load_spec

    loaded = load_spec(spec, changes or [])
    with connect() as client:
        view = client.plan(SubmitRequest(spec=loaded.spec, key="plan", source=loaded.source))
    if as_json:
        print_json(view)
        return
    out.print(render.table(PLAN_COLUMNS, [_plan_row(line) for line in view.lines], width()))
    out.print()
    out.print(_verdict(view))


def _plan_row(line: PlanLine) -> list[Cell]:
    variant = line.variant
    return [
        variant.pool,
        str(variant.cpus),
        str(variant.gpus),
        render.size(variant.memory) if variant.memory else render.NOTHING,
        Text(line.node, "green") if line.node else render.NOTHING,
        line.why,
    ]


def _verdict(view: PlanView) -> str:
    first = next((line for line in view.lines if line.node), None)
    if first is None:
        verdict = "it would wait"
    else:
        verdict = f"it would start on {first.node} (pool {first.variant.pool})"
    if view.ahead:
        verdict += f"; {view.ahead} queued run{'s go' if view.ahead > 1 else ' goes'} first"
    return f"{verdict}\nit would begin from {view.restore}" if view.restore else verdict


def schema(
    sweep: Annotated[bool, typer.Option("--sweep", help="The schema of sweeps instead of runs.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file.")
    ] = None,
) -> None:
    """Print the JSON Schema of specs or of sweeps, for editors.

    With it an editor completes and checks specs. Write it to a file, and name it on top of a spec with
    `# yaml-language-server: $schema=orch.schema.json`.

    - `orch schema -o orch.schema.json`
    - `orch schema --sweep -o sweep.schema.json`
    """
    import json

    from orchestrator.spec.schema import json_schema, sweep_json_schema

    text = json.dumps(sweep_json_schema() if sweep else json_schema(), indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text)
