"""`orch tariff`: what electricity costs, for runs with `max_price`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Json, connect, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.messages import TariffView

COLUMNS = [Column("HOURS"), Column("DAYS"), Column("PRICE", right=True)]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(
        invoke_without_command=True,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.callback()(tariff)
    group.command("set")(set_)
    group.command()(remove)
    app.add_typer(group, name="tariff", rich_help_panel=CLUSTER)


def tariff(context: typer.Context, as_json: Json = False) -> None:
    """Show what electricity costs at which hours, and what now. Runs with `max_price` execute by it.

    - `orch tariff`
    - `orch tariff set tariff.yaml`, `orch tariff remove`
    """
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        _told(client.tariff(), as_json)


def set_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tariff's YAML file.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Set the tariff. It counts at once: what executes at too high a price saves and waits.

    - `orch tariff set tariff.yaml`
    """
    from orchestrator.spec.tariff_loading import load_tariff

    spec = load_tariff(file)
    with connect() as client:
        _told(client.set_tariff(spec), as_json)


def remove(as_json: Json = False) -> None:
    """Take the tariff away. Runs with `max_price` wait until there is another one.

    - `orch tariff remove`
    """
    with connect() as client:
        _told(client.set_tariff(None), as_json)


def _told(view: TariffView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    spec = view.tariff
    if spec is None:
        out.print("no tariff; `orch tariff set FILE` sets one")
        return
    rows: list[list[Cell]] = [
        [band.hours, band.days or "every day", _price(band.price, spec.currency)] for band in spec.bands
    ]
    rows.append(["else", render.NOTHING, _price(spec.default, spec.currency)])
    out.print(render.table(COLUMNS, rows, width()))
    now = _price(view.price, spec.currency)
    until = f" until {render.clock(view.until, datetime.now(UTC))}" if view.until else ""
    out.print(f"now {now}{until}; hours are those of {spec.tz}, and of several bands the first one counts")


def _price(price: float | None, currency: str) -> str:
    return f"{price:g} {currency}/kWh"
