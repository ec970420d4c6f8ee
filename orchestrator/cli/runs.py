"""Commands that change runs: submit, follow, cancel, move, resume."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import RUNS, Json, RunRef, connect, out, print_json

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.messages import Submitted

Follow = Annotated[
    bool,
    typer.Option(
        "--follow", "-f", help="Watch until the run is over and end with its outcome. Ctrl-C only detaches."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the spec; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=RUNS)(submit)
    app.command(rich_help_panel=RUNS)(follow)
    app.command(rich_help_panel=RUNS)(move)
    app.command(rich_help_panel=RUNS)(cancel)


def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.", show_default=False)],
    follow: Follow = False,
    changes: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run, instead of the spec's.")] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Submit key: the same key and spec are the same run, however often it is sent."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a spec as a run.

    Examples: `orch submit configs/laptop.yaml -f`,
    `orch submit configs/laptop.yaml --set trainer.max_steps=500 --name short`
    """
    import getpass

    from orchestrator.messages import SubmitRequest
    from orchestrator.spec import load_spec

    overrides = [*(changes or []), *([f"name={name}"] if name else [])]
    loaded = load_spec(spec, overrides)
    request = SubmitRequest(
        spec=loaded.spec, key=key or uuid.uuid4().hex, source=loaded.source, user=getpass.getuser()
    )
    with connect() as client:
        announce(client, client.submit(request), follow, as_json)


def announce(client: Client, submitted: Submitted, follow: bool, as_json: bool) -> None:
    """Say what became of a submit, and follow the run where that was asked."""
    if follow:
        if not as_json:
            out.print(_accepted(submitted))
        raise typer.Exit(_follow(client, submitted.run_id, as_json))
    if as_json:
        print_json(submitted)
        return
    out.print(_accepted(submitted))
    out.print(f"watch it with `orch follow {submitted.run_id}`", style="dim")


def _accepted(submitted: Submitted) -> str:
    if submitted.created:
        return f"accepted as run {submitted.run_id} ({submitted.name})"
    return f"this key was used before: it is run {submitted.run_id} ({submitted.name})"


def _follow(client: Client, ref: str, as_json: bool) -> int:
    from orchestrator.cli.follow import follow_run

    return follow_run(client, ref, as_json)


def follow(run: RunRef, as_json: Json = False) -> None:
    """Watch a run until it is over, and end with its outcome.

    Ctrl-C detaches; the run goes on.
    """
    with connect() as client:
        raise typer.Exit(_follow(client, run, as_json))


def cancel(run: RunRef, as_json: Json = False) -> None:
    """Stop a run for good.

    What it has saved stays; `orch resume` begins a new run from there.
    """
    with connect() as client:
        view = client.cancel(run)
    if as_json:
        print_json(view)
    else:
        out.print(
            f"run {view.id} ({view.name}) is {view.state.value}: {view.message or 'cancel is recorded'}"
        )


def move(
    run: RunRef,
    to: Annotated[str, typer.Option("--to", metavar="POOL", help="Pool to go on in.", show_default=False)],
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Save a run and go on with it in another pool, as the same run.

    Example: `orch move demo --to gpu --follow`
    """
    with connect() as client:
        view = client.move(run, to)
        if follow:
            raise typer.Exit(_follow(client, view.id, as_json))
    if as_json:
        print_json(view)
    else:
        out.print(f"run {view.id} ({view.name}) is {view.state.value}; it goes on in pool {to}")
