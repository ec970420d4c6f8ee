"""What of sweeps and runs a report speaks of: parameters, objective, curves, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.analysis.compare import Comparison
from orchestrator.analysis.report.data import Axis, Direction, Entry
from orchestrator.analysis.report.words import short_names
from orchestrator.messages import RunDetail
from orchestrator.messages_sweeps import SweepDetail
from orchestrator.spec.sweep import Parameter

_METRICS = ("train/loss", "val/loss", "lr")
"""Curves of a run that are drawn besides its objective, where it has them."""
_HIDDEN = ("system/", "perf/", "orch/")
_MOST_METRICS = 6
_MOST_COLUMNS = 6
"""Settings that differ and stand beside each run in the table of runs; another table has all of them."""


def axes(space: Mapping[str, Parameter]) -> tuple[Axis, ...]:
    """The parameters of a search."""
    names = short_names(space)
    return tuple(
        Axis(path, names[path], one.log, tuple(one.choice) if one.choice is not None else None)
        for path, one in space.items()
    )


def means(detail: SweepDetail) -> dict[int, float]:
    """The mean of each point that several trials have; nothing where each point is one trial."""
    if detail.spec.repeat == 1:
        return {}
    values: dict[int, list[float]] = {}
    for trial in detail.trials:
        if trial.value is not None:
            values.setdefault(trial.point, []).append(trial.value)
    return {point: sum(some) / len(some) for point, some in values.items()}


def objective(details: Sequence[RunDetail]) -> tuple[str, Direction]:
    """What the runs are judged by: what the first one keeps checkpoints by, where any has it."""
    policy = details[0].spec.checkpoint
    direction: Direction = "minimize" if policy.mode == "min" else "maximize"
    known = [key for detail in details for key in detail.metrics if not key.startswith(_HIDDEN)]
    if policy.metric in known or not known:
        return policy.metric, direction
    return ("train/loss" if "train/loss" in known else known[0]), "minimize"


def metrics(details: Sequence[RunDetail], first: str) -> tuple[str, ...]:
    """The metrics of runs whose curves are drawn, the objective first."""
    known = dict.fromkeys(key for detail in details for key in detail.metrics if not key.startswith(_HIDDEN))
    wanted = [key for key in _METRICS if key in known] or list(known)
    return tuple(dict.fromkeys([first, *wanted]))[:_MOST_METRICS]


def best(entries: Sequence[Entry], direction: Direction) -> int | None:
    """Place of the entry with the best value."""
    having = [(entry.value, place) for place, entry in enumerate(entries) if entry.value is not None]
    if not having:
        return None
    return (min if direction == "minimize" else max)(having, key=lambda pair: pair[0])[1]


def titles(details: Sequence[RunDetail]) -> list[str]:
    """What runs are called: their names, with their ids where some have the same."""
    names = [detail.run.name for detail in details]
    return names if len(set(names)) == len(names) else [f"{d.run.name} {d.run.id}" for d in details]


def columns(comparison: Comparison | None) -> tuple[Axis, ...]:
    """The settings that differ and stand beside each run: the program's own first."""
    rows = [row for row in comparison.settings if not row.key.startswith("placement.")] if comparison else []
    chosen = sorted(rows, key=lambda row: not row.key.startswith("trainer."))[:_MOST_COLUMNS]
    names = short_names(row.key for row in chosen)
    return tuple(Axis(row.key, names[row.key], choices=_choices(row.values)) for row in chosen)


def _choices(values: Sequence[Any]) -> tuple[Any, ...] | None:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return None if numbers else tuple(values)
