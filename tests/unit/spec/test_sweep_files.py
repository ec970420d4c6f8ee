"""Sweeps in files, with bases in other files and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec import (
    LoadedSpec,
    LoadedSweep,
    load_any,
    load_sweep,
)
from orchestrator.spec.space import count

BASE = "name: s\nbase: {trainer: {}}\nbudget: {trials: 3}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "run.yaml").write_text("trainer:\n  max_steps: 700\n")
    (tmp_path / "s.yaml").write_text(
        "name: s\nbase: specs/run.yaml\nspace: {trainer.n_layer: [2, 4]}\nbudget: {trials: 2}\n"
    )
    return tmp_path


def test_a_base_may_be_a_file_beside_the_sweep(folder: Path) -> None:
    loaded = load_sweep(folder / "s.yaml", ["base.trainer.n_head=2", "budget.trials=5"])
    assert loaded.spec.max_steps == 700
    assert loaded.spec.base.trainer is not None
    assert (loaded.spec.base.name, loaded.spec.base.trainer.n_head) == ("s", 2)
    assert loaded.spec.budget.trials == 5
    assert loaded.source.startswith("name: s\nbase: specs/run.yaml")
    assert loaded.overrides == ("base.trainer.n_head=2", "budget.trials=5")


def test_mistakes_in_the_bases_file_name_that_file(folder: Path) -> None:
    run = folder / "specs" / "run.yaml"
    run.write_text("experimnt: a\ntrainer:\n  max_stepz: 700\n  n_layer: 0\nmax_steps: 4\n")
    with pytest.raises(SpecError) as caught:
        load_sweep(folder / "s.yaml", ["budgt.trials=5"])
    assert [str(problem).replace(str(folder) + "/", "") for problem in caught.value.problems] == [
        "specs/run.yaml:1:1: experimnt: unknown key; did you mean `experiment`?",
        "specs/run.yaml:3:3: trainer.max_stepz: unknown key; did you mean `max_steps`?",
        "specs/run.yaml:4:12: trainer.n_layer: expected a whole number above 0, got 0",
        "specs/run.yaml:5:1: max_steps: unknown key; `max_steps` belongs under `trainer`",
        "--set budgt.trials=5: budgt: unknown key; did you mean `budget`?",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "s.yaml:2:7: base: {folder}/specs/run.yaml: no such file"),
        ("a: [", "specs/run.yaml:2:1: not valid YAML"),
        ("- a\n", "specs/run.yaml:1:1: expected a mapping"),
        ("", "s.yaml:2:7: base: {folder}/specs/run.yaml: expected a spec, got an empty file"),
    ],
)
def test_a_base_that_cannot_be_read_is_one_problem(folder: Path, content: str | None, expected: str) -> None:
    run = folder / "specs" / "run.yaml"
    run.unlink()
    if content is not None:
        run.write_text(content)
    with pytest.raises(SpecError) as caught:
        load_sweep(folder / "s.yaml")
    (problem,) = caught.value.problems
    assert expected.format(folder=folder) in str(problem)


def test_a_path_that_would_break_the_line_is_shown_as_one(folder: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_sweep(folder / "s.yaml", [r'base="a\n.yaml"'])
    (problem,) = caught.value.problems
    assert str(problem).endswith(r"a\n.yaml: no such file")


def test_the_home_of_nobody_is_no_file(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"~nobody-of-this-name/s\.yaml: no such file"):
        load_sweep(folder / "s.yaml", ["base=~nobody-of-this-name/s.yaml"])


def test_an_override_may_name_another_base(folder: Path) -> None:
    (folder / "other.yaml").write_text("name: other\ntrainer: {max_steps: 9}\n")
    spec = load_sweep(folder / "s.yaml", ["base.trainer.n_head=1", "base=other.yaml"]).spec
    assert (spec.base.name, spec.max_steps) == ("other", 9)
    assert spec.base.trainer is not None
    assert spec.base.trainer.n_head == 1


def test_the_kind_of_file_is_seen_by_its_keys(folder: Path) -> None:
    assert isinstance(load_any(folder / "s.yaml"), LoadedSweep)
    run = load_any(folder / "specs" / "run.yaml", ["name=r", "trainer.n_layer=3"])
    assert isinstance(run, LoadedSpec)
    assert (run.spec.name, run.overrides) == ("r", ("name=r", "trainer.n_layer=3"))
    (folder / "t.yaml").write_text("name: s\nspace: {trainer.n_layer: [2, 4]}\n")
    with pytest.raises(SpecError, match=r"base: missing"):
        load_any(folder / "t.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("space.trainer.n_layer=[3]", [3]),
        ("space.trainer.n_layer.choice=[1, 2]", [1, 2]),
        ("space.trainer.n_layer={choice: [5]}", [5]),
    ],
)
def test_overrides_reach_into_the_space(folder: Path, override: str, expected: list[int]) -> None:
    assert load_sweep(folder / "s.yaml", [override]).spec.space["trainer.n_layer"].choice == expected


def test_overrides_add_parameters_and_conditions(folder: Path) -> None:
    spec = load_sweep(
        folder / "s.yaml",
        [
            "space.trainer.dropout.float=[0, 0.3]",
            "space.trainer.dropout.step=0.1",
            "space.trainer.dropout.when.trainer.n_layer=4",
        ],
    ).spec
    assert spec.space["trainer.dropout"].when == {"trainer.n_layer": [4]}
    assert count(spec.space["trainer.dropout"]) == 4
