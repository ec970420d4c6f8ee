"""Whether the trials of a sweep would be accepted as runs: every value by itself, and values together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, product
from random import Random
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails

from orchestrator.errors import Problem
from orchestrator.spec.checks import Location, TrainerOverrides, mistake
from orchestrator.spec.models import RunSpec
from orchestrator.spec.overrides import split_path
from orchestrator.spec.problems import dotted, message_of, shown, suggestion
from orchestrator.spec.shape import Path, Shape, shape_of
from orchestrator.spec.space import active, count, draw, points, size, value_at

if TYPE_CHECKING:
    from orchestrator.spec.sweep import Parameter

MOST_COMBINATIONS: Final = 2000
"""Spaces with at most so many points are checked point by point; of others the corners, and
:data:`RANDOM_COMBINATIONS`."""
RANDOM_COMBINATIONS: Final = 500
_SHOWN: Final = 3
_INSIDE: Final = 0.381966
"""A place inside a range where a number that should be whole is not."""


def path_of(text: str) -> Path:
    """The path of a parameter in a run spec."""
    return tuple(int(part) if part.isdecimal() else part for part in split_path(text, shape_of(RunSpec)))


def plain_base(base: RunSpec) -> dict[str, Any]:
    """A base as plain data, to put values into; trainer settings that were left out stay left out."""
    data = base.model_dump()
    if base.trainer is not None:
        data["trainer"] = base.trainer.model_dump(exclude_unset=True)
    return data


def put(data: Any, path: Path, value: Any) -> None:
    """Put a value where the path leads. Raises ValueError where the data have no such place."""
    for done, part in enumerate(path):
        inside = isinstance(data, dict) or (isinstance(data, list) and isinstance(part, int))
        if not inside or (isinstance(data, list) and not -1 < int(part) < len(data)):
            raise ValueError(f"{dotted(path)}: the base has no `{dotted(path[: done + 1])}`")
        if done == len(path) - 1:
            data[part] = value
        elif isinstance(data, dict):
            data = data.setdefault(part, {})
        else:
            data = data[int(part)]


# ------------------------------------------------------------------ all that is wrong with values


def wrong_values(base: RunSpec, space: Mapping[str, Parameter]) -> list[InitErrorDetails]:
    """What keeps trials from being accepted, with its place in the sweep. Takes up to a second."""
    found: list[InitErrorDetails] = []
    right: dict[str, Parameter] = {}
    for text, parameter in space.items():
        wrong = [*_wrong_parameter(base, text, parameter)]
        found += wrong
        if not wrong:
            right[text] = parameter
    return found + _wrong_combinations(base, right)


def wrong_settings(space: Mapping[str, Parameter]) -> list[InitErrorDetails]:
    """What can be said of the trainer's settings where there is no base to put them into."""
    base = RunSpec.model_validate({"name": "base", "trainer": {}})
    ours = {text: one for text, one in space.items() if path_of(text)[:1] == ("trainer",)}
    return [wrong for text, one in ours.items() for wrong in _wrong_parameter(base, text, one)]


def _wrong_parameter(base: RunSpec, text: str, parameter: Parameter) -> Iterator[InitErrorDetails]:
    path = path_of(text)
    shape = shape_of(RunSpec).at(path)
    if problem := _no_place(base, path, shape):
        yield mistake(("space", text, "[key]"), problem, text)
        return
    for place, value in _samples(parameter):
        problem, of_key = _wrong_value(base, path, value)
        if problem:
            yield mistake(("space", text, *(("[key]",) if of_key else place)), problem, value)
        if problem and (of_key or parameter.choice is None):
            return


def _no_place(base: RunSpec, path: Path, shape: Shape | None) -> str | None:
    """Why a path is no place for a value."""
    root = shape_of(RunSpec)
    if shape is None:
        known = next(depth for depth in range(len(path), -1, -1) if root.at(path[:depth]))
        if root.at(path[:known]).kind not in ("model", "list", "map"):  # type: ignore[union-attr]
            return f"`{dotted(path[:known])}` is a single setting"
        hint = suggestion(root, path[:known], str(path[known]))
        return f"unknown setting `{dotted(path[: known + 1])}`{hint}"
    if shape.kind in ("model", "list", "map"):
        below = f", such as {dotted((*path, next(iter(shape.fields))))}" if shape.fields else ""
        return f"expected a single setting{below}, got {shape.expected}"
    if path[0] in ("trainer", "command") and getattr(base, str(path[0])) is None:
        return f"this base has no `{path[0]}`"
    try:
        put(plain_base(base), path, None)
    except ValueError as error:
        return str(error).partition(": ")[2]
    return None


def _samples(parameter: Parameter) -> Iterator[tuple[Location, Any]]:
    """Values that have to be accepted, with their places in the parameter: all, or the ends and one more."""
    if parameter.choice is not None:
        yield from ((("choice", number), value) for number, value in enumerate(parameter.choice))
    elif parameter.int is not None:
        yield from ((("int", number), value) for number, value in enumerate(parameter.int))
    elif parameter.float is not None:
        low, high = parameter.float
        yield from ((("float", number), value) for number, value in enumerate(parameter.float))
        yield ("float",), value_at(parameter, 1) if parameter.step else low + (high - low) * _INSIDE


