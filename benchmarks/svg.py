"""A line plot as SVG: axes, curves, bands and a legend, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 52
COLOURS = ("#1f6fb4", "#d1492b", "#2f8f4e", "#7b4fa3", "#8a6d1d", "#4a4a4a")
LEGEND_LINE, LETTER = 17, 6.6
"""Height of a line of the legend, about the width of a letter."""
INK, GRID, PAPER = "#222222", "#dddddd", "#ffffff"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve of a plot."""

    label: str
    points: Points
    """x ascending."""
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two curves with the same x."""

    label: str
    """Not in the legend when empty."""
    low: Points
    high: Points
    colour: str


@dataclass(frozen=True)
class Plot:
    """What to draw."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    mark_x: float | None = None
    """Where a vertical line stands."""
    top: float | None = None
    """The largest y shown; more is cut off."""


def render(plot: Plot) -> str:
    """The plot as an SVG document.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves = [line.points for line in plot.lines]
    curves += [side for band in plot.bands for side in (band.low, band.high)]
    points = [point for curve in curves for point in curve]
    if not points:
        raise ValueError(f"{plot.title}: no points")
    xs, ys = [x for x, _ in points], [y for _, y in points if plot.top is None or y <= plot.top]
    scale = _Scale((min(xs), max(xs)), (min(ys), max(ys)))
    parts = [*_frame(plot, scale), '<g clip-path="url(#area)">']
    parts += [_band(band, scale) for band in plot.bands]
    if plot.mark_x is not None:
        x = scale.x(plot.mark_x)
        parts.append(_path([(x, TOP), (x, HEIGHT - BOTTOM)], INK, 1, dashed=True))
    for line in plot.lines:
        parts.append(_path([scale.place(point) for point in line.points], line.colour, 1.6, line.dashed))
    parts += ["</g>", *_legend(plot, scale), "</svg>"]
    return "\n".join(parts) + "\n"


class _Scale:
    """From values to places on the paper."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float]) -> None:
        self.x_ticks, self.y_ticks = ticks(*xs), ticks(*ys)
        self._x = (min(xs[0], self.x_ticks[0]), max(xs[1], self.x_ticks[-1]))
        self._y = (min(ys[0], self.y_ticks[0]), max(ys[1], self.y_ticks[-1]))

    def x(self, value: float) -> float:
        low, high = self._x
        return LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        return self.x(point[0]), self.y(point[1])


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about so many."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _frame(plot: Plot, scale: _Scale) -> list[str]:
    """Paper, title, grid, axes and their labels."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12">',
        f"<title>{escape(plot.title)}</title>",
        f'<defs><clipPath id="area"><rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" '
        f'height="{bottom - TOP}"/></clipPath></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        _text(LEFT, 24, plot.title, size=15),
    ]
    for tick in scale.y_ticks:
        y = scale.y(tick)
        parts += [_path([(LEFT, y), (right, y)], GRID, 1), _text(LEFT - 8, y + 4, f"{tick:g}", "end")]
    for tick in scale.x_ticks:
        x = scale.x(tick)
        parts += [_path([(x, bottom), (x, bottom + 5)], INK, 1), _text(x, bottom + 19, f"{tick:g}", "middle")]
    parts.append(_path([(LEFT, TOP), (LEFT, bottom), (right, bottom)], INK, 1))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 12, plot.x_label, "middle"))
    turned = f'<g transform="translate(16 {(TOP + bottom) / 2}) rotate(-90)">'
    return [*parts, turned + _text(0, 0, plot.y_label, "middle") + "</g>"]


def _legend(plot: Plot, scale: _Scale) -> list[str]:
    """Names of bands and lines, at the top where they hide least."""
    bands = [band for band in plot.bands if band.label]
    if not bands and not plot.lines:
        return []
    x = _free_place(plot, scale, [*(b.label for b in bands), *(line.label for line in plot.lines)])
    parts, y = [], TOP + 14
    for band in bands:
        parts.append(f'<rect x="{x}" y="{y - 9}" width="24" height="10" fill="{band.colour}" opacity="0.2"/>')
        parts.append(_text(x + 32, y, band.label))
        y += LEGEND_LINE
    for line in plot.lines:
        parts += [_path([(x, y - 4), (x + 24, y - 4)], line.colour, 2, line.dashed)]
        parts.append(_text(x + 32, y, line.label))
        y += LEGEND_LINE
    return parts


def _free_place(plot: Plot, scale: _Scale, labels: Sequence[str]) -> float:
    """Where a legend begins that covers the fewest points: right, left or in the middle."""
    width = 32 + max(map(len, labels)) * LETTER
    right = WIDTH - RIGHT - width
    points = [point for line in plot.lines for point in line.points]
    points += [point for band in plot.bands for point in (*band.low, *band.high)]
    places = [scale.place(point) for point in points]
    bottom = TOP + 14 + len(labels) * LEGEND_LINE

    def covered(left: float) -> int:
        return sum(left <= x <= left + width and TOP <= y <= bottom for x, y in places)

    return min((right, LEFT + 16.0, (LEFT + right) / 2), key=covered)


def _band(band: Band, scale: _Scale) -> str:
    edge = [scale.place(point) for point in [*band.low, *reversed(band.high)]]
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
    return f'<polygon points="{outline}" fill="{band.colour}" opacity="0.2"/>'


def _path(points: Points, colour: str, width: float, dashed: bool = False) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">'
        f"{escape(text)}</text>"
    )
