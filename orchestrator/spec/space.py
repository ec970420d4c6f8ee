"""A sweep's space: the values of its parameters, in order, and its points. Pure.

A point maps the path of each parameter that it has to a value. Parameters with `when` are there only in
points where that holds. Values that can be counted have an index; every value has a place from 0 to 1, so
that a sampler needs to know nothing of scales and steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import islice, pairwise
from random import Random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from orchestrator.spec.sweep import Parameter

_DIGITS: Final = 6
"""Significant digits of a value from a continuum: readable, and finer than anybody can tell apart."""


def count(parameter: Parameter) -> int | None:
    """How many values a parameter has; None for a continuum."""
    if parameter.choice is not None:
        return len(parameter.choice)
    if parameter.int is not None:
        low, high = parameter.int
        return (high - low) // int(parameter.step or 1) + 1
    low_, high_ = _range(parameter)
    return round((high_ - low_) / parameter.step) + 1 if parameter.step else None


def value_at(parameter: Parameter, index: int) -> Any:
    """The value with this index, from 0."""
    if parameter.choice is not None:
        return parameter.choice[index]
    if parameter.int is not None:
        return parameter.int[0] + index * int(parameter.step or 1)
    low, _ = _range(parameter)
    return float(Decimal(str(low)) + index * Decimal(str(parameter.step)))


def index_of(parameter: Parameter, value: Any) -> int:
    """The index of a value that can be counted."""
    if parameter.choice is not None:
        return next(index for index, one in enumerate(parameter.choice) if same(one, value))
    low, _ = _range(parameter)
    return round((float(value) - low) / (parameter.step or 1))


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same; true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def ordered(parameter: Parameter) -> bool:
    """Whether neighbouring values are alike: ranges, and choices of ascending numbers."""
    values = parameter.choice
    if values is None:
        return True
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(values) and all(a < b for a, b in pairwise(numbers))


def from_unit(parameter: Parameter, place: float) -> Any:
    """The value at a place from 0 to 1, where all values take the same room on the parameter's scale."""
    number = count(parameter)
    if number is not None and not parameter.log:
        return value_at(parameter, min(int(place * number), number - 1))
    low, high = _range(parameter)
    if parameter.int is not None:
        value = math.exp(_between(math.log(low - 0.5), math.log(high + 0.5), place))
        return min(max(round(value), parameter.int[0]), parameter.int[1])
    if parameter.log:
        return tidy(parameter, math.exp(_between(math.log(low), math.log(high), place)))
    return tidy(parameter, _between(low, high, place))


def to_unit(parameter: Parameter, value: Any) -> float:
    """The place of a value, the opposite of :func:`from_unit`: the middle of the room that it takes."""
    number = count(parameter)
    if number is not None and not parameter.log:
        return (index_of(parameter, value) + 0.5) / number
    low, high = _range(parameter)
    if parameter.int is not None:
        low, high = low - 0.5, high + 0.5
    if parameter.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def tidy(parameter: Parameter, value: float) -> float:
    """A value of a continuum with few digits, inside the range."""
    low, high = _range(parameter)
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)


def active(parameter: Parameter, point: Mapping[str, Any]) -> bool:
    """Whether a point has a parameter, by the values of those before it."""
    return all(
        path in point and any(same(point[path], value) for value in values)
        for path, values in parameter.when.items()
    )


def draw(space: Mapping[str, Parameter], random: Random) -> dict[str, Any]:
    """A random point. The same number of draws for every point, so that one condition changes no other."""
    point: dict[str, Any] = {}
    for path, parameter in space.items():
        place = random.random()
        if active(parameter, point):
            point[path] = from_unit(parameter, place)
    return point


def points(space: Mapping[str, Parameter]) -> Iterator[dict[str, Any]]:
    """Every point once, the last parameter first to change. All values have to be countable."""
    return _points(list(space.items()), {})


def _points(space: list[tuple[str, Parameter]], point: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not space:
        yield dict(point)
        return
    (path, parameter), *rest = space
    if not active(parameter, point):
        yield from _points(rest, point)
        return
    for index in range(count(parameter) or 0):
        yield from _points(rest, {**point, path: value_at(parameter, index)})


def size(space: Mapping[str, Parameter], most: int) -> int | None:
    """How many points a space has; None where it is a continuum or has more than `most`."""
    counts = [count(parameter) for parameter in space.values()]
    if None in counts:
        return None
    if any(parameter.when for parameter in space.values()):
        found = sum(1 for _ in islice(points(space), most + 1))
    else:
        found = math.prod(number or 0 for number in counts)
    return found if found <= most else None


def _range(parameter: Parameter) -> tuple[float, float]:
    found = parameter.int or parameter.float
    assert found is not None, "a parameter is one of choice, int and float"
    return found


def _between(low: float, high: float, place: float) -> float:
    return low + place * (high - low)
