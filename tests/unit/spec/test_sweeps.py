"""Sweeps from YAML: every mistake with its place, before anything runs; and the trials that they make."""

from __future__ import annotations

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec import (
    SweepSpec,
    check_sweep,
    parse_sweep,
    spec_hash,
)
from orchestrator.spec.space import points
from tests.unit.sweeps import sweep

BASE = "name: s\nbase: {trainer: {}}\nbudget: {trials: 3}\n"


def problems(text: str, *overrides: str) -> list[str]:
    """What is wrong with a sweep; fails where nothing is."""
    with pytest.raises(SpecError) as caught:
        parse_sweep(text, "s.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


def only(text: str, *overrides: str) -> str:
    found = problems(text, *overrides)
    assert len(found) == 1, found
    return found[0]


THIRTEEN_MISTAKES = """\
name: night
base:
  experimnt: shakespeare
  trainer:
    n_embd: 130
    n_hed: 4
  placement:
    - pool: laptop
      cpus: 0
space:
  trainer.n_layer: [2, 0, many, [1]]
  trainer.learning_rat: {float: [1e-4, 1e-2], log: true}
  trainer.batch_size: {int: [8, 64], choice: [8]}
  trainer.dropout: {float: [0, 1]}
  trainer.warmup_steps: {int: [0, 9], log: true}
  trainer: [1, 2]
sampler: {kind: bayes}
pruner: {first: 100}
budgt: {trials: 3}
"""


def test_thirteen_mistakes_give_thirteen_problems_with_their_places() -> None:
    assert problems(THIRTEEN_MISTAKES) == [
        "s.yaml:3:3: base.experimnt: unknown key; did you mean `experiment`?",
        "s.yaml:5:13: base.trainer.n_embd: n_embd (130) must be a multiple of n_head (4)",
        "s.yaml:6:5: base.trainer.n_hed: unknown key; did you mean `n_head`?",
        "s.yaml:9:13: base.placement.0.cpus: expected a whole number from 1 to 4096, got 0",
        "s.yaml:11:33: space.trainer.n_layer.choice.3: expected a number, a text, true or false",
        "s.yaml:12:3: space.trainer.learning_rat: unknown setting `trainer.learning_rat`; "
        "did you mean `learning_rate`?",
        "s.yaml:13:3: space.trainer.batch_size: expected one of choice, int and float, got choice and int",
        "s.yaml:14:32: space.trainer.dropout.float.1: expected a number from 0 to below 1, got 1.0",
        "s.yaml:15:44: space.trainer.warmup_steps.log: a logarithmic scale needs values above 0, but the "
        "range begins at 0",
        "s.yaml:16:3: space.trainer: expected a single setting, such as trainer.dataset, got a mapping with "
        "keys such as dataset, vocab_size, n_layer, n_head, ...",
        "s.yaml:17:17: sampler.kind: expected grid, random, tpe, cmaes or gp, got 'bayes'",
        "s.yaml:18:10: pruner.first: unknown key; did you mean `first_steps`?",
        "s.yaml:19:1: budgt: unknown key; did you mean `budget`?",
    ]


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("{}", "expected one of choice, int and float, got none of them"),
        ("{choice: [1, 2, 1]}", "choice.2: 1 is there twice"),
        ("{choice: [1, 2], log: true}", "log: is for `int` and `float`, but this is a choice"),
        ("{choice: [1, 2], step: 1}", "step: is for `int` and `float`, but this is a choice"),
        ("[]", "choice: expected a list of texts"),
        ("{int: [4, 2]}", "int: expected the lower end first, got 4 and 2"),
        ("{int: [2, 2]}", "int: expected the lower end first, got 2 and 2"),
        ("{int: [2]}", "int.1: missing"),
        ("{int: [2, 4.5]}", "int.1: expected a whole number, got 4.5"),
        ("{int: [2, 5], step: 2}", "step: steps of 2 from 2 do not end at 5; an end that fits: such as 4"),
        ("{int: [2, 5], step: 0.5}", "step: expected a whole number, got 0.5"),
        ("{int: [2, 4], step: 2, log: true}", "step: a logarithmic scale has no steps"),
        ("{int: [2, 4], step: 0}", "step: expected a number above 0, got 0"),
        ("{float: [2, 4]}", "float: expected a whole number above 0, got 2.76"),
        ("[true, 2]", "choice.0: expected a whole number above 0, got true"),
        ("fast", "expected"),
        (
            "{int: [1, 2], when: {trainer.bias: true}}",
            "when.trainer.bias: expected a parameter that stands before",
        ),
    ],
)
def test_what_is_wrong_with_one_parameter(parameter: str, expected: str) -> None:
    found = problems(f"{BASE}space:\n  trainer.n_layer: {parameter}\n")
    assert found[0].startswith("s.yaml:5:")
    assert expected in found[0]
    assert "trainer.n_layer" in found[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("trainer.n_layr", "unknown setting `trainer.n_layr`; did you mean `n_layer`?"),
        ("max_steps", "unknown setting `max_steps`; `max_steps` belongs under `trainer`"),
        ("trainer.n_layer.x", "`trainer.n_layer` is a single setting"),
        ("placement.1.cpus", "the base has no `placement.1`"),
        ("placement.0.cpu", "unknown setting `placement.0.cpu`; did you mean `cpus`?"),
        ("placement.first.cpus", "the base has no `placement.first`"),
        ("placement.0.trainer.dtyp", "unknown setting `placement.0.trainer.dtyp`; did you mean `dtype`?"),
        ("placement", "expected a single setting, got a list of mappings"),
        ("command.argv.0", "this base has no `command`"),
        ("name", "`name` is the same for all trials of a sweep"),
        ("experiment", "`experiment` is the same for all trials of a sweep"),
        ("tags.a b", "expected a name of at most 63"),
    ],
)
def test_paths_that_lead_nowhere(path: str, expected: str) -> None:
    found = problems(f"{BASE}space:\n  {path}: [1, 2]\n")
    assert any(expected in one and one.startswith("s.yaml:5:3: space.") for one in found), found


