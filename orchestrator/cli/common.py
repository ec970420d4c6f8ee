"""What every command uses: the connection, the two output streams, JSON output, shared arguments."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console
from typer.core import TyperGroup

if TYPE_CHECKING:
    from pydantic import BaseModel

    from orchestrator.client import Client

RUNS, CLUSTER, SPECS = "Runs", "Cluster", "Specs"
"""Panels of `orch --help`."""

PIPE_WIDTH = 160
"""Columns of a listing that does not go to a terminal."""

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)

_json_wanted = False


def width() -> int:
    """Columns that a listing may use."""
    return out.width if out.is_terminal or os.environ.get("COLUMNS") else PIPE_WIDTH


@contextmanager
def moving(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal, for `total` bytes that move; what it yields is told
    of each piece.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def json_wanted() -> bool:
    """Whether this invocation was asked for JSON, so that errors are JSON too."""
    return _json_wanted


def _remember_json(wanted: bool) -> bool:
    global _json_wanted
    _json_wanted = wanted
    return wanted


def complete_run(incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of recent runs, for the shell; nothing where the controller does not answer."""
    from orchestrator.errors import OrchError

    try:
        with connect(timeout_s=2.0) as client:
            runs = client.runs(limit=50)
    except OrchError:
        return []
    return completions(runs, incomplete)


class _Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> StrEnum: ...


def completions(found: Sequence[_Named], incomplete: str) -> list[tuple[str, str]]:
    """Ids and names, the newest of each name, that begin so."""
    words = [(one.id, f"{one.name}, {one.state.value}") for one in found]
    words += [(one.name, f"newest: {one.id}") for one in found]
    return [(word, about) for word, about in dict(reversed(words)).items() if word.startswith(incomplete)]


def command_group(about: str | None = None, cls: type[TyperGroup] | None = None) -> typer.Typer:
    """For commands `orch NAME COMMAND`."""
    return typer.Typer(
        cls=cls,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        help=about,
    )


def complete_node(incomplete: str) -> list[str]:
    """Names of nodes, for the shell; nothing where the controller does not answer."""
    from orchestrator.errors import OrchError

    try:
        with connect(timeout_s=2.0) as client:
            return [node.name for node in client.nodes() if node.name.startswith(incomplete)]
    except OrchError:
        return []


RunRef = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id of the run, the beginning of an id, or a name (its newest run).",
        autocompletion=complete_run,
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON, for programs; errors too.", callback=_remember_json, is_eager=True
    ),
]


SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the spec; may be repeated."),
]
Follow = Annotated[
    bool,
    typer.Option(
        "--follow", "-f", help="Watch until the run is over and end with its outcome. Ctrl-C only detaches."
    ),
]


def connect(**options: Any) -> Client:
    """The controller that ORCH_URL or the state folder names."""
    from orchestrator.client import Client

    return Client.from_settings(**options)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """Models as indented JSON on standard output."""
    plain = _plain(value)
    sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def print_error(message: str, remedy: str | None, kind: str, details: dict[str, Any] | None = None) -> None:
    """An error on standard error, in words or as JSON like the API's `Problem`."""
    if json_wanted():
        body = {"kind": kind, "message": message, "remedy": remedy, "details": details or {}}
        sys.stderr.write(json.dumps(body, ensure_ascii=False) + "\n")
        return
    from rich.text import Text

    from orchestrator.cli.render import printable

    if message.count("\n") and "problems" in (details or {}):
        # Each begins its own line with its place.
        message = f"{len(message.splitlines())} mistakes\n{message}"
    err.print(Text.assemble(("error: ", "bold red"), printable(message)))
    if remedy:
        err.print(Text.assemble(("remedy: ", "bold"), printable(remedy)))
