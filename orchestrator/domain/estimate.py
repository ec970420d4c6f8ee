"""How long a run still takes, from how fast runs like it went on each kind of device. Pure.

A shape is what decides the speed of a program: the trainer's settings without seeds, lengths and schedules,
with those of the placement, or a command; and what it is granted. Measured seconds per step are remembered
by shape and device. What has only been seen on other devices is scaled by how these compare on other
shapes; what has never been seen has no estimate.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from orchestrator.domain.limits import first_limit
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.spec.models import RunSpec, Variant

LEAST_STEPS: Final = 10
LEAST_S: Final = 5.0
"""A measurement over less than this many steps and seconds says nothing."""
WEIGHT: Final = 0.3
"""Of a new measurement against what is remembered."""
MOST: Final = 5000
"""Pairs of shape and device that are remembered; those that were not heard of for longest are forgotten."""

_INDIFFERENT: Final = frozenset(
    {
        "seed",
        "max_steps",
        "learning_rate",
        "muon_lr",
        "muon_momentum",
        "lr_schedule",
        "min_lr",
        "warmup_steps",
        "lr_decay_steps",
        "decay_lr",
        "weight_decay",
        "beta1",
        "beta2",
        "grad_clip",
        "stop_when",
        "final_eval",
        "sample_tokens",
        "nonfinite",
        "max_rewinds",
        "probe_tolerance",
        "checkpoint_best",
    }
)
"""Settings of the trainer that hardly change how long a step takes."""


def shape(spec: RunSpec, variant: Variant) -> str:
    """What decides how fast a run goes on a device, as a short hash."""
    settings = spec.trainer_for(variant)
    program: dict[str, Any]
    if settings is not None:
        program = {k: v for k, v in settings.model_dump(mode="json").items() if k not in _INDIFFERENT}
    else:
        assert spec.command is not None
        program = {"argv": spec.command.argv, "env": dict(spec.command.env)}
    granted = [variant.cpus, variant.gpus, variant.ranks, variant.gpu_memory]
    text = json.dumps([program, granted], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measured(attempt: AttemptRecord) -> float | None:
    """Seconds per step of an attempt that has ended; None where it tells nothing.

    The time until the first step (imports, compiling) is left out, where the agent has measured it.
    """
    first, last, began, ended = attempt.first_step, attempt.last_step, attempt.started_at, attempt.ended_at
    if first is None or last is None or began is None or ended is None:
        return None
    seconds = (ended - began).total_seconds() - attempt.timings.get("first_step", 0.0)
    if last - first < LEAST_STEPS or seconds < LEAST_S:
        return None
    return seconds / (last - first)


def device_kind(attempt: AttemptRecord) -> str:
    """What the attempt runs on, as far as it matters for its speed; empty where it has not said so."""
    return attempt.device_name or attempt.device or ""


class Paces:
    """Seconds per step by shape and kind of device."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._shapes: dict[str, set[str]] = {}
        """Shape -> devices on which it was seen."""

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, shape: str, device: str, seconds: float) -> None:
        """Take a measurement in. Nothing for one that cannot be, or without a device."""
        if not device or not math.isfinite(seconds) or seconds <= 0:
            return
        before = self._known.pop((shape, device), seconds)
        self._known[shape, device] = before + WEIGHT * (seconds - before)
        self._shapes.setdefault(shape, set()).add(device)
        if len(self._known) > self._most:
            old, _ = self._known.popitem(last=False)
            self._shapes[old[0]].discard(old[1])
            if not self._shapes[old[0]]:
                del self._shapes[old[0]]

    def seconds_per_step(self, shape: str, device: str) -> float | None:
        """What a step takes there: measured, or scaled from another device; None where nothing is known."""
        known = self._known.get((shape, device))
        if known is not None:
            return known
        scaled = [
            self._known[shape, other] * ratio
            for other in sorted(self._shapes.get(shape, ()))
            if (ratio := self._ratio(other, device)) is not None
        ]
        return statistics.median(scaled) if scaled else None

    def _ratio(self, one: str, other: str) -> float | None:
        """How many times longer a step takes on the other device: the median over shapes seen on both."""
        both = [s for s, devices in self._shapes.items() if one in devices and other in devices]
        ratios = [self._known[s, other] / self._known[s, one] for s in both]
        return statistics.median(ratios) if ratios else None


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    target: int
    seconds_per_step: float

    @property
    def remaining_s(self) -> float:
        """Seconds that its steps still take."""
        return max(0, self.target - self.step) * self.seconds_per_step


def target(run: RunRecord) -> int | None:
    """The step at which it ends; None where that is not known."""
    return run.spec.trainer.max_steps if run.spec.trainer is not None else None


def expected_end(
    run: RunRecord, attempt: AttemptRecord, progress: Progress | None, now: datetime
) -> datetime | None:
    """When an attempt that executes is expected to have ended: done, or at the first of its limits, whichever
    is earlier. None where neither is known."""
    began = attempt.started_at or attempt.created_at
    limit = first_limit(run, attempt.variant, began)
    ends = [began + timedelta(seconds=limit.seconds)] if limit is not None else []
    if progress is not None:
        ends.append(now + timedelta(seconds=progress.remaining_s))
    return min(ends, default=None)