def test_paths_into_lists_free_names_and_overrides_of_placements() -> None:
    spec = parse_sweep(
        "name: s\nbudget: {trials: 1}\n"
        "base: {command: {argv: [x, --lr, '1'], env: {A: b}}, placement: [{pool: a}, {pool: b}]}\n"
        "space: {command.argv.2: [1e-3, 0010], command.env.B: [true, 2], placement.1.cpus: [2], "
        "tags.k.l: [z], checkpoint.every_steps: [5], priority: {int: [-5, 5]}}\n"
    )
    assert spec.space["command.argv.2"].choice == ["1e-3", "0010"], "as they were written"
    run = spec.trial_spec({key: (one.choice or [3])[0] for key, one in spec.space.items()}, 7, 0)
    assert run.command is not None
    assert run.command.argv == ["x", "--lr", "1e-3"]
    assert run.command.env == {"A": "b", "B": "true"}
    assert [variant.cpus for variant in run.placement] == [1, 2]
    assert (run.name, run.tags, run.checkpoint.every_steps, run.priority) == ("s-7", {"k.l": "z"}, 5, 3)
    assert run.experiment == "default"


# ------------------------------------------------------------------ combinations


def test_combinations_that_contradict_themselves_are_found_before_anything_runs() -> None:
    found = problems(f"{BASE}space:\n  trainer.n_embd: [64, 96]\n  trainer.n_head: [2, 5]\n")
    assert found == [
        "s.yaml:5:3: space.trainer.n_embd: with trainer.n_embd=64, trainer.n_head=5: n_embd (64) must be a "
        "multiple of n_head (5)",
        "s.yaml:5:3: space.trainer.n_embd: with trainer.n_embd=96, trainer.n_head=5: n_embd (96) must be a "
        "multiple of n_head (5)",
    ]


def test_of_many_the_first_few_are_told_and_how_many_there_are() -> None:
    found = problems(f"{BASE}space:\n  trainer.n_embd: {{int: [64, 128]}}\n  trainer.n_head: [4, 8]\n")
    assert len(found) == 4
    assert "space: 104 of 130 combinations would not be accepted" in found[0]


def test_a_value_that_contradicts_the_base_is_found_at_the_end_of_its_range() -> None:
    found = only(f"{BASE}space:\n  trainer.learning_rate: {{float: [1e-5, 1e-2], log: true}}\n")
    assert "min_lr (0.0001) must not exceed learning_rate (1e-05)" in found


def test_a_contradiction_in_a_large_space_is_found_by_its_corners() -> None:
    ranges = "".join(f"  trainer.beta{n}: {{float: [0.5, 0.9]}}\n" for n in (1, 2))
    text = (
        f"{BASE}space:\n{ranges}  trainer.batch_size: {{int: [12, 24]}}\n  trainer.micro_batches: [1, 12]\n"
    )
    assert any("batch_size (" in one for one in problems(text))


def test_a_condition_keeps_values_apart_that_do_not_fit() -> None:
    text = (
        f"{BASE}space:\n  trainer.n_head: [4, 5]\n"
        "  trainer.n_embd: {choice: [64, 128], when: {trainer.n_head: [4]}}\n"
    )
    found = only(text)
    assert "with trainer.n_head=5: n_embd (128) must be a multiple of n_head (5)" in found, "the base's width"
    parse_sweep(text.replace("[4, 5]", "[4, 2]"))


