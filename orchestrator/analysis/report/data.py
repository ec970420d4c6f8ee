"""What a report is made of: plain frozen values. :mod:`orchestrator.control.reporting` collects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any, Literal

from orchestrator.analysis.compare import Comparison
from orchestrator.messages import AttemptView, CheckpointView
from orchestrator.messages_sweeps import SweepDetail

Direction = Literal["minimize", "maximize"]

COMPLETE = frozenset({"complete", "succeeded"})
BROKEN = frozenset({"failed", "cancelled"})
"""States of entries that ended without a result that counts."""


@dataclass(frozen=True)
class Curve:
    """One metric of one run: points by step."""

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    """Time that the run's attempts had trained until then; pauses between them do not count."""
    values: tuple[float, ...]


@dataclass(frozen=True)
class Entry:
    """One run of a report; in a sweep, one trial."""

    run_id: str
    name: str
    state: str
    """Of a trial the trial's state, else the run's."""
    message: str = ""
    number: int | None = None
    """Of the trial; None outside a sweep."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Values of what varies, by path in the spec."""
    value: float | None = None
    """The objective."""
    mean: float | None = None
    """Of the objective over the trials of its point, where a point has several."""
    step: int | None = None
    seconds: float = 0.0
    """Time of training."""
    attempts: tuple[AttemptView, ...] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    energy_kwh: float | None = None
    cost: float | None = None

    @property
    def label(self) -> str:
        """What it is called in the report."""
        return self.name if self.number is None else f"trial {self.number}"

    @property
    def score(self) -> float | None:
        """What it is ranked by."""
        return self.value if self.mean is None else self.mean


@dataclass(frozen=True)
class Axis:
    """A parameter that varies."""

    path: str
    name: str
    log: bool = False
    choices: tuple[Any, ...] | None = None
    """Its values, where it is no number."""


@dataclass(frozen=True)
class Kept:
    """What is kept of the best entry: its best checkpoint, and what its model has written."""

    checkpoint: CheckpointView | None
    """None where there is none any more, or the store did not answer."""
    sample: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that one page says."""

    title: str
    at: datetime
    """When it was made."""
    metric: str
    direction: Direction
    entries: tuple[Entry, ...]
    best: int | None = None
    """Place of the best entry; None where none has a value."""
    axes: tuple[Axis, ...] = ()
    metrics: tuple[str, ...] = ()
    """Curves to draw; the objective first."""
    importance: Mapping[str, float] = field(default_factory=dict)
    """Share of each parameter in what the objective varies by, from 0 to 1; empty where it is not known."""
    kept: Kept | None = None
    sweep: SweepDetail | None = None
    """None for a report on runs."""
    comparison: Comparison | None = None
    """Of two or more runs."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Name -> address of MLflow's pages."""
    currency: str = ""
    zone: tzinfo | None = None
    """In which times are told; None for this machine's."""
    version: str = ""
    """Of the program that made it."""

    @property
    def minimize(self) -> bool:
        """Whether small values are good."""
        return self.direction == "minimize"


def ranked(report: Report) -> list[int]:
    """Places of the entries, best first: the best, those that count by value, pruned ones, broken ones."""

    def key(place: int) -> tuple[int, int, float, int]:
        entry = report.entries[place]
        group = 2 if entry.state in BROKEN else 1 if entry.state == "pruned" else 0
        score = entry.score
        worth = 0.0 if score is None else score if report.minimize else -score
        return (group if place != report.best else -1, score is None, worth, place)

    return sorted(range(len(report.entries)), key=key)
