"""Figures as Plotly reads them. Colours are names of the page's style, so that they follow its theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.analysis.report.html import Html, el, text

INK: Final = "var(--ink)"
MUTED: Final = "var(--muted)"
FAINT: Final = "var(--faint)"
GRID: Final = "var(--grid)"
PAPER: Final = "var(--paper)"
BEST: Final = "var(--best)"
GOOD: Final = "var(--good)"
BAD: Final = "var(--bad)"
EARLY: Final = "var(--early)"
SAVED: Final = "var(--saved)"
CYCLE: Final = tuple(f"var(--line{n})" for n in range(1, 8))
"""Colours of runs side by side; the page's style has them."""
_CLEAR: Final = "rgba(0,0,0,0)"

Trace = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One picture. The page's program draws it into the element of its id."""

    id: str
    label: str
    """What it shows, for those who do not see it."""
    data: Sequence[Trace]
    layout: dict[str, Any]
    height: int = 340
    """CSS pixels."""

    @property
    def place(self) -> Html:
        """The element that it is drawn into."""
        style = f"height:{self.height}px"
        return el("div", class_="figure", id=self.id, style=style, role="img", aria_label=self.label)

    def as_json(self) -> dict[str, Any]:
        """What the page's program needs to draw it."""
        return {"id": self.id, "data": list(self.data), "layout": self.layout}


def shown(words: str) -> str:
    """Text for a figure: Plotly takes markup in labels, and nothing of a user must be any."""
    return str(text(words))


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis in the page's style."""
    return {
        "title": {"text": shown(title), "font": {"size": 12, "color": MUTED}, "standoff": 8},
        "tickfont": {"size": 11, "color": MUTED},
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        **more,
    }


def layout(x: dict[str, Any], y: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A layout in the page's style."""
    return {
        "xaxis": x,
        "yaxis": y,
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": GRID,
            "font": {"color": INK, "size": 12},
            "namelength": -1,
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "font": {"size": 12, "color": INK},
            "traceorder": "reversed",
        },
        **more,
    }
