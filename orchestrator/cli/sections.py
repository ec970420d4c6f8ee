"""Sections of rows that share a terminal, and what is drawn in them: bars and small curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.render import Cell, Column

_BLOCKS = "▁▂▃▄▅▆▇█"
_BEGIN = 8
"""The first part of a curve, one of so many, does not stretch its scale: losses fall from far above."""
_FEW = 2
"""With so few lines, what is cut is not counted: the heading says how many there are."""
Rows = Callable[[int], list[list[Cell]]]
"""Rows of a section with bars, or curves, of so many cells."""


def sparkline(values: Sequence[float], cells: int) -> str:
    """A curve in at most `cells` block elements: of more values than that, means of neighbours.

    The scale is that of all but the first eighth; what is above it there is drawn at the top.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values or cells < 1:
        return ""
    parts = min(cells, len(values))
    edges = [index * len(values) // parts for index in range(parts + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    scaled = means[len(means) // _BEGIN :]
    low, high = min(means), max(scaled)
    if high <= low:
        return _BLOCKS[3] * len(means)
    return "".join(_BLOCKS[min(7, int(8 * (value - low) / (high - low)))] for value in means)


def bar(used: float, total: float, cells: int, style: str = "cyan") -> Text:
    """A part of a whole, in half cells; something shows as soon as something is used."""
    share = min(1.0, max(0.0, used / total)) if total > 0 else 0.0
    halves = max(int(share > 0 and cells > 0), math.floor(2 * cells * share))
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((done, style), ("─" * (cells - len(done)), "bright_black"))


@dataclass(frozen=True)
class Section:
    """Rows under a heading."""

    columns: Sequence[Column]
    rows: Rows
    total: int
    """Rows that there are, which may be more than are here."""
    least: int
    """Rows that it keeps while others can be cut."""
    rank: int
    """Sections of a lower one are cut first."""
    bars: tuple[int, int, int] = (0, 0, 0)
    """Of bars and curves: how many stand in a row, and the cells of each, at least and at most."""

    @property
    def wanted(self) -> int:
        """Lines below the heading that it can fill."""
        return min(self.total, len(self.rows(0)) + 1)

    def lines(self, width: int, count: int) -> list[Text]:
        """The heading and at most `count` more lines; where rows are cut, the last line counts them."""
        rows = self._fitted(width)[:count]
        if self.total > count > _FEW:
            rows = [*rows[: count - 1], [Text(f"… {self.total - count + 1} more", "dim")]]
        heading, *lines = render.table(self.columns, rows, width).split("\n", allow_blank=True)
        heading.stylize("not bold dim")
        heading.stylize("bold cyan not dim", 0, len(self.columns[0].title))
        return [render.fit(line, width) for line in (heading, *lines)]

    def _fitted(self, width: int) -> list[list[Cell]]:
        number, least, most = self.bars
        if not number:
            return self.rows(0)
        bare = [row for row in self.rows(0) if len(row) == len(self.columns)]
        cells: list[list[Cell]] = [[column.title for column in self.columns], *bare]
        natural = sum(max(_cells(row[i]) for row in cells) for i in range(len(self.columns)))
        spare = width - natural - render.GAP * (len(self.columns) - 1) - number
        return self.rows(max(least, min(most, spare // number)))


def _cells(cell: Cell) -> int:
    return (cell if isinstance(cell, Text) else Text(render.one_line(cell))).cell_len


def heights(sections: Sequence[Section], room: int) -> list[int]:
    """Lines of each section below its heading, so that all of them take at most `room`; 0: not shown."""
    counts = [section.wanted for section in sections]
    order = sorted(range(len(sections)), key=lambda index: sections[index].rank)
    while sum(1 + count for count in counts if count) > room:
        cut = next((i for i in order if counts[i] > min(sections[i].least, sections[i].total)), None)
        if cut is not None:
            counts[cut] -= 1
        else:
            first, *others = [i for i in order if counts[i]]
            counts[first] = 0 if others else max(0, room - 1)
    return counts


def stacked(sections: Sequence[Section], width: int, room: int) -> list[Text]:
    """The sections one below the other, with a blank line between two where there is room for that."""
    counts = heights(sections, room)
    shown = [(section, count) for section, count in zip(sections, counts, strict=True) if count]
    free = room - sum(1 + count for _, count in shown)
    gap = [Text(" " * width)] if free >= len(shown) else []
    return [line for section, count in shown for line in (*gap, *section.lines(width, count))]
