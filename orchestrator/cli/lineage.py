"""How the checkpoints of a run descend from each other, one a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.messages import CheckpointView

COLUMNS = [
    Column(""),
    Column("STEP", right=True),
    Column("ATTEMPT", right=True),
    Column("NODE", least=6),
    Column("DEVICE", least=6),
    Column("SAVED"),
    Column("SIZE", right=True),
    Column("VAL", right=True),
    Column("", wrap=True),
]
ON, OFF = "●", "│ ○"
"""Marks of a checkpoint that the newest one descends from, and of one that was left behind."""


def checkpoints_table(found: Sequence[CheckpointView]) -> Text:
    """Checkpoints in the order of commits, a mark before those that the newest one descends from."""
    from orchestrator.clock import SYSTEM

    now = SYSTEM.now()
    path = ancestry(found)
    rows = [
        _row(view, before, index in path, now)
        for index, (view, before) in enumerate(zip(found, [None, *found], strict=False))
    ]
    return render.table(COLUMNS, rows, width())


def ancestry(found: Sequence[CheckpointView]) -> set[int]:
    """Places in `found` of the newest checkpoint that is kept and of all that it descends from.

    Within an attempt each descends from the one before; the first of an attempt from the one that the attempt
    went on from.
    """
    path: set[int] = set()
    place = max((i for i, view in enumerate(found) if view.kept), default=len(found) - 1)
    while place >= 0:
        path.add(place)
        place = _parent(found, place)
    return path


def _parent(found: Sequence[CheckpointView], place: int) -> int:
    view = found[place]
    if place and found[place - 1].attempt == view.attempt:
        return place - 1
    if view.parent is None or view.parent.run != view.run:
        return -1
    step = view.parent.step
    return max((i for i in range(place) if found[i].step == step), default=-1)


def _row(view: CheckpointView, before: CheckpointView | None, on_path: bool, now: datetime) -> list[Cell]:
    return [
        ON if on_path else OFF,
        str(view.step),
        str(view.attempt),
        view.node,
        view.device,
        render.ago(view.at, now),
        render.size(view.size),
        render.loss(view.metrics.get("val/loss")),
        "; ".join(_remarks(view, before)),
    ]


def _remarks(view: CheckpointView, before: CheckpointView | None) -> list[str]:
    remarks = []
    if before is None or before.attempt != view.attempt:
        if view.parent is not None:
            whose = "" if view.parent.run == view.run else f" of {view.parent.run}"
            remarks.append(f"from step {view.parent.step}{whose}")
        elif before is not None:
            remarks.append("begun anew")
    if view.tags:
        remarks.append(f"{'tag' if len(view.tags) == 1 else 'tags'} {', '.join(view.tags)}")
    if not view.kept:
        remarks.append("removed")
    return remarks
