"""How values and listings look in a terminal. Everything here is text in, text out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from orchestrator.domain.energy import EnergySource, in_words

if TYPE_CHECKING:
    from orchestrator.messages import Transfer

NOTHING = "-"
"""Stands where there is no value."""
GAP = 2
"""Blanks between two columns."""
LEAST_WRAPPED = 24
"""A wrapped column is not made narrower than this while others can be cut."""

STATE_STYLES = {
    "queued": "yellow",
    "starting": "cyan",
    "running": "cyan",
    "unreachable": "magenta",
    "stopping": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
    "open": "cyan",
    "rung": "yellow",
    "paused": "yellow",
    "pruned": "dim",
    "complete": "green",
    "finished": "green",
    "active": "green",
    "ended": "dim",
    "removed": "dim",
    "waiting": "yellow",
    "created": "green",
    "skipped": "yellow",
    "missed": "red",
    "ready": "green",
    "lost": "red",
    "draining": "yellow",
    "drained": "dim",
    "in use": "yellow",
    "excluded": "red",
    "away": "magenta",
}


def ago(then: datetime | None, now: datetime) -> str:
    """How long ago, such as `3 min ago`; the local date where that is more than a week."""
    if then is None:
        return NOTHING
    seconds = (now - then).total_seconds()
    if seconds < 5:
        return "just now"
    if seconds > 7 * 86400:
        return then.astimezone().strftime("%Y-%m-%d")
    return f"{coarse(seconds)} ago"


def coarse(seconds: float) -> str:
    """A duration in one unit, such as `45 s`, `3 min`, `5 h` or `2 d`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h"
    return f"{seconds // 86400:.0f} d"


def duration(seconds: float | None) -> str:
    """A duration to the second, such as `0:42`, `1:02:03` or `2d 01:02:03`."""
    if seconds is None:
        return NOTHING
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if not hours:
        return f"{minute}:{second:02d}"
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}:{minute:02d}:{second:02d}" if days else f"{hour}:{minute:02d}:{second:02d}"


def clock(at: datetime, now: datetime) -> str:
    """An instant in local time; with its date where that is not today."""
    local = at.astimezone()
    same_day = local.date() == now.astimezone().date()
    return local.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M")


def transfer(moving: Transfer | None) -> str:
    """How far a checkpoint has come between node and store; empty where none is under way."""
    if moving is None:
        return ""
    what = "checkpoint" if moving.step is None else f"step {moving.step}"
    how_far = size(moving.done)
    if moving.total:
        how_far = f"{min(100, 100 * moving.done // moving.total)} % of {size(moving.total)}"
    return f"{'sends' if moving.direction == 'up' else 'fetches'} {what}: {how_far}"


