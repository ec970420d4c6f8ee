"""What may stand where in a spec, read off the pydantic models, in words for people."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.spec import checks
from orchestrator.spec.values import Words

_UNSAID: Final = 1e9
"""Upper limits from here on only guard against overflow, and are said only when they are met."""

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Shape:
    """One place in a spec: what is expected there, and what is below it."""

    kind: Literal["model", "list", "map", "text", "free-text", "number", "truth", "any"]
    expected: str
    fields: dict[str, Shape] = field(default_factory=dict)
    item: Shape | None = None

    def child(self, part: str | int) -> Shape | None:
        """The place one step below; None where the spec has no such place."""
        return self.fields.get(part) if self.kind == "model" and isinstance(part, str) else self.item

    def at(self, path: Path) -> Shape | None:
        """The place that a path from here leads to."""
        shape: Shape | None = self
        for part in path:
            shape = shape.child(part) if shape else None
        return shape

    def places(self, prefix: Path = ()) -> Iterator[tuple[Path, Shape]]:
        """Every named place below, with `N` for a place in a list."""
        for name, shape in self.fields.items():
            yield (*prefix, name), shape
            yield from shape.places((*prefix, name))
        if self.kind == "list" and self.item:
            yield from self.item.places((*prefix, "N"))


@cache
def shape_of(model: type[BaseModel]) -> Shape:
    """The shape of what a model describes, such as a whole spec."""
    fields = {name: _field(info) for name, info in model.model_fields.items()}
    keys = list(fields)
    shown = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
    return Shape("model", f"a mapping with keys such as {shown}", fields)


def _field(info: FieldInfo) -> Shape:
    if checks.check_overrides in (getattr(data, "func", None) for data in info.metadata):
        return shape_of(checks.TrainerOverrides)
    return _annotation(info.annotation, list(info.metadata))


def _annotation(annotation: Any, metadata: list[Any]) -> Shape:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner: list[Any] = []
        for data in args[1:]:
            inner += data.metadata if isinstance(data, FieldInfo) else [data]
        return _annotation(args[0], [*inner, *metadata])
    words = next((data for data in metadata if isinstance(data, Words)), None)
    if origin in (Union, types.UnionType):
        some = [arg for arg in args if arg is not types.NoneType]
        if words and set(some) >= {bool, int, str}:
            return Shape("any", words.text)
        return _annotation(some[0], metadata)
    shape = _bare(annotation, origin, args, metadata)
    if words is None:
        return shape
    kind: Any = "free-text" if words.free else shape.kind
    return Shape(kind, words.text, shape.fields, shape.item)


def _bare(annotation: Any, origin: Any, args: tuple[Any, ...], metadata: list[Any]) -> Shape:
    if origin is Literal:
        return Shape("text", _choices([str(arg) for arg in args]))
    if origin is tuple:
        return Shape("list", f"a list of {len(args)} numbers", item=_annotation(args[0], []))
    if origin is list:
        item = _annotation(args[0], [])
        return Shape("list", f"a list of {_plural(item)}", item=item)
    if origin is dict:
        item = _annotation(args[1], [])
        return Shape("map", f"a mapping from names to {_plural(item)}", item=item)
    if annotation is bool:
        return Shape("truth", "true or false")
    if annotation is int or annotation is float:
        return Shape("number", _number(annotation, metadata))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return shape_of(annotation)
    return Shape("text", "text")


def _plural(item: Shape) -> str:
    return "mappings" if item.kind == "model" else "texts"


def _choices(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def _number(kind: type, metadata: list[Any]) -> str:
    """`a whole number above 0`, `a number from 0 to below 1`."""
    limits: dict[str, Any] = {}
    for data in metadata:
        for constraint in getattr(data, "metadata", [data]):
            found = {name: getattr(constraint, name, None) for name in ("gt", "ge", "lt", "le")}
            limits |= {name: limit for name, limit in found.items() if limit is not None}
    below, most = limits.get("lt"), limits.get("le", _UNSAID)
    if "gt" in limits:
        low, to = f"above {limits['gt']:g}", "and"
    elif "ge" in limits:
        low, to = f"from {limits['ge']:g}", "to"
    else:
        low, to = "", ""
    high = (
        f"{to} below {below:g}" if below is not None else f"{to} at most {most:g}" if most < _UNSAID else ""
    )
    if low.startswith("from"):
        low = low if high else f"of at least {limits['ge']:g}"
        high = high.replace("to at most", "to")
    return " ".join(word for word in ("a whole number" if kind is int else "a number", low, high) if word)
