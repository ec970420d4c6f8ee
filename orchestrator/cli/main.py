"""`orch`: the command line."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli import (
    checkpoints,
    cluster,
    common,
    demo,
    garbage,
    insight,
    machines,
    nodes,
    notify,
    owner,
    queue,
    report,
    runs,
    schedules,
    spec,
    sweeps,
    tariff,
    top,
    views,
)

HELP = """Train models on the machines you own.

Submit a run, watch it, move it between machines through its checkpoint, compare it with others.

Begin with `orch up` on one machine, then `orch submit configs/laptop.yaml --follow`.
"""
EPILOG = """Exit codes: 0 success; 1 failed, also for a followed run that failed or was cancelled; 2 wrong
usage or spec; 3 not found; 4 conflict; 5 controller unreachable; 6 unauthorized; 7 machine not set up;
8 storage; 130 stopped by Ctrl-C, after which a followed run goes on."""

app = typer.Typer(
    name="orch",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"orch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


for topic in (
    runs,
    sweeps,
    top,
    schedules,
    queue,
    views,
    checkpoints,
    insight,
    report,
    cluster,
    nodes,
    machines,
    owner,
    notify,
    tariff,
    garbage,
    demo,
    spec,
):
    topic.register(app)


def main() -> None:
    """Run a command and end the process with its exit code; errors in words, never as a traceback."""
    from orchestrator.errors import OrchError, SpecError

    _spare_httpx_its_command_line()
    try:
        app()
    except OrchError as e:
        details = {"problems": [vars(p) for p in e.problems]} if isinstance(e, SpecError) else {}
        common.print_error(e.message, e.remedy, e.kind, details)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as e:  # noqa: BLE001 - the edge of the process: said in words
        _unexpected(e)


def _spare_httpx_its_command_line() -> None:
    """Have httpx skip the import of its own optional command line (click, pygments, rich's progress bars).

    Nobody here needs it, and it is an eighth of what `orch ls` costs. httpx handles its absence.
    """
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]


def _unexpected(e: Exception) -> None:
    if os.environ.get("ORCH_DEBUG"):
        raise e
    remedy = "this is a mistake in orch: run it again with ORCH_DEBUG=1 and report the traceback"
    common.print_error(f"{type(e).__name__}: {e}", remedy, "internal")
    sys.exit(1)


if __name__ == "__main__":
    main()
