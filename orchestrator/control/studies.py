"""A sweep's points as Optuna's trials, and back. Optuna is handed in: it is slow to import."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from orchestrator.domain.points import Point
from orchestrator.domain.sweeps import TrialState
from orchestrator.spec import space
from orchestrator.spec.sweep import Parameter, SweepSpec


class Studies:
    """Points as Optuna's trials, each made once."""

    def __init__(self, spec: SweepSpec) -> None:
        """For one sweep."""
        self._spec = spec
        self._made: dict[int, tuple[Point, Any]] = {}

    def study(self, optuna: Any, points: Sequence[Point], sampler: Any) -> Any:
        """A study with those points that have not failed."""
        study = optuna.create_study(direction=self._spec.objective.direction, sampler=sampler)
        study.add_trials([self._trial(optuna, one) for one in points if one.state is not TrialState.FAILED])
        return study

    def _trial(self, optuna: Any, point: Point) -> Any:
        known, made = self._made.get(point.number, (None, None))
        if known is not point:
            made = _trial(optuna, self._spec, point)
            self._made[point.number] = point, made
        return made


def _trial(optuna: Any, spec: SweepSpec, point: Point) -> Any:
    """A point as Optuna knows it.

    One that waits at a rung, or goes on from one, counts as pruned there until it ends: what was measured
    is told at once, and nothing that others can still learn from waits for the end of a run.
    """
    if point.state is TrialState.COMPLETE:
        state = optuna.trial.TrialState.COMPLETE
    else:
        state = optuna.trial.TrialState.PRUNED if point.measured else optuna.trial.TrialState.RUNNING
    own = {path: spec.space[path] for path in point.params if path in spec.space}
    created = optuna.trial.create_trial(
        state=state,
        value=point.value,
        params={path: _code(parameter, point.params[path]) for path, parameter in own.items()},
        distributions={path: _distribution(optuna, parameter) for path, parameter in own.items()},
        intermediate_values=dict(point.steps),
    )
    return _light(optuna)(created)


@cache
def _light(optuna: Any) -> Any:
    """What makes a trial one that is copied flat.

    A study copies deeply what is added to it, which is most of the time of asking with some hundred points.
    It only ever gives a copy its number; what is inside is never changed.
    """

    class Light(optuna.trial.FrozenTrial):  # type: ignore[misc]
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return lighten(self)

    def lighten(trial: Any) -> Any:
        light = Light.__new__(Light)
        light.__dict__.update(trial.__dict__)
        return light

    return lighten


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    """What can be counted is told by its index: neighbours as whole numbers, the rest as categories."""
    number = space.count(parameter)
    if number is not None and not parameter.log:
        if space.ordered(parameter):
            return optuna.distributions.IntDistribution(0, number - 1)
        return optuna.distributions.CategoricalDistribution(range(number))
    if parameter.int is not None:
        return optuna.distributions.IntDistribution(*parameter.int, log=True)
    return optuna.distributions.FloatDistribution(*(parameter.float or ()), log=parameter.log)


def _code(parameter: Parameter, value: Any) -> Any:
    if space.count(parameter) is None or parameter.log:
        return value
    return space.index_of(parameter, value)


def value_of(parameter: Parameter, code: Any) -> Any:
    """What a parameter is where Optuna suggested this."""
    if space.count(parameter) is None:
        return space.tidy(parameter, code)
    return code if parameter.log else space.value_at(parameter, code)


def suggest(trial: Any, path: str, parameter: Parameter) -> Any:
    """Ask a trial of Optuna's for a parameter, as :func:`value_of` reads it."""
    number = space.count(parameter)
    if number is not None and not parameter.log:
        if space.ordered(parameter):
            return trial.suggest_int(path, 0, number - 1)
        return trial.suggest_categorical(path, range(number))
    if parameter.int is not None:
        return trial.suggest_int(path, *parameter.int, log=True)
    return trial.suggest_float(path, *(parameter.float or ()), log=parameter.log)
