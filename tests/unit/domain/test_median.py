"""The median stopping rule."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.median import worse_than_median
from orchestrator.spec.sweep import Pruner

OTHERS = [{100: 3.0, 200: 2.0}, {100: 4.0, 200: 3.0}, {100: 5.0, 200: 1.0}]
MEDIAN = Pruner(kind="median", startup_trials=3)


def test_the_best_so_far_against_the_median_at_the_step() -> None:
    assert not worse_than_median({100: 4.0}, OTHERS, MEDIAN, "minimize")
    assert worse_than_median({100: 4.1}, OTHERS, MEDIAN, "minimize")
    assert not worse_than_median({100: 1.9, 200: 9.0}, OTHERS, MEDIAN, "minimize"), "its best, not its last"
    assert worse_than_median({100: 2.1, 200: 2.1}, OTHERS, MEDIAN, "minimize")
    assert worse_than_median({200: 1.9}, OTHERS, MEDIAN, "maximize")
    assert not worse_than_median({200: 2.0}, OTHERS, MEDIAN, "maximize")


def test_nothing_ends_before_the_first_steps_or_with_few_others() -> None:
    bad = {100: 99.0}
    assert worse_than_median(bad, OTHERS, MEDIAN, "minimize")
    assert not worse_than_median(bad, OTHERS[:2], MEDIAN, "minimize")
    assert not worse_than_median(bad, OTHERS, MEDIAN.model_copy(update={"first_steps": 101}), "minimize")
    assert not worse_than_median({}, OTHERS, MEDIAN, "minimize")


def test_who_was_measured_at_other_steps_counts_if_it_came_that_far() -> None:
    one = Pruner(kind="median", startup_trials=1)
    assert worse_than_median({150: 3.5}, [OTHERS[0]], one, "minimize"), "3.0 was its newest"
    assert not worse_than_median({250: 9.0}, [OTHERS[0]], one, "minimize"), "it ended at 200"
    assert not worse_than_median({50: 9.0}, [OTHERS[0]], one, "minimize"), "it began at 100"


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_what_is_not_finite_is_worse_than_any_and_no_measure(direction: str) -> None:
    assert worse_than_median({100: math.nan}, OTHERS, MEDIAN, direction)
    assert not worse_than_median({100: 9.0}, [{100: math.nan}] * 5, MEDIAN, direction)


@given(
    own=st.lists(st.floats(-10, 10), min_size=1, max_size=5),
    others=st.lists(st.lists(st.floats(-10, 10), min_size=5, max_size=5), min_size=1, max_size=6),
    first=st.integers(1, 5),
    direction=st.sampled_from(["minimize", "maximize"]),
)
@settings(max_examples=60, deadline=None)
def test_the_same_as_optuna(own: list[float], others: list[list[float]], first: int, direction: str) -> None:
    """Where all are measured at the same steps."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=first)
    study = optuna.create_study(direction=direction, pruner=pruner)
    for values in others:
        steps = dict(enumerate(values, 1))
        study.add_trial(optuna.trial.create_trial(value=values[-1], intermediate_values=steps))
    asked = study.ask()
    for step, value in enumerate(own, 1):
        asked.report(value, step)
    ours = worse_than_median(
        dict(enumerate(own, 1)),
        [dict(enumerate(values, 1)) for values in others],
        Pruner(kind="median", first_steps=first, startup_trials=2),
        direction,
    )
    assert ours == asked.should_prune()
