"""What ran where and when: attempts as bars on their machines. Days between nights are gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from orchestrator.analysis.report.data import Report
from orchestrator.analysis.report.figure import (
    BAD,
    BEST,
    EARLY,
    FAINT,
    GOOD,
    GRID,
    INK,
    PAPER,
    SAVED,
    Figure,
    Trace,
    axis,
    layout,
    shown,
)
from orchestrator.analysis.report.words import duration
from orchestrator.domain.states import CONSEQUENCES, Then
from orchestrator.messages import AttemptView

_LANE_PX, _LANE_THIN_PX, _MANY_LANES = 24, 12, 24
_OUTCOMES = {
    "finished": GOOD,
    "saved, went on later": SAVED,
    "pruned": EARLY,
    "failed": BAD,
    "cancelled": FAINT,
    "executes": BEST,
}
"""What became of an attempt, in the order of the legend, and its colour."""
_THEN = {Then.SUCCEED: "finished", Then.CANCEL: "cancelled", Then.RETRY: "failed", Then.FAIL: "failed"}


@dataclass(frozen=True)
class Bar:
    """One attempt in the picture."""

    entry: int
    attempt: AttemptView
    start: datetime
    end: datetime
    outcome: str
    lane: int = 0
    """Of its machine, from 0: attempts at the same time are beside each other."""


def bars(report: Report) -> list[Bar]:
    """Every attempt that has trained, by its start."""
    found = []
    for place, entry in enumerate(report.entries):
        last = max((one.number for one in entry.attempts), default=0)
        for one in entry.attempts:
            if one.started_at is not None:
                end = max(one.ended_at or report.at, one.started_at)
                outcome = _outcome(one, entry.state if one.number == last else "")
                found.append(Bar(place, one, one.started_at, end, outcome))
    return sorted(found, key=lambda bar: (bar.start, bar.entry))


def _outcome(attempt: AttemptView, state: str) -> str:
    if attempt.ended_at is None:
        return "executes"
    if state == "pruned":
        return "pruned"
    then = CONSEQUENCES[attempt.reason].then if attempt.reason is not None else Then.QUEUE
    return _THEN.get(then, "saved, went on later")


def lanes(found: Sequence[Bar]) -> dict[str, list[Bar]]:
    """The bars of each machine, in the order in which machines began; none overlaps another of its lane."""
    machines: dict[str, list[Bar]] = {}
    ends: dict[str, list[datetime]] = {}
    for bar in found:
        taken = ends.setdefault(bar.attempt.node, [])
        free = next((lane for lane, end in enumerate(taken) if end <= bar.start), len(taken))
        taken[free : free + 1] = [bar.end]
        machines.setdefault(bar.attempt.node, []).append(replace(bar, lane=free))
    return machines


def gantt(report: Report) -> list[Figure]:
    """The picture; none where nothing has run."""
    machines = lanes(bars(report))
    if not machines:
        return []
    rows: list[tuple[float, Bar]] = []
    ticks, edges, top = [], [], 0
    for _, placed in machines.items():
        many = max(bar.lane for bar in placed) + 1
        rows += [(top + bar.lane, bar) for bar in placed]
        ticks.append(top + (many - 1) / 2)
        top += many
        edges.append(top - 0.5)
    y = axis(
        tickvals=ticks, ticktext=[shown(name) for name in machines], range=[top - 0.5, -0.5], showgrid=False
    )
    height = (_LANE_PX if top <= _MANY_LANES else _LANE_THIN_PX) * max(top, 2) + 96
    more = {"bargap": 0, "barmode": "overlay", "shapes": [_edge(at) for at in edges[:-1]]}
    plot = layout(axis(type="date"), y, **more)
    return [Figure("gantt", "attempts by machine and time", _traces(report, rows), plot, height)]


def _edge(at: float) -> dict[str, Any]:
    """A line between two machines."""
    line = {"color": GRID, "width": 1}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": at, "y1": at, "line": line}


def _traces(report: Report, rows: Sequence[tuple[float, Bar]]) -> list[Trace]:
    span = max(bar.end for _, bar in rows) - min(bar.start for _, bar in rows)
    return [
        _trace(report, outcome, color, [row for row in rows if row[1].outcome == outcome], span)
        for outcome, color in _OUTCOMES.items()
        if any(bar.outcome == outcome for _, bar in rows)
    ]


def _trace(
    report: Report, outcome: str, color: str, rows: Sequence[tuple[float, Bar]], span: timedelta
) -> Trace:
    best = [bar.entry == report.best and len(report.entries) > 1 for _, bar in rows]
    long = [bar.end - bar.start > span / 100 for _, bar in rows]
    return {
        "type": "bar",
        "orientation": "h",
        "name": outcome,
        "y": [at for at, _ in rows],
        "base": [_local(report, bar.start) for _, bar in rows],
        "x": [max(1, round((bar.end - bar.start) / timedelta(milliseconds=1))) for _, bar in rows],
        "width": 0.72,
        "marker": {
            "color": color,
            "line": {
                # What is too short for a border of paper keeps a pixel of its own.
                "color": [
                    INK if framed else PAPER if wide else color
                    for framed, wide in zip(best, long, strict=True)
                ],
                "width": [2 if framed else 1 for framed in best],
            },
        },
        "hovertext": [_told(report, bar) for _, bar in rows],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _local(report: Report, at: datetime) -> str:
    return at.astimezone(report.zone).strftime("%Y-%m-%d %H:%M:%S")


def _told(report: Report, bar: Bar) -> str:
    one, entry = bar.attempt, report.entries[bar.entry]
    again = f", attempt {one.number}" if len(entry.attempts) > 1 else ""
    steps = f"steps {one.first_step or 0:,} to {one.last_step:,}" if one.last_step is not None else ""
    span = f"{bar.start.astimezone(report.zone):%H:%M} to {bar.end.astimezone(report.zone):%H:%M}"
    lines = [
        f"{entry.label}{again}",
        f"{span}, {duration((bar.end - bar.start).total_seconds())}",
        steps,
        bar.outcome,
    ]
    return "<br>".join(shown(line) for line in lines if line)
