"""Commands about schedules: `orch schedule add`, `ls`, `show`, `next`, `fires`, `pause` and so on."""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.cli import render
from orchestrator.cli.common import RUNS, Json, Set, command_group, connect, err, out, print_json
from orchestrator.cli.schedule_tables import (
    coming_table,
    fields,
    fire_table,
    first,
    next_due,
    table,
    when,
    work,
)

if TYPE_CHECKING:
    from pydantic import ValidationError

    from orchestrator.messages_schedules import ScheduleRequest, ScheduleView
    from orchestrator.spec import LoadedSpec, LoadedSweep


def complete_schedule(incomplete: str) -> list[tuple[str, str]]:
    """Names of schedules, for the shell; nothing where the controller does not answer."""
    from orchestrator.errors import OrchError

    try:
        with connect(timeout_s=2.0) as client:
            found = client.schedules()
    except OrchError:
        return []
    return [(one.name, when(one)) for one in found if one.name.startswith(incomplete)]


ScheduleRef = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name of the schedule, its id, or the beginning of an id.",
        autocompletion=complete_schedule,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = command_group(
        "Runs and sweeps that begin by themselves: every night, on some days, or once at a given time."
    )
    for command in (add, ls, show, fires, pause, resume, rm, run):
        group.command()(command)
    group.command("next")(coming)
    app.add_typer(group, name="schedule", rich_help_panel=RUNS)


def add(
    spec: Annotated[
        Path,
        typer.Argument(metavar="SPEC", help="The spec of a run or a sweep, a YAML file.", show_default=False),
    ],
    cron: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            help="When: minute, hour, day of the month, month, day of the week.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Once, at this time: 2027-03-01T22:00.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="HH:MM",
            help="What has not ended by then saves, yields, and goes on at the next opening.",
            show_default=False,
        ),
    ] = None,
    tz: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE", help="Time zone of all these; this machine's when unset.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the schedule, instead of the spec's.")] = None,
    changes: Set = None,
    overlap: Annotated[
        Literal["skip", "queue", "replace"],
        typer.Option(
            help="Where the work of an earlier fire has not ended: let it go on and create nothing, wait "
            "for its end, or cancel it first."
        ),
    ] = "skip",
    catch_up: Annotated[
        Literal["none", "last", "all"],
        typer.Option(help="Which due times to make up for that were missed while the controller was down."),
    ] = "last",
    as_json: Json = False,
) -> None:
    """Have a spec submitted by itself: whenever a cron line fires, or once.

    `--until` makes a window of it, which opens at each fire: the work executes in these hours only. When
    clocks change, each due time fires once: one that is left out fires at the end of the gap.

    - `orch schedule add sweep.yaml --cron "0 22 * * mon-fri" --until 07:00`
    - `orch schedule add nightly.yaml --cron "30 1 * * *" --tz Europe/Paris --overlap replace`
    - `orch schedule add big.yaml --at 2027-03-01T22:00 --name once`
    """
    from orchestrator.spec import load_any

    if (cron is None) == (at is None):
        raise typer.BadParameter('give one of --cron and --at: --cron "0 22 * * mon-fri"')
    loaded = load_any(spec, changes or [])
    values = {"cron": cron, "at": at and _instant(at), "until": until, "tz": tz or _zone()}
    request = _request(loaded, {**values, "name": name, "overlap": overlap, "catch_up": catch_up})
    with connect() as client:
        view = client.add_schedule(request)
    if as_json:
        print_json(view)
    else:
        out.print(f"schedule {view.id} ({view.name}) creates a {view.creates} {first(view)}")
        out.print(f"look at it with `orch schedule show {view.name}`", style="dim")


def _zone() -> str:
    from orchestrator.spec.hours import local_zone

    known = local_zone()
    if known is None:
        err.print("the time zone of this machine is not known: UTC is taken; --tz says otherwise")
    return known or "UTC"


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--at: expected a time such as 2027-03-01T22:00, got {text!r}") from None