def size(count: int) -> str:
    """Bytes, such as `12.3 MiB`."""
    if count < 1024:
        return f"{count} B"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min(len(units), (count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.1f} {units[power - 1]}"


def number(value: float | None) -> str:
    """Whole numbers in full, such as `1,536,000`; others in four significant digits."""
    if value is None:
        return NOTHING
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def loss(value: float | None) -> str:
    """A loss in three decimals, so that a column of them lines up."""
    return NOTHING if value is None else f"{value:.3f}"


def rate(tokens_per_s: float | None) -> str:
    """Tokens per second, such as `21.4k tok/s`."""
    if tokens_per_s is None:
        return NOTHING
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if tokens_per_s >= factor:
            return f"{tokens_per_s / factor:.1f}{unit} tok/s"
    return f"{tokens_per_s:.0f} tok/s"


def energy(kwh: float | None, source: EnergySource | None, cost: float | None, currency: str | None) -> str:
    """What was used and what it costs, such as `1.24 kWh (estimated), 0.37 EUR`; empty where unknown."""
    if kwh is None:
        return ""
    money = f", {cost:,.2f} {currency or ''}".rstrip() if cost is not None else ""
    return in_words(kwh, source) + money


def progress(step: int | None, target: int | None) -> str:
    """Steps done, such as `1240/2000`."""
    if step is None and target is None:
        return NOTHING
    return f"{step or 0}/{target}" if target else str(step)


def amount(used: float, total: float) -> str:
    """What is taken of a resource, such as `1/4`."""
    return f"{used:g}/{total:g}"


def printable(text: str) -> str:
    """Text from elsewhere without characters that would steer the terminal; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def one_line(text: str) -> str:
    """The same on a single line."""
    return printable(text).replace("\n", " ").strip()


def state(value: str) -> Text:
    """A state in its colour."""
    return Text(value, STATE_STYLES.get(value, ""))


@dataclass(frozen=True)
class Column:
    """One column of a listing."""

    title: str
    right: bool = False
    """Numbers stand on the right."""
    least: int | None = None
    """Cells that may be cut to this width where the line is too long; None: never cut."""
    wrap: bool = False
    """For the last column: what does not fit goes on in the next line, below itself."""


Cell = str | Text


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int) -> Text:
    """A listing without rules, cut to `width`. The last cell of a row that is too short runs to the end."""
    cells = [[cell if isinstance(cell, Text) else Text(one_line(cell)) for cell in row] for row in rows]
    widths = _widths(columns, cells, width)
    lines = [_line([Text(c.title, "bold") for c in columns], columns, widths, width)]
    lines += [_line(row, columns, widths, width) for row in cells]
    return Text("\n").join(lines)


def _widths(columns: Sequence[Column], rows: list[list[Text]], width: int) -> list[int]:
    widths = [cell_len(column.title) for column in columns]
    for row in rows:
        last = len(row) - 1 if len(row) < len(columns) else len(row)
        for index, cell in enumerate(row[:last]):
            widths[index] = max(widths[index], cell.cell_len)
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    if excess > 0 and columns[-1].wrap:
        least = max(LEAST_WRAPPED, cell_len(columns[-1].title))
        wrapped = min(widths[-1], max(least, widths[-1] - excess))
        excess -= widths[-1] - wrapped
        widths[-1] = wrapped
    while excess > 0:
        slack = [(widths[i] - c.least, i) for i, c in enumerate(columns) if c.least is not None]
        most, index = max(slack, default=(0, 0))
        if most <= 0:
            break
        widths[index] -= 1
        excess -= 1
    return widths


def _line(row: Sequence[Text], columns: Sequence[Column], widths: list[int], width: int) -> Text:
    line = Text()
    for index, cell in enumerate(row):
        if index:
            line.append(" " * GAP)
        last = index == len(row) - 1
        runs_on = last and len(row) < len(columns)
        if last and columns[index].wrap and not runs_on:
            line.append_text(_wrapped(cell, widths[index], sum(widths[:-1]) + GAP * (len(widths) - 1)))
        else:
            room = width - line.cell_len if runs_on else widths[index]
            line.append_text(fit(cell, room, columns[index].right))
    line.rstrip()
    return line


def _wrapped(text: Text, width: int, indent: int) -> Text:
    if text.cell_len <= width:
        return text
    return Text(f"\n{' ' * indent}".join(textwrap.wrap(text.plain, width)), text.style)


def fit(text: Text, width: int, right: bool = False) -> Text:
    """Exactly `width` cells: filled with blanks, or cut with an ellipsis."""
    missing = width - text.cell_len
    if missing >= 0:
        blanks = Text(" " * missing)
        return blanks + text if right else text + blanks
    cut = text.copy()
    cut.plain = set_cell_size(cut.plain, max(0, width - 1)) + "…"
    return cut


def fields(pairs: Iterable[tuple[str, Cell]]) -> Text:
    """Names and values under each other; pairs without a value are left out."""
    shown = [(name, value) for name, value in pairs if str(value) not in ("", NOTHING)]
    wide = max((len(name) for name, _ in shown), default=0)
    lines = [Text.assemble((f"{name:<{wide}}", "dim"), "  ", value) for name, value in shown]
    return Text("\n").join(lines)
