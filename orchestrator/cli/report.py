"""The command that writes reports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import RUNS, Json, complete_run, connect, out, print_json


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(rich_help_panel=RUNS)(report)


def report(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP|RUN...", help="A sweep, or one or more runs.", autocompletion=complete_run
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write it; `-` is standard output.",
            show_default=False,
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write a page about a sweep, or about runs side by side.

    One HTML file that holds everything and needs no network: leaderboard, curves, parameters, machines,
    failures, energy, and the best checkpoint. By default it is `report-NAME.html` here.

    - `orch report night-search --open`
    - `orch report laptop gaming-pc -o both.html`
    """
    with connect() as client:
        page = client.report(refs)
    if output == Path("-"):
        sys.stdout.write(page)
        return
    file = output or Path(f"report-{'-'.join(refs)[:100]}.html".replace("/", "_"))
    _write(file, page)
    if as_json:
        print_json({"file": str(file), "bytes": len(page.encode())})
    else:
        out.print(f"wrote {file} ({len(page.encode()) / 1e6:.1f} MB)")
    if browser:
        import webbrowser

        webbrowser.open(file.resolve().as_uri())


def _write(file: Path, page: str) -> None:
    from orchestrator.errors import ConflictError

    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConflictError(f"cannot write {file}: {error.strerror}", remedy="use -o") from error
