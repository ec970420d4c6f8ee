"""Commands for notifications: notify add, ls, rm, test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Json, command_group, connect, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.domain.notice import NoticeKind
    from orchestrator.messages import NotifySent, NotifyView

COLUMNS = [
    Column("NAME"),
    Column("ADDRESS"),
    Column("ON"),
    Column("ONLY"),
    Column("WAITING", right=True),
    Column("", wrap=True),
]
TEST_COLUMNS = [
    Column("NAME"),
    Column("ADDRESS"),
    Column("ARRIVED"),
    Column("TOOK", right=True),
    Column("", wrap=True),
]
KINDS = "finished, failed, cancelled, stuck, best, sweep, schedule"

Named = Annotated[str, typer.Argument(metavar="NAME", help="Name of the target.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = command_group("Be told, wherever you are, when runs finish, fail, get stuck or become the best.")
    for name, command in (("add", add), ("ls", ls), ("rm", rm), ("test", try_out)):
        group.command(name)(command)
    app.add_typer(group, name="notify", rich_help_panel=CLUSTER)


def add(
    on: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,…",
            help=f"Of what to tell: {KINDS}. All but `cancelled` by default.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What to call it; after the service by default.")
    ] = "",
    from_env: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            help="Keep no address, but the name of a variable of the controller's environment that has it.",
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only runs with such names, as in `lr-*`; may be repeated."),
    ] = None,
    experiment: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Only such experiments; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Be told of what happens, at an address that is asked for, or read from standard input.

    Addresses are written as Apprise does: `ntfy://TOPIC`, `mailto://USER:PASSWORD@gmail.com`, `slack://A/B/C`,
    `jsons://HOST/PATH` for a webhook, `desktop://`; docs/notify.md has more. The controller keeps them in a
    file that only its owner can read, and shows them to nobody.

    - `orch notify add`
    - `orch notify add --name phone --on failed,stuck < address.txt`
    """
    from orchestrator.messages import NotifyRequest

    kinds = {} if on is None else {"on": _kinds(on)}
    url = None if from_env else _address()
    request = NotifyRequest(
        name=name, url=url, url_env=from_env, runs=run or [], experiments=experiment or [], **kinds
    )
    with connect() as client:
        view = client.add_notify(request)
    if as_json:
        print_json(view)
    else:
        out.print(f"{view.name} ({view.shown}) is told of: {_on(view)}; try it: orch notify test {view.name}")


def _kinds(text: str) -> list[NoticeKind]:
    from orchestrator.domain.notice import NoticeKind

    try:
        return [NoticeKind(word.strip()) for word in text.split(",")]
    except ValueError as e:
        raise typer.BadParameter(f"expected some of: {KINDS}; got {text!r}", param_hint="--on") from e


def _address() -> str:
    if sys.stdin.isatty():
        text: str = typer.prompt("Address (not shown)", hide_input=True, err=True)
    else:
        text = sys.stdin.readline()
    if not text.strip():
        raise typer.BadParameter("expected an address on standard input, got nothing")
    return text.strip()


def ls(as_json: Json = False) -> None:
    """List who is told of what, and what has not arrived yet. Addresses are masked."""
    with connect() as client:
        found = client.notify_targets()
    if as_json:
        print_json(found)
    elif not found:
        out.print("nobody is told anything; `orch notify add` changes that")
    else:
        out.print(render.table(COLUMNS, [_row(view) for view in found], width()))


def _row(view: NotifyView) -> list[Cell]:
    only = ", ".join([*view.runs, *(f"{name}/" for name in view.experiments)])
    waiting = str(view.waiting) if view.waiting else render.NOTHING
    return [view.name, view.shown, _on(view), only or render.NOTHING, waiting, Text(view.error, "dim")]


def _on(view: NotifyView) -> str:
    return ", ".join(kind.value for kind in view.on)


def rm(name: Named, as_json: Json = False) -> None:
    """Tell somebody nothing any more. What has not arrived yet is dropped.

    - `orch notify rm phone`
    """
    with connect() as client:
        view = client.remove_notify(name)
    if as_json:
        print_json(view)
    else:
        out.print(f"{view.name} ({view.shown}) is told nothing any more")


def try_out(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help="Names of targets; all by default.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a message now, and say for each target whether it arrived, and why not.

    Ends with 1 where one did not.

    - `orch notify test`
    - `orch notify test phone`
    """
    with connect() as client:
        found = client.test_notify(names or [])
    if as_json:
        print_json(found)
    else:
        out.print(render.table(TEST_COLUMNS, [_tried(sent) for sent in found], width()))
    if not all(sent.arrived for sent in found):
        raise typer.Exit(1)


def _tried(sent: NotifySent) -> list[Cell]:
    word = Text("yes", "green") if sent.arrived else Text("no", "red")
    return [sent.name, sent.shown, word, f"{sent.seconds:.1f} s", sent.text]
