"""`--set KEY=VALUE`."""

from __future__ import annotations

import pytest

from tests.unit.spec.support import MINIMAL, only, parse, problems

FULL = """\
name: a
trainer: {n_layer: 2}
placement:
  - pool: laptop
  - pool: big
    trainer: {dtype: auto}
tags: {a: b}
checkpoint: {every_steps: 5}
"""


def test_values_are_put_where_the_key_leads() -> None:
    spec = parse(
        FULL,
        "trainer.max_steps=100",
        "placement.0.pool=gpu",
        "placement.1.trainer.dtype=bfloat16",
        "placement.2={pool: third, gpus: 1}",
        "tags.foo=bar",
        "tags.with.dots=1e-3",
        "checkpoint.every_steps=null",
        "max_duration=1h30m",
        "retries=0",
    )
    assert spec.trainer is not None
    assert (spec.trainer.max_steps, spec.trainer.n_layer) == (100, 2)
    assert [variant.pool for variant in spec.placement] == ["gpu", "big", "third"]
    assert spec.placement[1].trainer == {"dtype": "bfloat16"}
    assert spec.tags == {"a": "b", "foo": "bar", "with.dots": "1e-3"}
    assert (spec.checkpoint.every_steps, spec.max_duration, spec.retries) == (None, 5400.0, 0)


def test_what_is_missing_on_the_way_is_made() -> None:
    spec = parse("name: a\ntrainer:\n", "trainer.n_layer=2", "placement.0.pool=gpu", "checkpoint.keep_last=1")
    assert spec.trainer is not None
    assert (spec.trainer.n_layer, spec.placement[0].pool, spec.checkpoint.keep_last) == (2, "gpu", 1)


def test_the_last_one_wins() -> None:
    assert parse(MINIMAL, "retries=1", "retries=2").retries == 2


def test_text_may_be_empty_or_hold_equals_signs() -> None:
    spec = parse(
        "name: a\ncommand: {argv: [x]}\n", "command.env.A=b=c", "command.env.B=''", "command.argv=[x, 1e-3]"
    )
    assert spec.command is not None
    assert spec.command.env == {"A": "b=c", "B": ""}
    assert spec.command.argv == ["x", "1e-3"]


def test_an_override_can_mend_a_mistake_of_the_file() -> None:
    assert parse("name: a b\ntrainer: {}\n", "name=ab").name == "ab"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "trainer.max_stepz=1",
            "--set trainer.max_stepz=1: trainer.max_stepz: unknown key; did you mean `max_steps`?",
        ),
        ("max_steps=1", "--set max_steps=1: max_steps: unknown key; `max_steps` belongs under `trainer`"),
        (
            "trainer.n_layer=many",
            "--set trainer.n_layer=many: trainer.n_layer: expected a whole number above 0, got 'many'",
        ),
        ("trainer.n_layer=", "trainer.n_layer: expected a whole number above 0, got nothing"),
        (
            "placement.7.pool=x",
            "--set placement.7.pool=x: expected a number from 0 to 2 after `placement`, got '7'",
        ),
        ("placement.pool=x", "expected a number from 0 to 2 after `placement`, got 'pool'"),
        ("placement.-1.pool=x", "expected a number from 0 to 2 after `placement`, got '-1'"),
        ("name.x=1", "--set name.x=1: `name` is a single value, so there is no `x` in it"),
        ("trainer", "--set trainer: expected KEY=VALUE, such as trainer.max_steps=100"),
        ("=1", "--set =1: expected KEY=VALUE"),
        ("a..b=1", "--set a..b=1: expected names separated by single dots"),
        ("trainer.=1", "expected names separated by single dots"),
        ("tags={a: 1", "--set tags={a: 1: not valid YAML"),
        ("tags=&a {b: c}", "anchors such as &a are not allowed"),
        ("tags=" + "[" * 40, "nested more than 32 deep"),
        ("tags={a: b, a: c}", "this key is there twice"),
        (
            "trainer.n_head=3",
            "--set trainer.n_head=3: trainer.n_head: n_embd (128) must be a multiple of n_head (3)",
        ),
        (
            "placement.1.trainer.n_head=3",
            "placement.1.trainer.n_head: n_head must be the same on every placement",
        ),
    ],
)
def test_mistakes_name_the_override(override: str, expected: str) -> None:
    found = problems(FULL, override)
    assert any(expected in str(problem) for problem in found), [str(problem) for problem in found]
    assert all(problem.file.startswith("--set ") and problem.line == 0 for problem in found)


def test_mistakes_of_file_and_overrides_come_together() -> None:
    found = problems("name: a\ntrainer: {n_layers: 2}\n", "retries=x", "oops", "tagz.a=b")
    assert [str(problem).split(": ")[0] for problem in found] == [
        "s.yaml:2:11",
        "--set oops",
        "--set retries=x",
        "--set tagz.a=b",
    ]


def test_a_long_override_is_cut_in_messages() -> None:
    assert len(only(MINIMAL, "tags.a b=" + "x" * 300).file) <= 90
