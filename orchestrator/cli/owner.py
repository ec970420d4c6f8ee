"""The command for whoever owns a machine: when runs have to stay away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Json, out, print_json

if TYPE_CHECKING:
    from orchestrator.cluster.owner import OwnerRules

OFF = "off"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(rich_help_panel=CLUSTER)(owner)


def owner(
    node: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this node; every node of this machine by default."),
    ] = None,
    process: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A program that means you want the machine while it runs, such as a game; may be repeated. "
            "Replaces the list; `off` for none.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Other programs keep every GPU of the node busier than this, such as `30%`; or `off`.",
        ),
    ] = None,
    gpu_for: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long they have to, such as `30s`.")
    ] = None,
    login: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Somebody is logged in, at the screen or from elsewhere, and the last input is younger than "
            "this, such as `10m`; or `off`.",
        ),
    ] = None,
    battery: Annotated[
        bool | None, typer.Option("--battery/--no-battery", help="Stay away while it is not plugged in.")
    ] = None,
    yields: Annotated[
        bool | None,
        typer.Option("--yields/--no-yields", help="What runs saves and goes, or only nothing new starts."),
    ] = None,
    quiet: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="How long every reason has to be gone until the machine is used again: `2m`."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say when this machine is yours alone; without options, show what holds.

    Runs that have to go save first, and go on elsewhere where their spec allows. Changes hold within seconds,
    for this machine only. `orch nodes` shows when it is in use, and why.

    - `orch owner --process cs2 --process gamescope`
    - `orch owner --login 10m --battery --no-yields`
    """
    from orchestrator.cluster.owner import change_rules
    from orchestrator.settings import home

    given = {
        "processes": None if process is None else [name for name in process if name != OFF],
        "gpu": None if gpu is None else _share(gpu),
        "gpu_for": gpu_for,
        "login": login,
        "battery": battery,
        "yields": yields,
        "quiet": quiet,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    changes |= {key: None for key in ("gpu", "login") if changes.get(key) == OFF}
    found = change_rules(home(), node, changes)
    if as_json:
        print_json({"nodes": found})
    else:
        out.print(Text("\n").join(_lines(name, rules) for name, rules in found.items()))


def _share(text: str) -> str | float:
    """`30%` as 0.3; `off` as it is."""
    if text == OFF:
        return OFF
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as e:
        raise typer.BadParameter(f"expected a share such as 30%, got {text!r}", param_hint="--gpu") from e


def _lines(name: str, rules: OwnerRules) -> Text:
    gpu = (
        f"others keep every GPU busier than {rules.gpu:.0%} for {_time(rules.gpu_for)}" if rules.gpu else OFF
    )
    then = "what runs saves and goes, nothing new starts" if rules.yields else "nothing new starts"
    return Text.assemble(
        (f"{name}\n", "bold"),
        render.fields(
            [
                ("processes", ", ".join(rules.processes) or OFF),
                ("gpu", gpu),
                ("login", f"input during the last {_time(rules.login)}" if rules.login else OFF),
                ("battery", "stay away while it is not plugged in" if rules.battery else OFF),
                ("then", f"{then}, until it has been quiet for {_time(rules.quiet)}"),
            ]
        ),
    )


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else render.coarse(seconds)