def test_a_value_that_one_placement_cannot_take_is_found() -> None:
    text = BASE.replace("{trainer: {}}", "{trainer: {}, placement: [{pool: a}, {pool: b, gpus: 1}]}")
    assert "this placement grants no GPU" in only(f"{text}space:\n  trainer.device: [cpu, cuda]\n")


# ------------------------------------------------------------------ the whole


def settings(
    text: str, space: str = "trainer.n_layer: [1, 2]", base: str = "{trainer: {max_steps: 900}}"
) -> str:
    return f"name: s\nbase: {base}\nspace:\n  {space}\n{text}\n"


TWO_POOLS = "{trainer: {}, placement: [{pool: laptop}, {pool: gpu, trainer: {max_steps: 9}}]}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            settings(""),
            "1:1: budget: nothing would end this sweep: expected trials, duration, gpu_hours or kwh",
        ),
        (settings("budget: {target: 1}"), "5:1: budget: nothing would end this sweep"),
        (settings("budget: {target: 1}"), "`target` alone may never be met"),
        (settings("budget: {trials: 0}"), "budget.trials: expected a whole number from 1"),
        (settings("budget: {trials: 1}\npruner: {kind: asha}"), "6:1: pruner: asha needs `first_steps`"),
        (
            settings("budget: {trials: 1}\npruner: {kind: asha, first_steps: 900}"),
            "pruner.first_steps: expected fewer than the 900 steps of a whole run, got 900",
        ),
        (
            settings(
                "budget: {trials: 1}\npruner: {kind: hyperband, first_steps: 9}",
                base="{command: {argv: [x]}}",
                space="priority: [1, 2]",
            ),
            "pruner: hyperband needs `max_steps`, the steps of a whole run",
        ),
        (
            settings("budget: {trials: 1}\npruner: {kind: asha, first_steps: 9, max_steps: 90}"),
            "pruner.max_steps: is for `command`: the trainer runs for 900 steps",
        ),
        (
            settings(
                "budget: {trials: 1}\npruner: {kind: asha, first_steps: 9}",
                space="trainer.max_steps: [90, 99]",
            ),
            "4:3: space.trainer.max_steps: asha compares runs of the same length",
        ),
        (
            settings("budget: {trials: 1}\npruner: {kind: asha, first_steps: 9}", base=TWO_POOLS),
            "base.placement.1.trainer.max_steps: asha compares runs of the same length",
        ),
        (
            settings("budget: {trials: 1}\npruner: {kind: asha, first_steps: 9, pools: [local, cloud]}"),
            "pruner.pools.1: expected a pool of the base's placements, local, got 'cloud'",
        ),
        (settings("budget: {trials: 1}\npruner: {pools: [local]}"), "pruner.pools: is for rungs"),
        (
            settings("budget: {trials: 1}\nsampler: {kind: cmaes}"),
            "sampler.kind: cmaes needs at least two parameters that are numbers without `when`, got only",
        ),
        (
            settings("budget: {trials: 1}\nsampler: {kind: cmaes}", space="trainer.bias: [true, false]"),
            "got none; tpe takes any",
        ),
        (
            settings("sampler: {kind: grid}", space="trainer.dropout: {float: [0, 0.5]}"),
            "4:3: space.trainer.dropout: a grid needs values that can be counted",
        ),
        (
            settings("sampler: {kind: grid}", space="trainer.warmup_steps: {int: [0, 100000]}"),
            "sampler.kind: this grid has more than 100000 points",
        ),
        (
            settings("budget: {trials: 1}\nrepeat: 2\npruner: {kind: median}"),
            "repeat: repeat compares whole trials",
        ),
        (
            settings("budget: {trials: 1}\nrepeat: 2", space="trainer.seed: [1, 2]"),
            "space.trainer.seed: `repeat` decides about the seed",
        ),
        (
            settings("budget: {trials: 1}").replace("name: s", "name: " + "s" * 57),
            "1:7: name: expected at most 56 characters",
        ),
        (
            settings(
                "budget: {trials: 1}",
                space="trainer.n_head: [1, 2]\n  trainer.n_layer: {choice: [1, 2], "
                "when: {trainer.n_head: [2, 3]}}",
            ),
            "5:64: space.trainer.n_layer.when.trainer.n_head.1: trainer.n_head is never 3",
        ),
    ],
)
def test_what_does_not_fit_together(text: str, expected: str) -> None:
    assert expected in only(text)


def test_a_grid_ends_by_itself() -> None:
    assert parse_sweep(settings("sampler: {kind: grid}")).budget.trials is None


def test_conditions_on_ranges_name_values_that_there_are() -> None:
    space = "trainer.n_layer: {int: [2, 8], step: 2}\n  trainer.bias: {choice: [true], when: {WHEN}}"
    for value, wrong in (("4", False), ("[2, 8]", False), ("3", True), ("10", True), ("'4'", True)):
        text = settings("budget: {trials: 1}", space=space.replace("WHEN", f"trainer.n_layer: {value}"))
        if wrong:
            assert "trainer.n_layer is never" in only(text)
        else:
            parse_sweep(text)