def _request(loaded: LoadedSpec | LoadedSweep, values: dict[str, Any]) -> ScheduleRequest:
    """What is sent, in the name of who sits here. SpecError names the option that is wrong."""
    import getpass

    from pydantic import ValidationError

    from orchestrator.errors import SpecError
    from orchestrator.messages_schedules import ScheduleRequest
    from orchestrator.spec import LoadedSweep

    what = "sweep" if isinstance(loaded, LoadedSweep) else "spec"
    name = values.pop("name") or loaded.spec.name
    try:
        return ScheduleRequest(
            key=uuid.uuid4().hex,
            name=name,
            source=loaded.source,
            user=getpass.getuser(),
            **{what: loaded.spec},
            **values,
        )
    except ValidationError as error:
        raise SpecError(_problems(error, loaded)) from None


def _problems(error: ValidationError, loaded: LoadedSpec | LoadedSweep) -> list[Any]:
    from orchestrator.errors import Problem

    found = []
    for detail in error.errors(include_url=False):
        place = f"--{detail['loc'][0]}" if detail["loc"] else str(loaded.path)
        found.append(Problem(place, 0, 0, "", detail["msg"].removeprefix("Value error, ")))
    return found


def ls(
    all_schedules: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that have ended and those that were removed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List schedules, with their next and their last due time.

    - `orch schedule ls`
    """
    with connect() as client:
        found = client.schedules(ended=all_schedules)
    if as_json:
        print_json(found)
    elif not found:
        out.print("no schedules; `orch schedule add SPEC --cron LINE` makes one")
    else:
        out.print(table(found))


def show(schedule: ScheduleRef, as_json: Json = False) -> None:
    """Show a schedule, its coming due times, and what became of the last ones.

    - `orch schedule show nightly`
    """
    with connect() as client:
        detail = client.schedule(schedule)
    if as_json:
        print_json(detail)
        return
    view = detail.schedule
    out.print(render.fields(fields(view)))
    if detail.coming:
        out.print()
        out.print(coming_table(detail.coming[:5]))
    if detail.fires:
        out.print()
        out.print(fire_table(detail.fires))


def coming(
    schedule: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="One schedule; all of them when unset.",
            autocompletion=complete_schedule,
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option("-n", min=1, max=10_000, help="So many due times.")] = 10,
    as_json: Json = False,
) -> None:
    """List the coming due times, and until when their work may run.

    - `orch schedule next`
    - `orch schedule next nightly -n 30`
    """
    with connect() as client:
        found = client.coming_fires(schedule, count)
    if as_json:
        print_json(found)
    elif not found:
        out.print("nothing is due any more; `orch schedule ls --all` lists what has ended")
    else:
        out.print(coming_table(found))


def fires(
    schedule: ScheduleRef,
    count: Annotated[int, typer.Option("-n", min=1, max=10_000, help="At most so many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List what became of each due time: what it created, or why it created nothing.

    - `orch schedule fires nightly`
    """
    with connect() as client:
        found = client.fires(schedule, count)
    if as_json:
        print_json(found)
    elif not found:
        out.print("it has not fired yet")
    else:
        out.print(fire_table(found))


def pause(schedule: ScheduleRef, as_json: Json = False) -> None:
    """Let a schedule rest: due times do not count until it is resumed. What has fired goes on.

    - `orch schedule pause nightly`
    """
    with connect() as client:
        view = client.pause_schedule(schedule)
    _say(view, "is paused", as_json)


def resume(schedule: ScheduleRef, as_json: Json = False) -> None:
    """Let due times count again, from now on.

    - `orch schedule resume nightly`
    """
    with connect() as client:
        view = client.resume_schedule(schedule)
    _say(view, f"fires again{next_due(view)}", as_json)


def rm(schedule: ScheduleRef, as_json: Json = False) -> None:
    """Take a schedule away. What it has created goes on; what waits for an earlier end creates nothing.

    - `orch schedule rm nightly`
    """
    with connect() as client:
        view = client.remove_schedule(schedule)
    _say(view, "is removed", as_json)


def run(schedule: ScheduleRef, as_json: Json = False) -> None:
    """Fire now, by hand, also where the schedule is paused. Earlier work that has not ended is minded.

    - `orch schedule run nightly`
    """
    with connect() as client:
        view = client.fire(schedule, uuid.uuid4().hex)
    if as_json:
        print_json(view)
    elif view.run_id or view.sweep_id:
        out.print(f"created {work(view)}")
    else:
        out.print(f"fired: it is {view.state.value}" + (f": {view.message}" if view.message else ""))


def _say(view: ScheduleView, what: str, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        out.print(f"schedule {view.id} ({view.name}) {what}")
