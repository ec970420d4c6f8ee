"""Commands for the cluster: up, down, status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Json, connect, err, out, print_json, width
from orchestrator.cli.nodes import node_table
from orchestrator.cli.render import Cell, Column
from orchestrator.domain.states import RunState

if TYPE_CHECKING:
    from orchestrator.cluster.stack import ServiceStatus, StackStatus
    from orchestrator.messages import Health, RunView

JOINING = "others can join: `orch join` says what to type there"
OPEN_STATES = [state for state in RunState if not state.final]
SERVICE_COLUMNS = [
    Column("SERVICE", least=10),
    Column("STATE"),
    Column("PID", right=True),
    Column("SINCE"),
    Column("RESTARTS", right=True),
    Column("", wrap=True),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (up, down, status):
        app.command(rich_help_panel=CLUSTER)(command)


def say(text: str) -> None:
    """A line about what is being done, on standard error."""
    err.print(Text(text, "dim"))


def up(
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="NAME[:pool=P,cpus=N,gpus=N,memory=SIZE]",
            help="A node to run here; may be repeated. Its pool is called like the node itself where that is "
            "not said, and the rest is what the machine has.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="IP", help="This machine's address for other machines; nobody else by default."),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use this MLflow server, or `none`; an own one by default."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where checkpoints go: a folder or s3://bucket/prefix."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start Ray, MLflow, the controller and a node on this machine.

    What is not given stays as it was the last time. Running it again changes what differs and nothing else.

    - `orch up`
    - `orch up --node laptop:cpus=2 --node gpu:cpus=4,gpus=1`
    - `orch up --listen 192.168.1.5`, so that other machines can join: prints the line to paste there
    """
    from orchestrator.cluster.program import OUTDATED, RENEWING
    from orchestrator.cluster.stack import NodeRequest
    from orchestrator.cluster.stack import up as start
    from orchestrator.settings import home

    requests = [NodeRequest.parse(text) for text in node or []]
    stack = start(home(), nodes=requests, listen=listen, mlflow_url=mlflow, store_uri=store, progress=say)
    if as_json:
        print_json(stack_json(stack))
    else:
        out.print(stack_lines(stack))
        if listen and stack.listening:
            from orchestrator.cluster.join import join_command

            out.print(
                "\npaste this on the other machine; it holds the cluster's token, so show it to nobody:"
            )
            typer.echo(join_command(home()))  # not through Rich, which would wrap it
            out.print()
        out.print("next: `orch submit SPEC --follow`", style="dim")
    if stack.outdated:
        for name in stack.outdated:
            say(f"{name} {OUTDATED}")
        say(RENEWING)


def down(
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for programs to save before they are ended.")
    ] = 120.0,
) -> None:
    """Have programs save, then stop all that runs here.

    Runs that were stopped are queued, and go on after the next `orch up`.
    """
    from orchestrator.cluster.stack import down as stop
    from orchestrator.settings import home

    stop(home(), progress=say, grace_s=grace)
    out.print("everything is down")


def status(as_json: Json = False) -> None:
    """Say how the cluster and this machine's services are.

    Ends with 5 where the controller does not answer.
    """
    from orchestrator.cluster.stack import status as local_status
    from orchestrator.errors import OrchError
    from orchestrator.settings import home

    stack = local_status(home())
    problem, health, machines, runs = None, None, [], []
    try:
        with connect() as client:
            health, machines, runs = client.health(), client.nodes(), client.runs(OPEN_STATES)
    except OrchError as e:
        problem = e
    if as_json:
        print_json({"stack": stack_json(stack), "health": health, "nodes": machines, "runs": runs})
    else:
        if stack.services:
            rows = [_service_row(service) for service in stack.services]
            out.print(render.table(SERVICE_COLUMNS, rows, width()))
            out.print()
        if health:
            out.print(_health_lines(health, runs))
        if machines:
            out.print()
            out.print(node_table(machines))
    if problem:
        raise problem


def stack_json(stack: StackStatus) -> dict[str, Any]:
    """What runs here, as plain values."""
    import dataclasses

    values = dataclasses.asdict(stack)
    for service in values["services"]:
        service["log"] = str(service["log"])
        service["since"] = service["since"].isoformat() if service["since"] else None
    return values


def stack_lines(stack: StackStatus) -> Text:
    """Where the things that run here are."""
    return render.fields(
        [
            ("controller", stack.url),
            ("mlflow", stack.mlflow_url),
            ("store", stack.store_uri),
            ("machines", JOINING if stack.listening else "this one only"),
        ]
    )


def _service_row(service: ServiceStatus) -> list[Cell]:
    from orchestrator.clock import SYSTEM

    return [
        service.name,
        render.state(service.phase),
        str(service.pid or render.NOTHING),
        render.ago(service.since, SYSTEM.now()),
        str(service.restarts),
        service.message,
    ]


def _health_lines(health: Health, runs: Sequence[RunView]) -> Text:
    states = [run.state.value for run in runs]
    counts = [f"{states.count(name)} {name}" for name in dict.fromkeys(states)]
    mlflow = {True: "connected", False: f"not connected: {health.mlflow_error}", None: "none"}
    pending = f", {health.mlflow_pending} points on their way" if health.mlflow_pending else ""
    return render.fields(
        [
            ("controller", f"version {health.version}, cluster {health.cluster_id}"),
            ("ray", f"{'connected' if health.ray_connected else 'not connected'}, {health.ray_address}"),
            ("mlflow", f"{mlflow[health.mlflow_connected]}{pending}  {health.mlflow_url}"),
            ("store", health.store_uri),
            ("open runs", ", ".join(counts) or "none"),
        ]
    )