# ------------------------------------------------------------------ the model


def test_a_sweep_is_the_same_after_it_was_stored() -> None:
    spec = parse_sweep(
        "name: s\nbase: {trainer: {max_steps: 50}}\nbudget: {trials: 2, duration: 1h}\n"
        "space: {trainer.recipe: [nanogpt, fast], trainer.bias: [true, false], "
        "trainer.n_layer: {int: [1, 3]}}\n"
    )
    again = SweepSpec.model_validate_json(spec.model_dump_json())
    assert again == SweepSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert spec_hash(again) == spec_hash(spec)
    assert spec_hash(spec) != spec_hash(spec.model_copy(update={"parallel": 2}))
    for one in (spec, again):
        fast, nano = (one.trial_spec({"trainer.recipe": name}, 0, 0).trainer for name in ("fast", "nanogpt"))
        assert fast is not None
        assert nano is not None
        assert (fast.learning_rate, nano.learning_rate) == (0.01, 0.001), "each recipe's own defaults"
        assert fast.max_steps == 50


def test_repeats_differ_in_their_seed_only_and_points_share_seeds() -> None:
    base = {"trainer": {"seed": 100}, "placement": [{"pool": "a"}, {"pool": "b", "trainer": {"seed": 7}}]}
    spec = sweep(base=base, repeat=3, space={"trainer.n_layer": [1, 2]})
    made = [
        spec.trial_spec({"trainer.n_layer": layers}, 9, repeat) for layers in (1, 2) for repeat in range(3)
    ]
    seeds = [[one.trainer_for(variant).seed for variant in one.placement] for one in made]  # type: ignore[union-attr]
    assert seeds == [[100, 7], [101, 8], [102, 9]] * 2
    assert [one.tags for one in made] == [{"repeat": "0"}, {"repeat": "1"}, {"repeat": "2"}] * 2
    alone = sweep(base=base, space={"trainer.n_layer": [1, 2]}).trial_spec({"trainer.n_layer": 1}, 0, 0)
    assert alone.tags == {}
    command = sweep(base={"command": {"argv": ["x"]}}, repeat=2, space={"priority": [1, 2]})
    assert command.trial_spec({"priority": 2}, 1, 1).tags == {"repeat": "1"}


def test_the_base_is_not_changed_by_its_trials() -> None:
    spec = sweep()
    before = spec.model_dump_json()
    first = spec.trial_spec({"trainer.learning_rate": 0.01, "trainer.n_embd": 64}, 0, 0)
    second = spec.trial_spec({"trainer.learning_rate": 0.02}, 1, 0)
    assert first.trainer is not None
    assert second.trainer is not None
    assert (first.trainer.n_embd, second.trainer.n_embd) == (64, 128)
    assert spec.model_dump_json() == before


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"trainer.n_embd": 63}, "night-4: trainer.n_embd: n_embd (63) must be a multiple of n_head (4)"),
        ({"trainer.n_layer": 0}, "night-4: trainer.n_layer: expected a whole number above 0, got 0"),
        ({"placement.5.cpus": 2}, "night-4: placement.5.cpus: the base has no `placement.5`"),
    ],
)
def test_values_that_do_not_fit_are_refused(params: dict[str, int], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        sweep().trial_spec(params, 4, 0)
    assert [str(problem) for problem in caught.value.problems] == [expected]


def test_a_sweep_that_comes_from_elsewhere_is_checked_the_same_way() -> None:
    check_sweep(sweep())
    with pytest.raises(SpecError) as caught:
        check_sweep(sweep(space={"trainer.n_embd": [64, 63, -1], "trainer.n_layr": [1]}))
    assert [str(problem) for problem in caught.value.problems] == [
        "night: space.trainer.n_embd.choice.2: expected a whole number above 0, got -1",
        "night: space.trainer.n_layr: unknown setting `trainer.n_layr`; did you mean `n_layer`?",
    ]
    with pytest.raises(SpecError, match=r"with trainer\.n_embd=63: n_embd \(63\) must be a multiple"):
        check_sweep(sweep(space={"trainer.n_embd": [64, 63]}))


def test_points_of_a_space_are_counted_and_conditions_hold() -> None:
    spec = sweep(
        space={
            "trainer.recipe": ["nanogpt", "fast"],
            "trainer.ngrams": {"int": [1, 3], "when": {"trainer.recipe": "fast"}},
            "trainer.bias": {"choice": [True, False], "when": {"trainer.ngrams": [3]}},
        }
    )
    found = [tuple(point.values()) for point in points(spec.space)]
    assert found == [("nanogpt",), ("fast", 1), ("fast", 2), ("fast", 3, True), ("fast", 3, False)]
