"""Runs side by side: what was set differently, and what came out. Pure functions on what the API answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.messages import AttemptView, RunDetail
from orchestrator.spec.models import Variant

Value = str | float | int | bool | list[Any] | None
"""A setting or result. A list holds one item per attempt where attempts differ, in their order."""

FIRST_METRICS = ("train/loss", "val/loss", "val/loss_full")
HIDDEN_METRICS = ("system/",)


class Row(BaseModel):
    """One line of a comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    values: list[Value]
    """One for each run; None where a run has none."""
    difference: float | None = None
    """Second minus first; with more than two runs, largest minus smallest. None where not all are numbers."""
    ratio: float | None = None
    """Second by first; with more than two runs, largest by smallest. None where not all are above 0."""


class Comparison(BaseModel):
    """Two or more runs side by side."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: list[str]
    """Ids."""
    names: list[str]
    settings: list[Row]
    """Settings that differ, by their path in the spec, as they were in effect on the nodes."""
    results: list[Row]
    """What the runs have done: steps, tokens, time, machines."""
    metrics: list[Row]
    """Last value of every metric that one of them has, except measurements of machines."""
    links: dict[str, str] = {}
    """MLflow's pages about them."""


def compare(details: Sequence[RunDetail], links: Mapping[str, str] | None = None) -> Comparison:
    """Put runs side by side, in the order given."""
    settings = [effective_settings(detail) for detail in details]
    outcomes = [_results(detail) for detail in details]
    metrics = [_metrics(detail) for detail in details]
    return Comparison(
        runs=[detail.run.id for detail in details],
        names=[detail.run.name for detail in details],
        settings=[row for row in _rows(settings) if _differ(row.values)],
        results=_rows(outcomes),
        metrics=sorted(_rows(metrics), key=lambda row: _metric_order(row.key)),
        links=dict(links or {}),
    )


def effective_settings(detail: RunDetail) -> dict[str, Value]:
    """Every setting by its dotted path; trainer settings with what the nodes' variants changed.

    A run whose attempts had different settings has a list, one value for each stretch of equal attempts.
    """
    per_attempt = [_settings(detail, variant) for variant in _variants(detail)]
    found: dict[str, Value] = {}
    for key in dict.fromkeys(key for one in per_attempt for key in one):
        values = _without_repeats([one.get(key) for one in per_attempt])
        found[key] = values[0] if len(values) == 1 else values
    return found


def _settings(detail: RunDetail, variant: Variant) -> dict[str, Value]:
    spec = detail.spec
    plain = spec.model_dump(mode="json", exclude={"name", "experiment", "placement", "trainer"})
    trainer = spec.trainer_for(variant)
    if trainer is not None:
        plain["trainer"] = trainer.model_dump(mode="json")
    plain["placement"] = variant.model_dump(mode="json", exclude={"trainer"})
    return _flat(plain)


def _variants(detail: RunDetail) -> list[Variant]:
    """The variant of each attempt; what would come first where there was none."""
    by_pool = {variant.pool: variant for variant in reversed(detail.spec.placement)}
    used = [by_pool[attempt.pool] for attempt in detail.attempts if attempt.pool in by_pool]
    return used or [detail.spec.placement[0]]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found.update(_flat(item, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = " ".join(map(str, item)) if isinstance(item, list) else item
    return found


def _results(detail: RunDetail) -> dict[str, Value]:
    run, attempts = detail.run, detail.attempts
    nodes = _without_repeats([attempt.node for attempt in attempts])
    devices = _without_repeats([attempt.device for attempt in attempts if attempt.device])
    return {
        "state": run.state.value,
        "steps": run.step,
        "tokens trained": _tokens(detail),
        "training time (s)": _seconds(attempts),
        "attempts": len(attempts),
        "nodes": _single(nodes),
        "devices": _single(devices),
    }


def _tokens(detail: RunDetail) -> int | None:
    """Tokens that the run's own attempts have trained on; None for a command."""
    by_pool = {variant.pool: variant for variant in reversed(detail.spec.placement)}
    total = 0
    for attempt in detail.attempts:
        trainer = (
            detail.spec.trainer_for(by_pool[attempt.pool]) if attempt.pool in by_pool else detail.spec.trainer
        )
        if trainer is None:
            return None
        steps = max(0, (attempt.last_step or 0) - (attempt.first_step or 0))
        total += steps * trainer.batch_size * trainer.block_size
    return total


def _seconds(attempts: Sequence[AttemptView]) -> float | None:
    spans = [(a.ended_at - a.started_at).total_seconds() for a in attempts if a.started_at and a.ended_at]
    return round(sum(spans), 1) if spans else None


def _metrics(detail: RunDetail) -> dict[str, Value]:
    return {key: value for key, value in detail.metrics.items() if not key.startswith(HIDDEN_METRICS)}


def _metric_order(key: str) -> tuple[int, str]:
    return (FIRST_METRICS.index(key) if key in FIRST_METRICS else len(FIRST_METRICS), key)


def _rows(sides: Sequence[Mapping[str, Value]]) -> list[Row]:
    return [
        _row(key, [side.get(key) for side in sides]) for key in dict.fromkeys(k for s in sides for k in s)
    ]


def _row(key: str, values: list[Value]) -> Row:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(values) or len(values) < 2:
        return Row(key=key, values=values)
    low, high = (numbers[0], numbers[1]) if len(numbers) == 2 else (min(numbers), max(numbers))
    ratio = high / low if low > 0 and high > 0 else None
    return Row(key=key, values=values, difference=high - low, ratio=ratio)


def _differ(values: Sequence[Value]) -> bool:
    return any(value != values[0] for value in values[1:])


def _without_repeats(values: Sequence[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if i == 0 or values[i - 1] != value]


def _single(values: list[Any]) -> Value:
    return None if not values else values[0] if len(values) == 1 else values
