"""The JSON Schema for editors agrees with the loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.spec import parse_sweep
from orchestrator.spec.schema import json_schema, schema_text, sweep_json_schema, trainer_json_schema
from tests.unit.spec.support import parse

CONFIGS = Path(__file__).parents[3] / "configs"
SCHEMAS = {"spec": json_schema(), "sweep": sweep_json_schema(), "trainer": trainer_json_schema()}


def valid(text: str, schema: dict[str, Any] | None = None) -> bool:
    return bool(jsonschema.Draft7Validator(schema or json_schema()).is_valid(yaml.safe_load(text)))


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_the_schemas_are_schemas(schema: dict[str, Any]) -> None:
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["$id"]
    assert schema["title"]
    assert "$ref" not in schema_text(schema)


def fields(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property anywhere in a schema."""
    if isinstance(schema, list):
        for part in schema:
            yield from fields(part, path)
    if not isinstance(schema, dict):
        return
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}", part
        yield from fields(part, f"{path}.{name}")
    for key in ("items", "anyOf", "additionalProperties"):
        yield from fields(schema.get(key), path)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_field_has_a_description(schema: dict[str, Any]) -> None:
    found = dict(fields(schema))
    assert len(found) > 20
    assert [name for name, part in found.items() if not part.get("description")] == []


def test_overrides_of_a_placement_are_known_to_the_editor() -> None:
    found = dict(fields(json_schema()))
    assert found[".placement.trainer.dtype"]["enum"] == ["float32", "bfloat16", "auto"]
    assert "default" not in found[".placement.trainer.dtype"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_files_are_up_to_date(name: str) -> None:
    """Else: python -m orchestrator.spec.schema configs"""
    assert (CONFIGS / f"{name}.schema.json").read_text(encoding="utf-8") == schema_text(SCHEMAS[name])


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {}",
        "command: {argv: [x, 1, true]}",
        "trainer: {}\nmax_duration: 8h",
        "trainer: {}\nmax_duration: 60",
        "trainer: {}\nplacement: [{pool: a, memory: 6GiB, trainer: {dtype: auto}}]",
        "trainer: {}\nplacement: [{pool: a, memory: 1000}]",
        "trainer: {}\ncheckpoint: {every_steps: null, mode: max}",
        "trainer: {}\ntags: {a: 1, b.c: d}",
        "command: {argv: [x], env: {A: 1}, workdir: ~/a}\ntrainer: null",
    ],
)
def test_what_the_loader_takes_the_schema_takes(text: str) -> None:
    parse(f"name: a\n{text}\n")
    assert valid(f"name: a\n{text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "trainer: {}\nmax_steps: 1",
        "",
        "trainer: {}\ncommand: {argv: [x]}",
        "trainer: {n_layer: 0}",
        "trainer: {dtype: int8}",
        "trainer: {max_stepz: 1}",
        "trainer: {}\nplacement: []",
        "trainer: {}\nplacement: [{cpus: 1}]",
        "trainer: {}\nplacement: [{pool: a, trainer: {max_stepz: 1}}]",
        "trainer: {}\nplacement: [{pool: a, trainer: {n_layer: many}}]",
        "trainer: {}\nplacement: [{pool: a, memory: lots}]",
        "trainer: {}\nmax_duration: 8 hours",
        "trainer: {}\ntags: {a b: c}",
        "trainer: {}\nretries: 1.5",
        "command: {argv: []}",
        "command: {argv: [x], env: {a-b: c}}",
    ],
)
def test_mistakes_are_mistakes_in_the_editor_too(text: str) -> None:
    assert not valid(f"name: a\n{text}\n")


SWEEP = "name: a\nbase: {trainer: {}}\nbudget: {trials: 3}\n"


@pytest.mark.parametrize(
    "text",
    [
        "space: {trainer.n_layer: [1, 2]}",
        "space: {trainer.n_layer: {int: [1, 9], step: 2}, trainer.beta2: {float: [0.1, 0.9], log: true}}",
        "space: {trainer.recipe: [fast], trainer.ngrams: {int: [1, 4], when: {trainer.recipe: fast}}}",
        "space: {trainer.bias: [false, true], placement.0.cpus: [1, 2], tags.kind: [a, 1]}",
        "space: {trainer.n_layer: [1]}\nsampler: {kind: grid}\nobjective: {direction: maximize}",
    ],
)
def test_what_the_loader_takes_as_a_sweep_the_schema_takes(text: str) -> None:
    parse_sweep(SWEEP + text)
    assert valid(SWEEP + text, SCHEMAS["sweep"])


def test_a_base_may_be_a_file_and_needs_no_name() -> None:
    space = "budget: {trials: 3}\nspace: {trainer.n_layer: [1]}\n"
    assert valid(f"name: a\nbase: laptop.yaml\n{space}", SCHEMAS["sweep"])
    assert valid(f"name: a\nbase: {{command: {{argv: [x]}}}}\n{space}", SCHEMAS["sweep"])
    assert not valid(f"name: a\n{space}", SCHEMAS["sweep"])


@pytest.mark.parametrize(
    "text",
    [
        "space: {}",
        "space: {trainer.n_layr: [1, 2]}",
        "space: {trainer.n_layer: 2}",
        "space: {trainer.n_layer: {int: [1, 9], choice: [1]}}",
        "space: {trainer.n_layer: {int: [1, 2, 3]}}",
        "space: {trainer.n_layer: {int: [1, many]}}",
        "space: {trainer.n_layer: {log: true}}",
        "space: {name: [a, b]}",
        "space: {trainer.n_layer: [1]}\nsampler: {kind: best}",
        "space: {trainer.n_layer: [1]}\nbudgt: {trials: 1}",
    ],
)
def test_mistakes_in_sweeps_are_mistakes_in_the_editor_too(text: str) -> None:
    assert not valid(SWEEP + text, SCHEMAS["sweep"])
