"""JSON Schema of specs, for editors: completion, descriptions, and a red line under mistakes.

Written for draft 7, which editors' YAML servers know, and without references, so that the description of
every field is shown where it stands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from orchestrator.spec.checks import TrainerOverrides
from orchestrator.spec.models import RunSpec
from orchestrator.spec.shape import shape_of
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.sweep_checks import OURS
from trainer.config import TrainerConfig

_DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_NUMBERED: Final = r"^(placement\.[0-9]+\.[a-z_.]+|command\.argv\.[0-9]+|command\.env\..+|tags\..+)$"
"""Paths of settings with a number or a free name in them."""


def json_schema() -> dict[str, Any]:
    """The schema of a spec file."""
    schema = _schema(RunSpec, "urn:orch:spec", "orch spec")
    overrides = _inlined(TrainerOverrides.model_json_schema())
    for setting in overrides["properties"].values():
        setting.pop("default", None)
    variant = schema["properties"]["placement"]["items"]
    override = variant["properties"]["trainer"]
    override.update(properties=overrides["properties"], additionalProperties=False)
    schema["oneOf"] = [
        {"required": [key], "properties": {key: {"type": "object"}, other: {"type": "null"}}}
        for key, other in (("trainer", "command"), ("command", "trainer"))
    ]
    return schema


def sweep_json_schema() -> dict[str, Any]:
    """The schema of a sweep's file, with the short forms that may be written and the known settings."""
    schema = _schema(SweepSpec, "urn:orch:sweep", "orch sweep")
    properties = schema["properties"]
    base = {key: value for key, value in json_schema().items() if key not in ("$schema", "$id", "title")}
    base["required"] = [key for key in base["required"] if key != "name"]
    path = {"type": "string", "minLength": 1}
    properties["base"] = {"description": properties["base"]["description"], "anyOf": [path, base]}
    space = properties["space"]
    parameter = space["additionalProperties"]
    when = parameter["properties"]["when"]["additionalProperties"]
    parameter["properties"]["when"]["additionalProperties"] = {"anyOf": [when, when["items"]]}
    parameter["oneOf"] = [{"required": [kind]} for kind in ("choice", "int", "float")]
    values = next(one for one in parameter["properties"]["choice"]["anyOf"] if one["type"] == "array")
    space["additionalProperties"] = {"anyOf": [values, parameter]}
    space["propertyNames"] = {"anyOf": [{"enum": _settings()}, {"pattern": _NUMBERED}]}
    return schema


def _settings() -> list[str]:
    """Every single setting with a fixed path."""
    places = shape_of(RunSpec).places()
    single = (path for path, shape in places if shape.kind not in ("model", "list", "map"))
    return [".".join(map(str, path)) for path in single if "N" not in path and path[0] not in OURS]


def trainer_json_schema() -> dict[str, Any]:
    """The schema of a file for `python -m trainer --config`."""
    return _schema(TrainerConfig, "urn:orch:trainer", "trainer configuration")


def schema_text(schema: dict[str, Any]) -> str:
    """A schema as it is kept in a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> None:
    """Write the schemas where the files that use them lie: `python -m orchestrator.spec.schema configs`."""
    schemas = {"spec": json_schema(), "sweep": sweep_json_schema(), "trainer": trainer_json_schema()}
    for name, schema in schemas.items():
        (folder / f"{name}.schema.json").write_text(schema_text(schema), encoding="utf-8")


def _schema(model: type[BaseModel], identity: str, title: str) -> dict[str, Any]:
    return {"$schema": _DRAFT, "$id": identity, **_inlined(model.model_json_schema()), "title": title}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    definitions = schema.pop("$defs", {})
    inlined = _inline(schema, definitions)
    assert isinstance(inlined, dict)
    return inlined


def _inline(part: Any, definitions: dict[str, Any]) -> Any:
    """Put definitions where they are used; a description at the place of use wins over the definition's."""
    if isinstance(part, list):
        return [_inline(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    rest = {
        key: _inline(value, definitions)
        for key, value in part.items()
        if key != "$ref" and not (key == "title" and isinstance(value, str))
    }
    if "patternProperties" in rest:
        ((pattern, value),) = rest.pop("patternProperties").items()
        rest |= {"propertyNames": {"pattern": pattern}, "additionalProperties": value}
    if "prefixItems" in rest:  # as draft 7 has it
        rest["items"] = rest.pop("prefixItems")
    if "$ref" not in part:
        return rest
    name = part["$ref"].removeprefix("#/$defs/")
    return {**_inline(definitions[name], definitions), **rest}


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
