"""Commands that change runs: submit, follow, cancel, move, resume."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import sweeps
from orchestrator.cli.common import RUNS, Follow, Json, RunRef, Set, SpecFile, connect, out, print_json

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.messages import RunDetail, SubmitRequest, Submitted
    from orchestrator.spec import RunSpec


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=RUNS)(submit)
    app.command(rich_help_panel=RUNS)(follow)
    app.command(rich_help_panel=RUNS)(move)
    app.command(rich_help_panel=RUNS)(resume)
    app.command(rich_help_panel=RUNS)(cancel)


def submit(
    spec: SpecFile,
    follow: Follow = False,
    changes: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the run, instead of the spec's.")] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Submit key: the same key and spec are the same run, however often it is sent."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a spec: of a run, or of a sweep.

    - `orch submit configs/laptop.yaml --follow`
    - `orch submit configs/sweep.yaml`
    - `orch submit configs/laptop.yaml --set trainer.max_steps=500 --name short`
    """
    from orchestrator.spec import LoadedSweep, load_any

    loaded = load_any(spec, _overrides(changes, name))
    if isinstance(loaded, LoadedSweep):
        sweeps.submit(loaded, key, follow, as_json)
        return
    with connect() as client:
        submitted = client.submit(request(loaded.spec, loaded.source, key))
        announce(client, submitted, follow, as_json)


def request(spec: RunSpec, source: str, key: str | None = None) -> SubmitRequest:
    """What is sent for a spec, in the name of who sits here; a fresh key where none is given."""
    import getpass

    from orchestrator.messages import SubmitRequest

    return SubmitRequest(spec=spec, key=key or uuid.uuid4().hex, source=source, user=getpass.getuser())


def _overrides(changes: list[str] | None, name: str | None) -> list[str]:
    return [*(changes or []), *([f"name={name}"] if name else [])]


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

    Ctrl-C ends only the watching; the run goes on.

    - `orch follow demo`
    """
    with connect() as client:
        raise typer.Exit(_follow(client, run, as_json))


def cancel(run: RunRef, as_json: Json = False) -> None:
    """Stop a run for good.

    What it has saved stays; `orch resume` begins a new run from there.

    - `orch cancel demo`
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
    """Save a run and go on with it in another pool.

    It stays the same run, with one curve in MLflow. Its spec must have a placement in that pool.

    - `orch move demo --to gpu --follow`
    """
    with connect() as client:
        view = client.move(run, to)
        if follow:
            raise typer.Exit(_follow(client, view.id, as_json))
    if as_json:
        print_json(view)
    else:
        out.print(f"run {view.id} ({view.name}) is {view.state.value}; it goes on in pool {to}")


def resume(
    run: RunRef,
    at: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="Step or tag of the checkpoint; the newest by default."),
    ] = None,
    follow: Follow = False,
    changes: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run; the old one's by default.")] = None,
    as_json: Json = False,
) -> None:
    """Begin a new run from a checkpoint of an old one.

    A run that has ended never changes again, so this is another run, with the old one's spec and your
    changes.

    - `orch resume demo --set trainer.max_steps=5000`
    - `orch resume demo --at 1000 --name fork`
    """
    with connect() as client:
        old = client.run(run)
        spec, source = resumed_spec(old, at, _overrides(changes, name))
        announce(client, client.submit(request(spec, source)), follow, as_json)


def resumed_spec(old: RunDetail, at: str | None, overrides: list[str]) -> tuple[RunSpec, str]:
    """The spec of a run that goes on from a checkpoint of `old`, and the text that it is written in."""
    import yaml

    from orchestrator.spec import parse_spec

    place = old.run.id if at is None else f"{old.run.id}@{at}"
    values = {**old.spec.model_dump(mode="json", exclude_defaults=True), "resume_from": place}
    source = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return parse_spec(source, f"spec of {old.run.id}", overrides), source
