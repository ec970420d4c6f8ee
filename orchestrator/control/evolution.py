"""CMA-ES over a sweep's points: the only module that imports cmaes.

The optimizer's state is never stored. Each point notes where it was asked for, in which generation, and which
points were told just before; told the same again, the optimizer is in the same state. So a controller that
was restarted goes on with the same points, and the ledger holds no pickle, which could execute anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from cmaes import CMA

from orchestrator.domain.points import Point, order
from orchestrator.domain.sweeps import TrialState
from orchestrator.spec.space import from_unit, to_unit
from orchestrator.spec.sweep import Parameter, SweepSpec
from orchestrator.spec.sweep_checks import evolves

_ENDED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_SIGMA: Final = 1 / 6
"""First standard deviation, as a part of each parameter's range."""


def evolve(
    spec: SweepSpec, points: Sequence[Point], seed: int
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Values of the parameters that evolve, and what to note with the point; None before the start-up's end.

    A generation is over once as many of its points have ended as it needs; points of it that end later
    are not told. Of pruned points only the order counts: they are worse than complete ones, and the later the
    better they were pruned.
    """
    space = {path: parameter for path, parameter in spec.space.items() if evolves(parameter)}
    ended = [one for one in points if one.state in _ENDED]
    ours = [one for one in points if "x" in one.attrs]
    if ours:
        mean = ours[0].attrs["mean"]
    elif len(ended) >= spec.sampler.startup_trials:
        best = min(ended, key=lambda one: order(one, spec.objective.direction))
        mean = [to_unit(parameter, best.params[path]) for path, parameter in space.items()]
    else:
        return None
    optimizer = _optimizer(mean, seed)
    for one in ours:
        _tell(optimizer, ours, one.attrs.get("told", ()), spec.objective.direction)
    told = _complete_generation(optimizer, [one for one in ours if one.state in _ENDED])
    _tell(optimizer, ours, told, spec.objective.direction)
    x = [float(value) for value in optimizer.ask()]
    attrs = {"generation": optimizer.generation, "x": x, "told": told}
    return _values(space, x), attrs if ours else {**attrs, "mean": mean}


def _optimizer(mean: Sequence[float], seed: int) -> CMA:
    bounds = np.array([[0.0, 1.0]] * len(mean))
    return CMA(np.array(mean), _SIGMA, bounds=bounds, n_max_resampling=10 * len(mean), seed=seed)


def _complete_generation(optimizer: CMA, ended: Sequence[Point]) -> list[int]:
    """The points that end the optimizer's generation, or none if there are too few."""
    ready = [one.number for one in ended if one.attrs["generation"] == optimizer.generation]
    enough = len(ready) >= optimizer.population_size
    return ready[: optimizer.population_size] if enough else []


def _tell(optimizer: CMA, points: Sequence[Point], told: Sequence[int], direction: str) -> None:
    if not told:
        return
    ranked = sorted((one for one in points if one.number in told), key=lambda one: order(one, direction))
    optimizer.tell([(np.array(one.attrs["x"]), float(rank)) for rank, one in enumerate(ranked)])


def _values(space: Mapping[str, Parameter], x: Sequence[float]) -> dict[str, Any]:
    return {path: from_unit(parameter, at) for (path, parameter), at in zip(space.items(), x, strict=True)}
