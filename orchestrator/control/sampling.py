"""Where a sweep tries next: the only module that imports Optuna.

The ledger is the truth. Nothing is kept between two questions but what can be made from the trials again, and
every draw is seeded by the sweep's seed and the point's number, so a controller that was restarted asks for
the same next point as one that was not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any, Final

from orchestrator.control.studies import Studies, suggest, value_of
from orchestrator.domain.points import Point, Points, order, points_of
from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.errors import SetupError
from orchestrator.spec import space
from orchestrator.spec.sweep import SweepSpec

REDRAWS: Final = 8
"""How often a point that was tried before is drawn anew, where all values can be counted."""
MOST_LISTED: Final = 10_000
"""Of spaces with at most so many points the untried ones are listed when drawing finds none."""
GP_POINTS: Final = 200
"""Points that a Gaussian process learns from at most: what it needs grows with their third power."""
IMPORTANCE_POINTS: Final = 10
"""Below so many measured points nothing is said about importance."""
IMPORTANCE_MOST: Final = 300
"""It is made from so many points at most, the newest: about four seconds."""


@dataclass(frozen=True)
class Suggestion:
    """A point to try."""

    params: dict[str, Any]
    """Value of each parameter that the point has, by its path in the spec."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """What has to be recorded with the point's trials, as :attr:`TrialRecord.attrs`."""


class Search:
    """The points of one sweep."""

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        self._grid: Iterator[dict[str, Any]] | None = None
        self._listed: list[dict[str, Any]] = []
        self._points = Points(spec)
        self._studies = Studies(spec)
        self._countable = all(space.count(parameter) is not None for parameter in spec.space.values())

    def ask(self, history: Sequence[TrialRecord], point: int) -> Suggestion | None:
        """The point with this number, from all trials so far; None where a grid has no more.

        Those that are open are among the trials: to ask for several points at a time, each is added before
        the next is asked for. A Gaussian process takes some seconds, the others below 0.2.

        Where all values can be counted, `random`, `tpe` and `gp` repeat no point before all were tried.

        Raises:
            SetupError: a package that the sampler needs is not installed.
        """
        if self._spec.sampler.kind == "grid":
            return self._of_grid(point)
        if self._spec.sampler.kind == "random" and not self._countable:
            return self._draw([], point, 0)
        points = self._points.of(history)
        if self._spec.sampler.kind == "cmaes" or not self._countable:
            return self._draw(points, point, 0)
        return self._new(points, point)

    def _of_grid(self, number: int) -> Suggestion | None:
        if self._grid is None:
            self._grid = space.points(self._spec.space)
        while len(self._listed) <= number:
            following = next(self._grid, None)
            if following is None:
                return None
            self._listed.append(following)
        return Suggestion(dict(self._listed[number]))

    def _new(self, points: Sequence[Point], number: int) -> Suggestion:
        """A point that was not tried before, if there is one."""
        tried = {_key(one.params) for one in points}
        for draw in range(1 if self._spec.sampler.kind == "gp" else REDRAWS):
            suggestion = self._draw(points, number, draw)
            if _key(suggestion.params) not in tried:
                return suggestion
        if space.size(self._spec.space, MOST_LISTED) is None:
            return suggestion
        untried = [one for one in space.points(self._spec.space) if _key(one) not in tried]
        return Suggestion(self._random(number, REDRAWS).choice(untried)) if untried else suggestion

    def _draw(self, points: Sequence[Point], number: int, draw: int) -> Suggestion:
        kind, startup = self._spec.sampler.kind, self._spec.sampler.startup_trials
        at_random = space.draw(self._spec.space, self._random(number, draw))
        seed = self._random(number, draw).getrandbits(32)
        if kind == "cmaes":
            evolved = _evolve()(self._spec, points, seed)
            return Suggestion({**at_random, **evolved[0]}, evolved[1]) if evolved else Suggestion(at_random)
        learned = [one for one in points if one.measured] if kind == "tpe" else _complete(points)
        if kind == "random" or len(learned) < startup:
            return Suggestion(at_random)
        return Suggestion(self._learned(points, seed))

    def _learned(self, points: Sequence[Point], seed: int) -> dict[str, Any]:
        optuna = _optuna()
        if self._spec.sampler.kind == "gp":
            points = _few(points, self._spec.objective.direction)
            sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
        trial = self._studies.study(optuna, points, sampler).ask()
        found: dict[str, Any] = {}
        for path, parameter in self._spec.space.items():
            if space.active(parameter, found):
                found[path] = value_of(parameter, suggest(trial, path, parameter))
        return found

    def _random(self, number: int, draw: int) -> Random:
        return Random(f"{self._spec.sampler.seed}/{number}/{draw}")


def importance(trials: Sequence[TrialRecord], spec: SweepSpec) -> dict[str, float]:
    """How much each parameter decides about the objective, as parts of 1, the largest first.

    By functional ANOVA over random forests (Hutter et al., ICML 2014), with a fixed seed. Where trials are
    compared at rungs, it is about the objective at the rung that most of them reached. Parameters with
    `when` are left out. Empty with fewer than :data:`IMPORTANCE_POINTS` measured points. Takes up to
    some seconds.

    Raises:
        SetupError: a package that this needs is not installed.
    """
    measured = _comparable(points_of(trials, spec))[-IMPORTANCE_MOST:]
    if len(measured) < IMPORTANCE_POINTS or len({one.value for one in measured}) == 1:
        return {}
    optuna = _optuna()
    study = Studies(spec).study(optuna, measured, None)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(part) for path, part in found.items()}


def _comparable(points: Sequence[Point]) -> list[Point]:
    """Points as complete with the value that most of them have: at their end, or at one of the rungs."""
    complete = [one for one in points if one.state is TrialState.COMPLETE]
    steps = Counter(step for one in points if one.state is not TrialState.FAILED for step in one.steps)
    step, most = max(steps.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
    if len(complete) >= most:
        return complete
    return [
        replace(one, state=TrialState.COMPLETE, value=one.steps[step], steps={})
        for one in points
        if step in one.steps and one.state is not TrialState.FAILED
    ]


# ------------------------------------------------------------------ which points


def _complete(points: Sequence[Point]) -> list[Point]:
    return [one for one in points if one.state is TrialState.COMPLETE]


def _few(points: Sequence[Point], direction: str) -> list[Point]:
    """Of many complete points the better ones, and others over the whole ranking; of the rest all."""
    complete = sorted(_complete(points), key=lambda one: order(one, direction))
    if len(complete) <= GP_POINTS:
        return list(points)
    half = GP_POINTS // 2
    others = complete[half:]
    kept = complete[:half] + [others[place * len(others) // half] for place in range(half)]
    chosen = {one.number for one in kept}
    return [one for one in points if one.state is not TrialState.COMPLETE or one.number in chosen]


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


@cache
def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise _missing("optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@cache
def _evolve() -> Callable[..., tuple[dict[str, Any], dict[str, Any]] | None]:
    try:
        from orchestrator.control.evolution import evolve
    except ImportError as error:
        raise _missing("cmaes") from error
    return evolve


def _missing(package: str) -> SetupError:
    return SetupError(
        f"{package} is not installed where the controller runs",
        remedy="install it there with `pip install 'orch[server]'`, or choose `sampler: {kind: random}`",
    )
