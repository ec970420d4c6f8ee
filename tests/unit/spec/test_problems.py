"""Mistakes in specs: all at once, each with its place, in words."""

from __future__ import annotations

import typing

import pytest
from pydantic_core.core_schema import ErrorType

from orchestrator.spec import RunSpec
from orchestrator.spec.problems import message_of
from orchestrator.spec.shape import shape_of
from tests.unit.spec.support import MINIMAL, only, parse, problems

TWELVE_MISTAKES = """\
name: bad name!
experimnt: shakespeare
max_steps: 5
trainer:
  max_stepz: 100
  n_embd: 130
  n_head: 4
  n_layer: many
  learning_rate: 1e-3
placement:
  - pool: laptop
    cpus: 0
  - gpus: 1
    memory: lots
    trainer:
      dtype: bf16
  - pool: gpu
retries: 1.5
max_duration: 8 hours
"""


def test_a_spec_with_twelve_mistakes_gives_twelve_problems_with_their_places() -> None:
    name_words = "a name of at most 63 letters, digits, '.', '_' and '-', beginning with a letter or digit"
    assert [str(problem) for problem in problems(TWELVE_MISTAKES)] == [
        f"s.yaml:1:7: name: expected {name_words}, got 'bad name!'",
        "s.yaml:2:1: experimnt: unknown key; did you mean `experiment`?",
        "s.yaml:3:1: max_steps: unknown key; `max_steps` belongs under `trainer`",
        "s.yaml:5:3: trainer.max_stepz: unknown key; did you mean `max_steps`?",
        "s.yaml:6:11: trainer.n_embd: n_embd (130) must be a multiple of n_head (4)",
        "s.yaml:8:12: trainer.n_layer: expected a whole number above 0, got 'many'",
        "s.yaml:12:11: placement.0.cpus: expected a whole number from 1 to 4096, got 0",
        f"s.yaml:13:5: placement.1.pool: missing; expected {name_words}",
        "s.yaml:14:13: placement.1.memory: expected a size such as 6GiB or 500MB, got 'lots'",
        "s.yaml:16:14: placement.1.trainer.dtype: expected float32, bfloat16 or auto, got 'bf16'",
        "s.yaml:18:10: retries: expected a whole number from 0 to 100, got 1.5",
        "s.yaml:19:15: max_duration: expected a duration such as 90s, 30m, 8h, 1h30m or 2d, got '8 hours'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer: {}\n", "1:1: name: missing; expected a name"),
        ("name: a\ntrainer:\n", "2:1: trainer: is empty; write `trainer: {}`"),
        ("name: a\n", "1:1: expected `trainer` (the built-in trainer) or `command`"),
        (
            "name: a\ntrainer: {}\ncommand: {argv: [x]}\n",
            "3:1: command: expected either `trainer` or `command`",
        ),
        ("name: a\ncommand: {}\n", "2:1: command.argv: missing; expected a list of texts"),
        ("name: a\ncommand: {argv: []}\n", "2:11: command.argv: expected a list of texts, got an empty list"),
        (
            "name: a\ncommand:\n  argv: train.py\n",
            "3:9: command.argv: expected a list of texts, got 'train.py'",
        ),
        (
            "name: a\ncommand: train.py\n",
            "2:10: command: expected a mapping with keys such as argv, env, workdir",
        ),
        ("name: a\ncommand: {argv: [a, [b]]}\n", "2:21: command.argv.1: expected text"),
        (
            "name: a\ncommand: {argv: [a]}\nplacement: [{pool: p, trainer: {n_layer: 2}}]\n",
            "3:23: placement.0.trainer",
        ),
        ("name: a\ntrainer: {}\nplacement:\n", "3:1: placement: expected a list of mappings, got nothing"),
        (
            "name: a\ntrainer: {decay_lr: maybe}\n",
            "2:21: trainer.decay_lr: expected true or false, got 'maybe'",
        ),
        (
            "name: a\ntrainer: {dropout: 1}\n",
            "2:20: trainer.dropout: expected a number from 0 to below 1, got 1",
        ),
        (
            "name: a\ntrainer: {learning_rate: .inf}\n",
            "2:26: trainer.learning_rate: expected a number above 0",
        ),
        (
            "name: a\ntrainer: {learning_rate: .nan}\n",
            "2:26: trainer.learning_rate: expected a number above 0",
        ),
        ("name: a\ntrainer: {max_steps: true}\n", "expected a whole number above 0, got 'true'"),
        ("name: a\ntrainer: {max_steps: " + "9" * 5000 + "}\n", "expected a whole number above 0, got '99"),
        (
            "name: a\ntrainer: {dataset: 5}\n",
            "expected text, got 5; put it in quotes if it is meant as text: '5'",
        ),
        ("name: a\ntrainer: {dataset: true}\n", "got true; put it in quotes if it is meant as text: 'true'"),
        ("name: true\ntrainer: {}\n", "1:7: name: expected a name of at most 63"),
        (
            "name: a\ntrainer: {}\nplacement: {pool: gpu}\n",
            "3:1: placement: expected a list of mappings, got a mapping",
        ),
        (
            "name: a\ntrainer: {}\ncheckpoint: {mode: best}\n",
            "checkpoint.mode: expected min or max, got 'best'",
        ),
        (
            "name: a\ntrainer: {}\ntags: [a]\n",
            "3:1: tags: expected a mapping from names to texts, got a list of 1",
        ),
        ("name: a\ntrainer: {}\ntags: {a b: c}\n", "3:8: tags.a b: expected a name of at most 63"),
        (
            "name: a\ncommand: {argv: [x], env: {a-b: c}}\n",
            "env.a-b: expected a name of letters, digits and '_'",
        ),
        (
            "name: a\ncommand: {argv: [x], env: {ORCH_RUN_ID: c}}\n",
            "names that begin with ORCH_ are set by orch",
        ),
        ("name: a\ncommand: {argv: [x], env: {HF_TOKEN: c}}\n", "looks like a secret, and specs are stored"),
        ('name: a\ncommand: {argv: ["a\\0b"]}\n', "command.argv.0: expected text without NUL characters"),
        (
            "name: a\ncommand: {argv: [x], workdir: src}\n",
            "expected an absolute path on the node, or one from ~",
        ),
    ],
)
def test_what_each_mistake_says(text: str, expected: str) -> None:
    assert expected in str(only(text))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("trainer: {max_iters: 5}", "did you mean `max_steps`?"),
        ("trainer: {lr: 1e-3}", "did you mean `learning_rate`?"),
        ("trainer: {eval_iters: 5}", "did you mean `eval_batches`?"),
        ("trainer: {}\nplacement: [{pool: a, gpu: 1}]", "did you mean `gpus`?"),
        ("trainer: {}\nplacement: [{pool: a, dtype: auto}]", "`dtype` belongs under `placement.0.trainer`"),
        (
            "trainer: {}\nplacement: [{pool: a}, {pool: b, trainer: {cpus: 2}}]",
            "`cpus` belongs under `placement.1`",
        ),
        ("trainer: {}\nevery_steps: 5", "`every_steps` belongs under `checkpoint`"),
        ("trainer: {priority: 5}", "`priority` belongs at the top level"),
        ("trainer: {}\npool: gpu", "`pool` belongs under `placement.N`"),
        ("trainer: {}\ncheckpoint: {zzzz: 5}", "known here: every_steps, every_minutes, keep_last"),
        ("trainer: {}\n? [a, b]\n: c", "expected a word as key, got a list or a mapping"),
    ],
)
def test_unknown_keys_are_told_what_was_meant_or_where_they_belong(text: str, hint: str) -> None:
    assert hint in only(f"name: a\n{text}\n").message


