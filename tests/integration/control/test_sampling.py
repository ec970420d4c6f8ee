"""Where a sweep tries next: the same after a restart, nothing twice, and better than chance."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import mean
from typing import Any

import pytest

from orchestrator.control import sampling
from orchestrator.control.sampling import Search, Suggestion, importance
from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.errors import SetupError
from orchestrator.spec import SweepSpec
from orchestrator.spec.space import points
from tests.unit.sweeps import LR, sweep, trial

MIXED = {
    "trainer.recipe": ["nanogpt", "fast"],
    "trainer.learning_rate": LR,
    "trainer.muon_lr": {"float": [0.01, 0.1], "when": {"trainer.recipe": ["fast"]}},
    "trainer.n_layer": [2, 4, 6],
    "trainer.dropout": {"float": [0, 0.4], "step": 0.1},
    "trainer.warmup_steps": {"int": [1, 1000], "log": True},
    "trainer.bias": [False, True],
}
SAMPLERS = ["grid", "random", "tpe", "cmaes", "gp"]


def of(kind: str, space: dict[str, Any] | None = None, **values: Any) -> SweepSpec:
    space = space or MIXED
    if kind == "grid":
        space = {key: one for key, one in space.items() if "n_layer" in key or "dropout" in key}
    sampler = {"kind": kind, "seed": values.pop("seed", 7), "startup_trials": values.pop("startup", 6)}
    return sweep(space=space, sampler=sampler, **values)


def loss(params: dict[str, Any]) -> float:
    """Best at a learning rate of 3e-3 and at six layers."""
    off = (
        math.log10(params["trainer.learning_rate"]) - math.log10(3e-3)
        if "trainer.learning_rate" in params
        else 0
    )
    return (
        1.5 + off**2 / 4 + 0.02 * (6 - params.get("trainer.n_layer", 6)) + params.get("trainer.dropout", 0.0)
    )


class Night:
    """A sweep that is worked through by several machines, on which trials take different times."""

    def __init__(self, spec: SweepSpec, seed: int = 0) -> None:
        self.spec = spec
        self.trials: list[TrialRecord] = []
        self.random = Random(seed)

    def begin(self, found: Suggestion, repeat: int = 1) -> None:
        point = len(self.trials) // repeat
        for number in range(repeat):
            new = trial(len(self.trials), point=point, repeat=number, params=found.params, attrs=found.attrs)
            self.trials.append(new)

    def end(self, number: int, state: TrialState, value: float | None, **values: Any) -> None:
        self.trials[number] = replace(self.trials[number], state=state, value=value, **values)

    def end_some(self, most_open: int) -> None:
        """End trials at random until no more than so many are open: complete, pruned or failed."""
        while len(still := [one for one in self.trials if not one.state.final]) > most_open:
            one = self.random.choice(still)
            state = self.random.choices(
                [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED], [6, 2, 1]
            )[0]
            value = None if state is TrialState.FAILED else loss(one.params)
            self.end(one.number, state, value, step=self.random.randrange(100, 2000))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_restarted_controller_goes_on_with_the_same_points(kind: str) -> None:
    """At every point, with trials open, complete, pruned and failed, in whatever order they ended."""
    night = Night(of(kind))
    search = Search(night.spec)
    for point in range({"gp": 12, "cmaes": 48}.get(kind, 24)):
        found = search.ask(night.trials, point)
        restarted = Search(SweepSpec.model_validate_json(night.spec.model_dump_json()))
        assert restarted.ask(night.trials, point) == found
        if found is None:
            assert kind == "grid"
            assert point == 15
            break
        assert search.ask(night.trials, point) == found, "asked again before it was recorded"
        night.begin(found)
        night.end_some(3)
    assert len({str(one.params) for one in night.trials}) == len(night.trials)
    if kind == "cmaes":
        assert sum(bool(one.attrs.get("told")) for one in night.trials) >= 2, "generations have passed"


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_point_is_a_run_that_is_accepted(kind: str) -> None:
    night = Night(of(kind))
    search = Search(night.spec)
    for point in range(14):
        found = search.ask(night.trials, point)
        assert found is not None
        night.begin(found)
        night.end_some(2)
        spec = night.spec.trial_spec(found.params, point, 0)
        assert spec.trainer is not None
        assert spec.name == f"night-{point}"
        assert ("trainer.muon_lr" in found.params) == (found.params.get("trainer.recipe") == "fast")
        for path, value in found.params.items():
            assert getattr(spec.trainer, path.removeprefix("trainer.")) == value


@pytest.mark.parametrize("kind", SAMPLERS[1:])
def test_seeds_decide(kind: str) -> None:
    first = {seed: Search(of(kind, seed=seed)).ask([], 0) for seed in (1, 2, 3)}
    assert len({str(found) for found in first.values()}) == 3


def test_a_grid_takes_every_combination_once_in_order() -> None:
    search = Search(of("grid"))
    found = [search.ask([], point) for point in range(17)]
    assert found[15:] == [None, None]
    assert [one.params for one in found if one] == [
        {"trainer.n_layer": layers, "trainer.dropout": dropout}
        for layers in (2, 4, 6)
        for dropout in (0.0, 0.1, 0.2, 0.3, 0.4)
    ]
    assert Search(of("grid")).ask([], 7) == found[7], "from the middle"


def test_conditions_shorten_a_grid() -> None:
    space = {
        "trainer.recipe": ["nanogpt", "fast"],
        "trainer.ngrams": {"int": [1, 4], "when": {"trainer.recipe": ["fast"]}},
    }
    search = Search(sweep(space=space, sampler={"kind": "grid"}))
    found = [one.params for point in range(6) if (one := search.ask([], point))]
    assert len(found) == 5
    assert [one.get("trainer.ngrams") for one in found] == [None, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["random", "tpe", "gp"])
def test_nothing_is_tried_twice_before_all_was_tried(kind: str) -> None:
    space = {"trainer.n_layer": [2, 4, 6], "trainer.bias": [False, True], "trainer.ngrams": {"int": [1, 2]}}
    night = Night(of(kind, space=space, startup=3))
    search = Search(night.spec)
    for point in range(14):
        found = search.ask(night.trials, point)
        assert found is not None
        night.begin(found)
        night.end(point, TrialState.COMPLETE, loss(found.params))
    keys = [str(sorted(one.params.items())) for one in night.trials]
    assert len(set(keys[:12])) == 12
    assert set(keys[:12]) == {str(sorted(one.items())) for one in points(night.spec.space)}


def best(kind: str, trials: int, seed: int, score: Callable[[dict[str, Any]], float] = loss) -> float:
    """The best of so many trials of which two run at a time."""
    space = {
        "trainer.learning_rate": LR,
        "trainer.dropout": {"float": [0, 0.9]},
        "trainer.n_layer": {"int": [2, 6]},
    }
    night = Night(of(kind, space=space, seed=seed, startup=8), seed)
    search = Search(night.spec)
    for point in range(trials):
        found = search.ask(night.trials, point)
        assert found is not None
        night.begin(found)
        if point:
            night.end(point - 1, TrialState.COMPLETE, score(night.trials[point - 1].params))
    return min(one.value for one in night.trials if one.value is not None)


@pytest.mark.parametrize(("kind", "trials", "seeds"), [("tpe", 40, 4), ("cmaes", 60, 4), ("gp", 16, 1)])
def test_learning_beats_chance(kind: str, trials: int, seeds: int) -> None:
    learned = mean(best(kind, trials, seed) for seed in range(seeds))
    chance = mean(best("random", trials, seed) for seed in range(20))
    assert learned - 1.5 < 0.6 * (chance - 1.5), (learned, chance)


def test_large_values_are_looked_for_where_they_are_good() -> None:
    space = {"trainer.learning_rate": LR, "trainer.dropout": {"float": [0, 0.9]}}
    for kind in ("tpe", "cmaes"):
        night = Night(of(kind, space=space, objective={"direction": "maximize", "metric": "accuracy"}))
        search = Search(night.spec)
        for point in range(50):
            found = search.ask(night.trials, point)
            assert found is not None
            night.begin(found)
            night.end(point, TrialState.COMPLETE, -loss(found.params))
        late = [one.params["trainer.dropout"] for one in night.trials[35:]]
        assert mean(late) < 0.2, kind


def test_a_point_with_repeats_is_open_until_all_have_ended_and_then_their_mean() -> None:
    """Two ledgers that differ only in how a mean came about lead to the same next point; others do not."""
    spec = of("tpe", repeat=2, startup=2)

    def following(*values: tuple[float | None, float | None]) -> Suggestion | None:
        night = Night(spec)
        for point, pair in enumerate(values):
            found = Search(spec).ask([], point)
            assert found is not None
            night.begin(found, repeat=2)
            for number, value in enumerate(pair):
                if value is not None:
                    night.end(2 * point + number, TrialState.COMPLETE, value)
        return Search(spec).ask(night.trials, len(values))

    assert following((2.0, 2.5), (1.0, 4.0), (3.0, 3.0)) == following((2.25, 2.25), (2.5, 2.5), (2.0, 4.0))
    assert following((2.0, 2.5), (9.0, 9.0), (3.0, 3.0)) != following((9.0, 9.0), (2.0, 2.5), (3.0, 3.0))
    assert following((2.0, None), (1.0, None)) == following((None, None), (None, None))


def test_what_was_measured_at_a_rung_is_learned_from_before_the_end() -> None:
    """With every trial waiting at the first rung the sampler has left its random start."""
    pruner = {"kind": "asha", "first_steps": 100}
    space = {"trainer.learning_rate": LR, "trainer.dropout": {"float": [0, 0.9]}}
    night = Night(of("tpe", space=space, pruner=pruner))
    search = Search(night.spec)
    for point in range(40):
        found = search.ask(night.trials, point)
        assert found is not None
        night.begin(found)
        night.end(point, TrialState.RUNG, None, values={0: loss(found.params)})
    assert mean(loss(one.params) for one in night.trials[25:]) < mean(
        loss(one.params) for one in night.trials[:6]
    )


def test_values_that_are_not_finite_are_failures() -> None:
    night = Night(of("tpe", startup=1))
    search = Search(night.spec)
    for point, value in enumerate([math.nan, math.inf, -math.inf, 1.0, 2.0]):
        found = search.ask(night.trials, point)
        assert found is not None
        night.begin(found)
        night.end(point, TrialState.COMPLETE, value)
    assert search.ask(night.trials, 5) is not None


@pytest.mark.parametrize("kind", ["grid", "random"])
def test_the_thousandth_point_is_quick(kind: str) -> None:
    space = {"trainer.learning_rate": LR} if kind == "random" else {}
    space |= {f"placement.0.{key}": {"int": [1, 40]} for key in ("cpus", "ranks")}
    spec = sweep(space=space, sampler={"kind": kind}, base={"trainer": {}, "placement": [{"pool": "a"}]})
    search = Search(spec)
    found = [search.ask([], point) for point in range(1000)]
    history = [
        trial(number, TrialState.COMPLETE, params=one.params, value=1.0)
        for number, one in enumerate(found)
        if one is not None
    ]
    assert len(history) == 1000
    took = []
    for point in range(1000, 1005):
        began = time.process_time()
        assert search.ask(history, point) is not None
        took.append(time.process_time() - began)
    assert min(took) < 0.02, took


def test_importance_names_what_decides() -> None:
    spec = of("random")
    search = Search(spec)
    night = Night(spec)
    for point in range(9):
        night.begin(search.ask([], point) or Suggestion({}))
        night.end(
            point,
            TrialState.COMPLETE,
            loss(night.trials[point].params) - night.trials[point].params["trainer.dropout"],
        )
    assert importance(night.trials, spec) == {}, "too few"
    for point in range(9, 40):
        night.begin(search.ask([], point) or Suggestion({}))
        night.end(
            point,
            TrialState.COMPLETE,
            loss(night.trials[point].params) - night.trials[point].params["trainer.dropout"],
        )
    found = importance(night.trials, spec)
    assert next(iter(found)) == "trainer.learning_rate"
    assert found["trainer.learning_rate"] > 0.7
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == set(spec.space) - {"trainer.muon_lr"}
    assert importance([replace(one, value=1.0) for one in night.trials], spec) == {}, "all the same"


def test_importance_is_about_the_rung_that_most_have_reached() -> None:
    spec = of("random", pruner={"kind": "asha", "first_steps": 100})
    search = Search(spec)
    trials = []
    for point in range(30):
        params = (search.ask([], point) or Suggestion({})).params
        trials.append(trial(point, TrialState.PRUNED, params=params, values={0: loss(params)}))
    trials[3] = replace(trials[3], state=TrialState.COMPLETE, value=0.1)
    assert next(iter(importance(trials, spec))) in ("trainer.learning_rate", "trainer.dropout")


def test_a_controller_without_sweeps_loads_nothing_for_them() -> None:
    program = "import sys, orchestrator.control.sampling; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"optuna", "cmaes", "numpy", "torch", "sklearn"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(("kind", "package"), [("tpe", "optuna"), ("gp", "optuna"), ("cmaes", "cmaes")])
def test_a_package_that_is_missing_is_named(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "orchestrator.control.evolution", raising=False)
    monkeypatch.setattr(sampling, "_optuna", sampling._optuna.__wrapped__)
    monkeypatch.setattr(sampling, "_evolve", sampling._evolve.__wrapped__)
    done = [trial(n, TrialState.COMPLETE, params={"trainer.n_layer": 2}, value=1.0 + n) for n in range(6)]
    with pytest.raises(SetupError, match=f"^{package} is not installed"):
        Search(of(kind)).ask(done, 6)
    assert Search(of("random")).ask(done, 6) is not None