def _wrong_value(base: RunSpec, path: Path, value: Any) -> tuple[str, bool]:
    """What is wrong with a value by itself, whatever stands beside it, and whether that is about its key."""
    shape = shape_of(RunSpec).at(path)
    if shape and shape.kind == "number" and isinstance(value, bool):
        return f"expected {shape.expected}, got {shown(value)}", False
    data = plain_base(base)
    put(data, path, value)
    above: Path = path[: path.index("trainer") + 1] if "trainer" in path[:3] else ()
    model: type[BaseModel] = TrainerOverrides if above else RunSpec
    part: Any = data
    for key in above:
        part = part[key]
    try:
        model.model_validate(part)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            of_key = detail["loc"][-1:] == ("[key]",)
            if of_key or (*above, *detail["loc"])[: len(path)] == path:
                return message_of(detail, path, shape_of(RunSpec)), of_key
    return "", False


# ------------------------------------------------------------------ combinations


def _wrong_combinations(base: RunSpec, space: Mapping[str, Parameter]) -> list[InitErrorDetails]:
    """The first few of the combinations that contradict themselves, each at a parameter that it is about."""
    found: dict[tuple[Any, ...], InitErrorDetails] = {}
    paths = {text: path_of(text) for text in space}
    checked = wrong = 0
    for point in combinations(space):
        checked += 1
        details = _errors_of(base, {paths[text]: value for text, value in point.items()})
        wrong += bool(details)
        for detail in details:
            named, text = _blamed(detail, point, paths)
            location, value = ("space", named[0]), point[named[0]]
            kind = (location, text if len(named) > 1 else detail["loc"])
            found.setdefault(kind, mistake(location, text, value))
    errors = [*found.values()]
    if len(errors) > _SHOWN:
        more = f"{wrong} of {checked} combinations would not be accepted, the first ones are listed"
        return [*errors[:_SHOWN], mistake(("space", "[key]"), more)]
    return errors


def combinations(space: Mapping[str, Parameter]) -> Iterator[dict[str, Any]]:
    """The points that are checked: all of a small space, the corners and random ones of a large one."""
    if size(space, MOST_COMBINATIONS) is not None:
        return points(space)
    return _corners_and_more(space)


def _corners_and_more(space: Mapping[str, Parameter]) -> Iterator[dict[str, Any]]:
    ends = [_ends(parameter) for parameter in space.values()]
    if math.prod(len(values) for values in ends) <= MOST_COMBINATIONS:
        corners: Iterable[tuple[Any, ...]] = product(*ends)
    else:
        corners = _few_corners(ends)
    for values in corners:
        yield _active(space, dict(zip(space, values, strict=True)))
    random = Random(0)
    for _ in range(RANDOM_COMBINATIONS):
        yield draw(space, random)


def _few_corners(ends: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    """All lowest, all highest, and each parameter alone at its other end."""
    for side in (0, -1):
        corner = [values[side] for values in ends]
        yield tuple(corner)
        for number, values in islice(enumerate(ends), RANDOM_COMBINATIONS):
            yield (*corner[:number], values[-1 - side], *corner[number + 1 :])


def _ends(parameter: Parameter) -> list[Any]:
    """The ends of a range, and all choices that are not many."""
    number = count(parameter)
    if parameter.choice is not None and number is not None:
        return parameter.choice if number <= 8 else [parameter.choice[0], parameter.choice[-1]]
    return list(parameter.int or parameter.float or ())


def _active(space: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for path, parameter in space.items():
        if active(parameter, point):
            point[path] = values[path]
    return point


def _errors_of(base: RunSpec, values: Mapping[Path, Any]) -> list[ErrorDetails]:
    data = plain_base(base)
    for path, value in values.items():
        put(data, path, value)
    try:
        RunSpec.model_validate(data)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _blamed(
    detail: ErrorDetails, point: Mapping[str, Any], paths: Mapping[str, Path]
) -> tuple[list[str], str]:
    """The parameters that an error of a combination is about, and what it says at the first of them."""
    text = message_of(detail, detail["loc"], shape_of(RunSpec))
    named = [path for path in point if str(paths[path][-1]) in text or paths[path] == detail["loc"]] or [
        *point
    ]
    named.sort(key=lambda path: paths[path] != detail["loc"])
    values = ", ".join(f"{path}={shown(point[path])}" for path in named[:4])
    return named, f"with {values}: {text}"


def problems_of_trial(error: ValidationError, name: str) -> list[Problem]:
    """What is wrong with a trial's spec, with the trial's name for a file."""
    return [
        Problem(name, 0, 0, dotted(detail["loc"]), message_of(detail, detail["loc"], shape_of(RunSpec)))
        for detail in error.errors(include_url=False)
    ]
