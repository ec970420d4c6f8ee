"""Sweeps that make no sense: a clear answer, in bounded time, and never anything but SpecError."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import SweepSpec, load_sweep, parse_sweep
from orchestrator.spec.space import draw
from tests.unit.spec.test_hostile import VALUES, YAMLISH, dumped

SWEEP = {"name": "a", "base": {"trainer": {}, "placement": [{"pool": "a"}]}, "budget": {"trials": 3}}
PATHS = st.sampled_from(
    [
        *("trainer.n_layer", "trainer.n_head", "trainer.n_embd", "trainer.learning_rate", "trainer.dropout"),
        *("trainer.recipe", "trainer.bias", "trainer.compile", "trainer.stop_when.patience", "trainer.seed"),
        *("placement.0.cpus", "placement.0.gpu_memory", "placement.9.cpus", "placement.0.trainer.dtype"),
        *(
            "tags.x",
            "command.argv.0",
            "name",
            "max_duration",
            "deadline",
            "trainer",
            "",
            ".",
            "a..b",
            "tags.",
        ),
    ]
)
NUMBERS = st.one_of(st.integers(-3, 200), st.integers(), st.floats(), st.floats(0, 1))
PLAIN = st.one_of(NUMBERS, st.booleans(), st.text(max_size=5), st.sampled_from(["fast", "nanogpt", "1h"]))
PARAMETERS = st.one_of(
    st.lists(PLAIN, max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "choice": st.lists(PLAIN, max_size=4),
            "int": st.lists(st.integers(), max_size=3),
            "float": st.lists(NUMBERS, max_size=3),
            "log": st.booleans(),
            "step": NUMBERS,
            "when": st.dictionaries(PATHS, st.one_of(PLAIN, st.lists(PLAIN, max_size=2)), max_size=1),
        },
    ),
    st.tuples(st.sampled_from(["int", "float"]), st.lists(st.integers(1, 300), min_size=2, max_size=2)).map(
        lambda pair: {pair[0]: sorted(pair[1])}
    ),
    VALUES,
)
BOUNDED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module", autouse=True)
def _empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A text in `base` is a path from here."""
    with chdir(tmp_path_factory.mktemp("empty")):
        yield


def accepted_or_explained(text: str, *overrides: str) -> SweepSpec | None:
    began = time.process_time()
    try:
        return parse_sweep(text, "s.yaml", overrides)
    except SpecError as error:
        found = error.problems
    assert time.process_time() - began < 4
    assert found
    assert all(problem.message and str(problem).isprintable() for problem in found)
    return None


@BOUNDED
@given(st.dictionaries(PATHS, PARAMETERS, min_size=1, max_size=4))
def test_any_space_is_accepted_or_explained_and_its_points_are_runs(space: dict[str, Any]) -> None:
    spec = accepted_or_explained(dumped({**SWEEP, "space": space}))
    for number in range(5 if spec else 0):
        assert spec is not None
        params = draw(spec.space, Random(number))
        run = SweepSpec.model_validate_json(spec.model_dump_json()).trial_spec(params, number, 0)
        assert run.name == f"a-{number}"


@BOUNDED
@given(
    st.sampled_from(["base", "space", "sampler", "pruner", "budget", "objective", "repeat", "tags"]), VALUES
)
def test_any_part_is_accepted_or_explained(part: str, value: object) -> None:
    accepted_or_explained(dumped({**SWEEP, "space": {"trainer.n_layer": [1, 2]}, part: value}))


@BOUNDED
@given(YAMLISH)
def test_any_text_is_accepted_or_explained(text: str) -> None:
    accepted_or_explained(text)
    accepted_or_explained(f"name: a\nbase: {text}\nspace: {text}\n")


@BOUNDED
@given(st.one_of(st.text(), YAMLISH, PATHS.map("space.{}".format)), YAMLISH)
def test_any_override_is_accepted_or_explained(override: str, value: str) -> None:
    text = dumped({**SWEEP, "space": {"trainer.n_layer": [1, 2]}})
    accepted_or_explained(text, override)
    accepted_or_explained(text, f"{override}={value}", f"space.trainer.n_layer.int={value}")


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"trainer.seed": {"int": [0, 10**90]}}, "expected numbers of at most 9007199254740992"),
        ({"trainer.dropout": {"float": [0, 0.5], "step": 1e-300}}, "more values than can be counted"),
        ({"trainer.seed": {"int": [0, 2**52]}, "trainer.dropout": {"float": [0, 0.9]}}, ""),
        ({f"tags.t{n}": [1, 2, 3] for n in range(100)}, ""),
        ({"trainer.seed": list(range(1000)), "tags.a": list(range(1000))}, ""),
    ],
)
def test_large_spaces_are_checked_in_bounded_time(space: dict[str, Any], expected: str) -> None:
    began = time.process_time()
    if expected:
        with pytest.raises(SpecError, match=expected):
            parse_sweep(dumped({**SWEEP, "space": space}))
    else:
        parse_sweep(dumped({**SWEEP, "space": space}))
    assert time.process_time() - began < 8


def test_a_base_that_names_the_sweep_itself_is_no_spec(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(dumped({**SWEEP, "space": {"trainer.n_layer": [1]}, "base": "s.yaml"}))
    with pytest.raises(SpecError, match="unknown key"):
        load_sweep(path)