def test_contradictions_are_placed_at_a_setting_that_the_user_wrote() -> None:
    assert str(only("name: a\ntrainer:\n  learning_rate: 1e-5\n")).startswith(
        "s.yaml:3:18: trainer.learning_rate: min_lr"
    )
    assert str(only("name: a\ntrainer:\n  n_head: 3\n")).startswith(
        "s.yaml:3:11: trainer.n_head: n_embd (128)"
    )


def test_two_contradictions_are_both_reported() -> None:
    found = problems("name: a\ntrainer:\n  n_head: 3\n  min_lr: 1\n")
    assert [(problem.line, problem.key) for problem in found] == [
        (3, "trainer.n_head"),
        (4, "trainer.min_lr"),
    ]


def test_a_wrong_setting_is_not_blamed_for_a_contradiction_as_well() -> None:
    found = problems("name: a\ntrainer:\n  n_embd: wide\n  n_head: 3\n")
    assert [problem.key for problem in found] == ["trainer.n_embd"]
    text = MINIMAL + "placement: [{pool: a, trainer: {n_embd: wide, n_head: 3}}]\n"
    assert [problem.key for problem in problems(text)] == ["placement.0.trainer.n_embd"]
    text = "name: a\ntrainer: {n_layer: many}\nplacement: [{pool: a}, {pool: b, trainer: {n_layer: 6}}]\n"
    assert [problem.key for problem in problems(text)] == ["trainer.n_layer"]


def test_contradictions_of_a_placement_are_placed_in_it() -> None:
    text = MINIMAL + "placement:\n  - pool: a\n  - pool: b\n    trainer:\n      learning_rate: 1e-5\n"
    assert str(only(text)).startswith(
        "s.yaml:7:22: placement.1.trainer.learning_rate: min_lr (0.0001) must not"
    )


def test_placements_must_agree_on_the_model() -> None:
    text = MINIMAL + "placement:\n  - pool: a\n  - pool: b\n    trainer: {n_layer: 6}\n"
    assert "n_layer must be the same on every placement" in only(text).message
    parse(MINIMAL + "placement: [{pool: a, trainer: {n_layer: 6}}, {pool: b, trainer: {n_layer: 6}}]\n")


def test_cuda_needs_a_gpu() -> None:
    found = only(
        "name: a\ntrainer: {device: cuda}\nplacement:\n  - {pool: a, gpus: 1}\n  - {pool: b, gpus: 0}\n"
    )
    assert (found.line, found.key) == (5, "placement.1.gpus")
    assert "this placement grants no GPU" in found.message


def test_every_kind_of_error_that_pydantic_can_report_has_a_message() -> None:
    """Those without words of their own keep pydantic's."""
    for kind in typing.get_args(ErrorType):
        detail: typing.Any = {
            "type": kind,
            "loc": ("retries",),
            "input": 3,
            "msg": "Pydantic's",
            "ctx": {"le": 3},
        }
        assert message_of(detail, ("retries",), shape_of(RunSpec)), kind


def test_problems_are_capped() -> None:
    text = "name: a\ntrainer: {}\n" + "".join(f"key{number}: 1\n" for number in range(1000))
    found = problems(text)
    assert len(found) == 101
    assert [problem.line for problem in found[:100]] == list(range(3, 103))
    assert found[-1].message == "and more problems after these"
