"""Checks that concern several settings of a spec at once, each answered with the place that has to change.

They work on what the user wrote, before and after pydantic, so that a mistake in one setting does not hide
a contradiction between others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails

from trainer.config import TrainerConfig

Location: TypeAlias = tuple[int | str, ...]

MODEL_SETTINGS: Final = ("dataset", "recipe", "ngrams", "n_layer", "n_head", "n_embd", "block_size", "bias")
"""Trainer settings that decide whether a checkpoint can be loaded: the same on every placement of a run."""


def _optional(info: FieldInfo) -> tuple[Any, Any]:
    """The definition of a field for create_model that may be left out; None is no value for it."""
    annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    return annotation, Field(default=None, description=info.description)


_OPTIONAL: Final[dict[str, Any]] = {
    name: _optional(info) for name, info in TrainerConfig.model_fields.items()
}
TrainerOverrides: type[BaseModel] = create_model(
    "TrainerOverrides",
    __config__=ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False),
    __doc__="Trainer settings that differ on one placement.",
    **_OPTIONAL,
)
"""TrainerConfig with every setting optional and no relation between settings checked."""


def check_overrides(value: Any) -> dict[str, Any]:
    """Trainer overrides with each setting checked and converted on its own; keeps only what was given."""
    return TrainerOverrides.model_validate(value).model_dump(exclude_unset=True)


def contradictions(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    """What contradicts itself in a spec's raw data; settings that are wrong by themselves are left out."""
    found = _programs(data) + _misplaced_overrides(data)
    base = _settings(data.get("trainer"))
    if base is not None:
        found += [mistake(("trainer", *keys[:1]), text) for keys, text in _relations(base)]
        found += _variants(base, _items(data.get("placement")))
    return found


def is_relation(error: ErrorDetails) -> bool:
    """True for TrainerConfig's own report of a contradiction, which :func:`contradictions` places better."""
    return error["loc"] == ("trainer",) and error["type"] == "value_error"


def merge_errors(title: str, errors: Iterable[ErrorDetails], more: list[InitErrorDetails]) -> ValidationError:
    """One ValidationError with both: pydantic's own errors and ours."""
    return ValidationError.from_exception_data(title, [*(_again(error) for error in errors), *more])


def _again(error: ErrorDetails) -> InitErrorDetails:
    again = InitErrorDetails(type=error["type"], loc=error["loc"], input=error["input"])
    if "ctx" in error:
        again["ctx"] = error["ctx"]
    return again


def mistake(location: Location, message: str, value: Any = None) -> InitErrorDetails:
    """One error of ours at a place in the data."""
    return InitErrorDetails(type="value_error", loc=location, input=value, ctx={"error": ValueError(message)})


def _programs(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    given = [key for key in ("trainer", "command") if data.get(key) is not None]
    if len(given) == 1:
        return []
    if given:
        return [mistake(("command",), "expected either `trainer` or `command`, got both")]
    if "trainer" in data and "command" not in data:
        return [
            mistake(("trainer",), "is empty; write `trainer: {}` for the built-in trainer with its defaults")
        ]
    return [
        mistake((), "expected `trainer` (the built-in trainer) or `command` (any other program), got neither")
    ]


def _variants(base: _Settings, variants: list[Any]) -> list[InitErrorDetails]:
    """Contradictions inside the resolved settings of each placement, and between placements."""
    found: list[InitErrorDetails] = []
    overrides: list[dict[str, Any]] = []
    for number, variant in enumerate(variants):
        place: Location = ("placement", number)
        override = _settings(_get(variant, "trainer")) or _Settings({})
        overrides.append(override.right)
        both = _Settings(
            {**base.right, **override.right}, (base.wrong - override.right.keys()) | override.wrong
        )
        for keys, text in _relations(both):
            own = [key for key in keys if key in override.right]
            found += [mistake((*place, "trainer", key), text, override.right[key]) for key in own[:1]]
        if both.right.get("device") == "cuda" and _get(variant, "gpus") in (0, None):
            found.append(mistake(_device_place(override.right, variant, place), _NO_GPU))
    return found + _model_changes(base, overrides)


_NO_GPU: Final = "device is cuda, but this placement grants no GPU: expected `gpus: 1` or `device: auto`"


def _device_place(override: dict[str, Any], variant: Any, place: Location) -> Location:
    if "device" in override:
        return (*place, "trainer", "device")
    return (*place, "gpus") if _get(variant, "gpus") == 0 else place


_SAME: Final = "must be the same on every placement: checkpoints go from one to the other"


def _model_changes(base: _Settings, overrides: list[dict[str, Any]]) -> list[InitErrorDetails]:
    found: list[InitErrorDetails] = []
    for key in MODEL_SETTINGS:
        default = base.right.get(key, TrainerConfig.model_fields[key].default)
        values = [override.get(key, default) for override in overrides]
        if key == "recipe":  # the base has the defaults of its own recipe
            values.append(default)
        if key in base.wrong or all(value == values[0] for value in values):
            continue
        for number, override in enumerate(overrides):
            if key in override:
                found.append(mistake(("placement", number, "trainer", key), f"{key} {_SAME}", override[key]))
    return found


def _misplaced_overrides(data: Mapping[str, Any]) -> list[InitErrorDetails]:
    """Trainer overrides in a spec whose program is a command."""
    if data.get("trainer") is not None or data.get("command") is None:
        return []
    return [
        mistake(
            ("placement", number, "trainer"), "only for the built-in trainer, but this spec has `command`"
        )
        for number, variant in enumerate(_items(data.get("placement")))
        if _get(variant, "trainer")
    ]


def _relations(settings: _Settings) -> list[tuple[list[str], str]]:
    """Each contradiction between settings that are right by themselves, with the settings that it names.

    TrainerConfig reports one contradiction at a time; leaving out the settings it names brings up the next.
    One that names a setting which was left out is about that setting's default, and nobody's mistake.
    """
    found: list[tuple[list[str], str]] = []
    left = dict(settings.right)
    gone = set(settings.wrong)
    while True:
        try:
            TrainerConfig.model_validate(left)
            return found
        except ValidationError as error:
            details = error.errors(include_url=False)
        named = [key for detail in details for key in _named(detail)]
        if gone.isdisjoint(named):
            found += [([key for key in _named(one) if key in left], _message(one)) for one in details]
        if not left.keys() & set(named):
            return found
        gone |= left.keys() & set(named)
        left = {key: value for key, value in left.items() if key not in gone}


def _named(detail: ErrorDetails) -> list[str]:
    """The trainer settings that an error is about, in the order in which it names them."""
    words = [str(part) for part in detail["loc"]] or re.findall(r"\w+", detail["msg"])
    return list(dict.fromkeys(word for word in words if word in TrainerConfig.model_fields))


def _message(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


@dataclass(frozen=True)
class _Settings:
    """Trainer settings as far as they are right by themselves, and the names of those that are not."""

    right: dict[str, Any]
    wrong: frozenset[str] = frozenset()


def _settings(value: Any) -> _Settings | None:
    """None where there are no settings at all."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    if not isinstance(value, Mapping):
        return None
    wrong: frozenset[str] = frozenset()
    try:
        TrainerOverrides.model_validate(dict(value))
    except ValidationError as error:
        wrong = frozenset(str(detail["loc"][0]) for detail in error.errors(include_url=False))
    left = {key: item for key, item in value.items() if str(key) not in wrong}
    return _Settings(TrainerOverrides.model_validate(left).model_dump(exclude_unset=True), wrong)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _get(item: Any, key: str) -> Any:
    return item.get(key) if isinstance(item, Mapping) else getattr(item, key, None)
