"""How long an attempt may run, and what it may use: longest duration, deadline, GPU-hours, energy and hours
(window) of its run. Pure.

All but the energy become seconds when the attempt is launched, by the controller's clock alone; the node
counts them down on a clock that goes on while it sleeps. So a node whose wall clock is wrong keeps every
limit. Energy is counted by the node as well; of a gang the controller adds up what the ranks have used.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from orchestrator.domain.admission import GRACE_S, Hours
from orchestrator.domain.energy import KWH_J
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import Reason
from orchestrator.spec.models import RunSpec, Variant

HOUR_S = 3600.0


@dataclass(frozen=True)
class Limit:
    """The first limit that an attempt will meet."""

    reason: Reason
    seconds: float
    """From now; 0 where it has been met."""


def first_limit(
    run: RunRecord,
    variant: Variant,
    now: datetime,
    share: float = 1.0,
    hours: Hours | None = None,
    grace_s: float = GRACE_S,
) -> Limit | None:
    """What will end an attempt of this variant that begins now; None where nothing limits it.

    `share` is the part of a GPU's memory that the variant's `gpu_memory` is; `hours` those of the run, which
    has `grace_s` to save before they end.
    """
    spec, found = run.spec, []
    if spec.max_duration is not None:
        found.append(Limit(Reason.TIME_LIMIT, spec.max_duration - run.seconds_used))
    if spec.deadline is not None:
        found.append(Limit(Reason.DEADLINE, (spec.deadline - now).total_seconds()))
    rate = gpu_rate(variant, share)
    if spec.gpu_hours is not None and rate > 0:
        found.append(Limit(Reason.GPU_HOURS, (spec.gpu_hours * HOUR_S - run.gpu_seconds_used) / rate))
    if hours is not None and (left := _left_of(hours, now)) is not None:
        found.append(Limit(Reason.WINDOW, left - grace_s))
    if not found:
        return None
    first = min(found, key=lambda limit: limit.seconds)
    return Limit(first.reason, max(0.0, first.seconds))


def _left_of(hours: Hours, now: datetime) -> float | None:
    """Seconds until the hours end, 0 outside of them; None where they never end."""
    at = now.timestamp()
    if not hours.open_at(at):
        return 0.0
    closes = hours.closes(at)
    return None if closes is None else closes - at


def exhausted(run: RunRecord, now: datetime) -> Reason | None:
    """The limit that a waiting run has met, so that it need not start any more.

    GPU-hours that are used up end a run only where none of its placements does without a GPU.
    """
    spec = run.spec
    if spec.deadline is not None and spec.deadline <= now:
        return Reason.DEADLINE
    if spec.max_duration is not None and run.seconds_used >= spec.max_duration:
        return Reason.TIME_LIMIT
    if joules_left(run) == 0:
        return Reason.ENERGY
    spent = spec.gpu_hours is not None and run.gpu_seconds_used >= spec.gpu_hours * HOUR_S
    return Reason.GPU_HOURS if spent and all(variant.gpus for variant in spec.placement) else None


def joules_left(run: RunRecord) -> float | None:
    """Energy that the run may still use; 0 where that is all used up, None where nothing limits it."""
    return None if run.spec.kwh is None else max(0.0, run.spec.kwh * KWH_J - run.joules_used)


def gpu_rate(variant: Variant, share: float = 1.0) -> float:
    """GPU-seconds that an attempt of this variant uses in a second, all ranks together."""
    return variant.gpus * variant.ranks * (share if variant.gpu_memory is not None else 1.0)


def share_of(variant: Variant, memory: int | None) -> float:
    """The part of a GPU that the variant takes; 1 where the GPU's memory (bytes) is not known."""
    if variant.gpu_memory is None or not memory:
        return 1.0
    return min(1.0, variant.gpu_memory / memory)


def seconds(attempt: AttemptRecord, until: datetime) -> float:
    """How long an attempt's program has run."""
    return max(0.0, (until - attempt.started_at).total_seconds()) if attempt.started_at else 0.0


def describe(spec: RunSpec, reason: Reason) -> str:
    """Which limit was met, in words."""
    if reason is Reason.DEADLINE and spec.deadline is not None:
        return f"its deadline has passed ({spec.deadline.isoformat(timespec='seconds')})"
    if reason is Reason.GPU_HOURS and spec.gpu_hours is not None:
        return f"it has used up its {spec.gpu_hours:g} GPU-hours (gpu_hours)"
    if reason is Reason.ENERGY and spec.kwh is not None:
        return f"it has used up its {spec.kwh:g} kWh (kwh)"
    if reason is Reason.TIME_LIMIT and spec.max_duration is not None:
        return f"it has run for its longest duration of {spec.max_duration:g} s (max_duration)"
    if reason is Reason.WINDOW:
        return "the hours in which it may run end"
    return "it has met a limit"
