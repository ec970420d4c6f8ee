"""What people can be told of, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal


class NoticeKind(StrEnum):
    """Why somebody is told."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STUCK = "stuck"
    BEST = "best"
    SWEEP = "sweep"
    SCHEDULE = "schedule"
    """A due time of a schedule has created nothing."""


USUAL: Final[tuple[NoticeKind, ...]] = tuple(kind for kind in NoticeKind if kind != NoticeKind.CANCELLED)
"""Who cancels a run knows it."""


@dataclass(frozen=True)
class Notice:
    """Something to tell. (kind, subject, key) is told once."""

    id: int
    kind: NoticeKind
    subject: str
    """The run, sweep or experiment that it is about."""
    key: str
    """Which occurrence it is, among those of its kind."""
    name: str
    """Name of the run or sweep; empty where it has none."""
    experiment: str
    at: datetime
    title: str = ""
    """Empty until it has been put into words."""
    body: str = ""


@dataclass(frozen=True)
class Delivery:
    """A notice on its way to one target."""

    notice: Notice
    target: str
    tries: int
    """Failures so far."""


def beats(value: float, other: float, mode: Literal["min", "max"]) -> bool:
    """Whether a value of a metric is better than another."""
    return value < other if mode == "min" else value > other
