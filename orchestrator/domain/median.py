"""The median stopping rule: a trial that is worse than the median of the others is ended. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median

from orchestrator.spec.sweep import Pruner


def worse_than_median(
    trial: Mapping[int, float], others: Iterable[Mapping[int, float]], pruner: Pruner, direction: str
) -> bool:
    """Whether a trial should be ended, by the objective at each step at which it was measured.

    The trial's best so far is compared with the median of what the others had at the trial's last step.
    That is Optuna's definition (optuna.pruners.MedianPruner) of the rule of Golovin et al., Google Vizier,
    KDD 2017, section 3.2.1, which takes the mean of the others up to the step instead of the value at it.
    Of another, the value at a step is the newest that was measured up to there, if it came that far.
    Values that are not finite do not count; a trial that has no others is worse than any median.

    Args:
        trial: step -> objective of the trial.
        others: the same of those that it is compared with: complete trials.
        pruner: ends nothing before `first_steps`, nor with fewer than `startup_trials` others.
        direction: `minimize` or `maximize`.
    """
    if not trial:
        return False
    step = max(trial)
    if pruner.first_steps is not None and step < pruner.first_steps:
        return False
    at_step = [value for other in others if (value := _at(other, step)) is not None]
    if len(at_step) < pruner.startup_trials:
        return False
    finite = [value for value in trial.values() if math.isfinite(value)]
    if direction == "maximize":
        return max(finite, default=-math.inf) < median(at_step)
    return min(finite, default=math.inf) > median(at_step)


def _at(points: Mapping[int, float], step: int) -> float | None:
    """The newest value up to a step; None where it ended before, or began after."""
    if not points or max(points) < step:
        return None
    before = [one for one, value in points.items() if one <= step and math.isfinite(value)]
    return points[max(before)] if before else None
