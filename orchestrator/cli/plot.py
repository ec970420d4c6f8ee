"""A curve in a terminal, drawn with Braille dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from orchestrator.messages import PointView

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character by row and column."""
_BRAILLE = 0x2800
_AXIS = 9
"""Cells left of the drawing: numbers and the axis."""
_MARK = "┊"


def render_curve(
    points: Sequence[PointView], width: int, height: int, names: Mapping[int, str] | None = None
) -> str:
    """The points of one metric as `height` lines of at most `width` cells, and two or three lines of legend.

    Each column of dots shows the mean of the points in it. A dotted line stands where another attempt goes
    on; `names` says what to call attempts below the drawing, such as their nodes.
    """
    if not points:
        return "no points"
    ordered = sorted(points, key=lambda point: point.step)
    columns = max(10, width - _AXIS)
    scale = _Scale(ordered, columns * 2, max(3, height) * 4)
    grid = _draw(_means(ordered, scale), columns, max(3, height))
    changes = [
        (scale.x(point.step) // 2, point.attempt)
        for before, point in pairwise(ordered)
        if point.attempt > before.attempt
    ]
    lines = [_line(row, index, scale, changes) for index, row in enumerate(grid)]
    lines.append(
        " " * (_AXIS - 1) + "└" + "".join("┴" if _is_mark(i, changes) else "─" for i in range(columns))
    )
    lines.append(
        " " * _AXIS + _spread([(0, str(ordered[0].step)), (columns, str(ordered[-1].step))], columns)
    )
    if names:
        labels = [(0, names.get(ordered[0].attempt, ""))]
        labels += [(cell, names.get(attempt, f"attempt {attempt}")) for cell, attempt in changes]
        lines.append(" " * _AXIS + _spread(labels, columns))
    return "\n".join(line.rstrip() for line in lines)


class _Scale:
    """From steps and values to dots; row 0 is on top."""

    def __init__(self, points: Sequence[PointView], columns: int, rows: int) -> None:
        values = [point.value for point in points]
        self.first, self.last = points[0].step, points[-1].step
        self.low, self.high = min(values), max(values)
        self.columns, self.rows = columns, rows

    def x(self, step: int) -> int:
        span = self.last - self.first
        return round((step - self.first) / span * (self.columns - 1)) if span else 0

    def y(self, value: float) -> int:
        span = self.high - self.low
        return round((self.high - value) / span * (self.rows - 1)) if span else self.rows // 2

    def value(self, share: float) -> float:
        return self.high - share * (self.high - self.low)


def _means(points: Sequence[PointView], scale: _Scale) -> list[tuple[int, int]]:
    """One dot for each column that has points."""
    columns: dict[int, list[float]] = {}
    for point in points:
        columns.setdefault(scale.x(point.step), []).append(point.value)
    return [(x, scale.y(sum(values) / len(values))) for x, values in sorted(columns.items())]


def _draw(dots: list[tuple[int, int]], columns: int, height: int) -> list[list[int]]:
    grid = [[0] * columns for _ in range(height)]
    for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(count + 1):
            x, y = x0 + round(i * (x1 - x0) / count), y0 + round(i * (y1 - y0) / count)
            grid[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return grid


def _line(row: list[int], index: int, scale: _Scale, changes: list[tuple[int, int]]) -> str:
    height = scale.rows // 4
    labelled = index in ((0, height // 2, height - 1) if scale.high > scale.low else (height // 2,))
    label = f"{scale.value(index / (height - 1)):.4g}" if labelled else ""
    cells = [
        chr(_BRAILLE + dots) if dots else _MARK if _is_mark(i, changes) else " " for i, dots in enumerate(row)
    ]
    return f"{label:>{_AXIS - 2}} {'┤' if labelled else '│'}{''.join(cells)}"


def _is_mark(cell: int, changes: list[tuple[int, int]]) -> bool:
    return any(cell == at for at, _ in changes)


def _spread(labels: list[tuple[int, str]], columns: int) -> str:
    """Texts at their places, moved left where they would reach too far; what has no room is left out."""
    text = ""
    for cell, label in labels:
        at = min(cell, columns - len(label))
        if at < len(text) + (1 if text else 0):
            continue
        text = text.ljust(at) + label
    return text
