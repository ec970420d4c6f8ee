"""Commands for machines: up, down, status, nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Json, connect, err, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.messages import NodeView

NODE_COLUMNS = [
    Column("NODE", least=6),
    Column("POOL", least=6),
    Column("STATE"),
    Column("CPUS", right=True),
    Column("GPUS", right=True),
    Column("MEMORY", right=True),
    Column("RUNS", least=8),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=CLUSTER)(up)
    app.command(rich_help_panel=CLUSTER)(down)
    app.command(rich_help_panel=CLUSTER)(nodes)


def say(text: str) -> None:
    """A line about what is being done, on standard error."""
    err.print(text, style="dim")


def up(
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node", metavar="NAME:cpus=N[,gpus=N]", help="Run a node of this pool here; may be repeated."
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="Address to listen on for other machines; loopback only by default.")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URL", help="Use this MLflow server.")] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URI", help="Keep checkpoints here: a folder or s3://bucket/prefix.")
    ] = None,
) -> None:
    """Start everything on this machine: Ray, MLflow, the controller, and a node.

    Examples: `orch up`, `orch up --node laptop:cpus=2 --node gpu:cpus=4,gpus=1`
    """
    from orchestrator.cluster.stack import NodeRequest
    from orchestrator.cluster.stack import up as start
    from orchestrator.settings import home

    requests = [NodeRequest.parse(text) for text in node or []]
    start(home(), nodes=requests, listen=listen, mlflow_url=mlflow, store_uri=store, progress=say)


def down() -> None:
    """Save what runs here, then stop everything that `orch up` started.

    Runs that were stopped are queued, and go on after the next `orch up`.
    """
    from orchestrator.cluster.stack import down as stop
    from orchestrator.settings import home

    stop(home(), progress=say)


def nodes(as_json: Json = False) -> None:
    """List the machines of the cluster and what they are doing."""
    with connect() as client:
        found = client.nodes()
    if as_json:
        print_json(found)
    elif not found:
        out.print("no nodes; `orch up` starts one here, `orch join` brings in another machine")
    else:
        out.print(render.table(NODE_COLUMNS, [_node_row(node) for node in found], width()))


def _node_row(node: NodeView) -> list[Cell]:
    return [
        node.name,
        node.pool,
        render.state(node.state),
        render.amount(node.cpus_used, node.cpus),
        render.amount(node.gpus_used, node.gpus),
        render.size(node.memory),
        ", ".join(node.runs),
    ]
