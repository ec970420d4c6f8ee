"""Values, identity, and what a spec answers."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from orchestrator.messages import SubmitRequest
from orchestrator.spec import RunSpec, Variant, canonical_json, spec_hash
from orchestrator.spec.values import parse_duration, parse_size
from tests.unit.spec.support import MINIMAL, only, parse


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("10B", 10),
        ("6GiB", 6 * 2**30),
        ("6gib", 6 * 2**30),
        ("500MB", 500_000_000),
        ("1.5k", 1500),
        ("2 TiB", 2 * 2**40),
        ("2Ki", 2048),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "B", "GiB", "1.GB", "-1GB", "1PB", "1GBB", "1 G B", "9" * 400, "1e3", "٣GB"]
)
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("30min", 1800),
        ("8h", 28800),
        ("2d", 172800),
        ("1h30m", 5400),
        ("1.5 H", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "1h30", "-1h", "1w", "9" * 400 + "s", "h1"])
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


def test_a_duration_and_a_size_must_be_above_nothing() -> None:
    assert "max_duration: expected a duration" in str(only(MINIMAL + "max_duration: 0s\n"))
    assert "placement.0.memory: expected a size" in str(
        only(MINIMAL + "placement: [{pool: a, memory: 0.1B}]\n")
    )


def test_a_spec_survives_its_json() -> None:
    spec = parse(
        MINIMAL
        + "placement: [{pool: a, memory: 1GiB, trainer: {min_lr: 0}}]\nmax_duration: 8h\ntags: {a: 1e-3}\n"
    )
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert RunSpec.model_validate(spec.model_dump()) == spec
    request = SubmitRequest(spec=spec, key="k")
    assert SubmitRequest.model_validate_json(request.model_dump_json()).spec == spec


def test_the_hash_tells_specs_apart_and_nothing_else() -> None:
    one = parse("name: a\ntrainer: {n_layer: 2}\nplacement: [{pool: p, trainer: {min_lr: 1e-5}}]\n")
    same = parse(
        "placement: [{trainer: {min_lr: '0.00001'}, pool: p, cpus: 1}]\nname: a\n"
        "trainer: {learning_rate: 0.001, n_layer: 2.0, max_steps: 2000}\n"
    )
    other = parse("name: a\ntrainer: {n_layer: 3}\nplacement: [{pool: p, trainer: {min_lr: 1e-5}}]\n")
    assert one == same
    assert spec_hash(one) == spec_hash(same)
    assert spec_hash(one) != spec_hash(other)
    assert spec_hash(parse(MINIMAL + "tags: {a: b, c: d}")) == spec_hash(
        parse(MINIMAL + "tags: {c: d, a: b}")
    )
    assert len(spec_hash(one)) == 64
    assert json.loads(canonical_json(one))["trainer"]["max_steps"] == 2000


def test_the_trainer_of_a_variant_has_its_differences() -> None:
    spec = parse(
        "name: a\ntrainer: {n_layer: 2}\nplacement: [{pool: a}, {pool: b, trainer: {dtype: bfloat16}}]\n"
    )
    configs = [spec.trainer_for(variant) for variant in spec.placement]
    assert [config and (config.n_layer, config.dtype) for config in configs] == [
        (2, "float32"),
        (2, "bfloat16"),
    ]
    assert parse("name: a\ncommand: {argv: [x]}\n").trainer_for(Variant(pool="a")) is None


def test_a_spec_that_was_not_read_from_a_file_is_checked_as_strictly() -> None:
    data = {
        "name": "a",
        "trainer": {"n_head": 3, "dtype": "int8"},
        "placement": [{"pool": "a", "trainer": {"dtype": "x", "min_lr": 1.0}}],
    }
    with pytest.raises(ValidationError) as caught:
        SubmitRequest.model_validate({"spec": data, "key": "k"})
    assert {error["loc"] for error in caught.value.errors()} == {
        ("spec", "trainer", "dtype"),
        ("spec", "trainer", "n_head"),
        ("spec", "placement", 0, "trainer", "dtype"),
        ("spec", "placement", 0, "trainer", "min_lr"),
    }


def test_specs_are_frozen() -> None:
    spec = parse(MINIMAL)
    with pytest.raises(ValidationError):
        spec.name = "b"  # type: ignore[misc]
