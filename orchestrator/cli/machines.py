"""Commands for single machines: join, leave, doctor."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from orchestrator.cli.cluster import say, stack_json, stack_lines
from orchestrator.cli.common import CLUSTER, Json, out, print_json

if TYPE_CHECKING:
    from orchestrator.cluster.doctor import Finding

LEVEL_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (join, leave, doctor):
        app.command(rich_help_panel=CLUSTER)(command)


def join(
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Address of the controller.", show_default=False)
    ] = None,
    pool: Annotated[str, typer.Option(help="Pool that this machine is part of.")] = "laptop",
    name: Annotated[str | None, typer.Option(help="Name of the node; the machine's by default.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="IP", help="This machine's address for the others.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URI", help="Where this machine sees the checkpoint store.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPU threads to offer; all by default.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs to offer; all by default.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory to offer, such as 8GiB.")] = None,
    as_json: Json = False,
) -> None:
    """Bring this machine into the cluster of another one.

    On the controller's machine, and without URL, it prints what to type on the other one.

    The token comes from ORCH_TOKEN or ORCH_TOKEN_FILE, or is asked for. It is never an argument, because
    everybody on a machine can read arguments.

    - `ORCH_TOKEN=... orch join http://192.168.1.5:7420 --pool gpu`
    """
    from orchestrator.cluster import join as joining
    from orchestrator.settings import home

    if url is None:
        typer.echo(joining.join_command(home(), pool))
        return
    stack = joining.join(
        home(),
        url,
        _token(),
        pool,
        name=name,
        address=address,
        store_uri=store,
        cpus=cpus,
        gpus=gpus,
        memory=_size(memory),
        progress=say,
    )
    if as_json:
        print_json(stack_json(stack))
    else:
        out.print(stack_lines(stack))


def _token() -> str:
    from orchestrator.endpoint import token_from
    from orchestrator.errors import UnauthorizedError

    token = token_from(os.environ)
    if token is None and sys.stdin.isatty():
        token = str(typer.prompt("token of the cluster", hide_input=True)).strip()
    if not token:
        raise UnauthorizedError(
            "the token of the cluster is missing",
            remedy="run `orch join` on the controller's machine and paste what it prints",
        )
    return token


def _size(text: str | None) -> int | None:
    from orchestrator.spec.values import parse_size

    if text is None:
        return None
    try:
        return int(parse_size(text))
    except ValueError as e:
        raise typer.BadParameter(str(e), param_hint="--memory") from e


def leave(
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for programs to save before they are ended.")
    ] = 120.0,
) -> None:
    """Take this machine out of the cluster that it joined.

    What runs here saves, and goes on elsewhere.
    """
    from orchestrator.cluster.join import leave as take_out
    from orchestrator.settings import home

    take_out(home(), progress=say, grace_s=grace)
    out.print("this machine is part of no cluster now")


def doctor(as_json: Json = False) -> None:
    """Check this machine and say what to mend.

    Ends with 7 where something is wrong.
    """
    from orchestrator.cluster.doctor import diagnose
    from orchestrator.settings import home

    findings = diagnose(home())
    if as_json:
        print_json({"findings": [_finding_json(finding) for finding in findings]})
    else:
        for finding in findings:
            out.print(_finding_line(finding))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(7)


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {"level": str(finding.level), "what": finding.what, "remedy": finding.remedy}


def _finding_line(finding: Finding) -> Text:
    level = str(finding.level)
    line = Text.assemble((f"{level:<8}", LEVEL_STYLES.get(level, "")), finding.what)
    return Text.assemble(line, (f"\n        {finding.remedy}", "dim")) if finding.remedy else line
