"""Pydantic's errors as problems with a place in the file, in words for people."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import Problem
from orchestrator.spec.shape import Path, Shape
from orchestrator.spec.tree import MAX_PROBLEMS, Mapping, Mark, Node, Scalar, Sequence, join

_ELSEWHERE: Final = {
    "max_iters": "max_steps",
    "warmup_iters": "warmup_steps",
    "lr_decay_iters": "lr_decay_steps",
    "eval_iters": "eval_batches",
    "lr": "learning_rate",
    "context_length": "block_size",
    "steps": "max_steps",
    "cmd": "command",
    "args": "argv",
}
"""Names that other programs use -> ours."""


def problems_of(error: ValidationError, root: Node, shape: Shape) -> list[Problem]:
    """Every error in a tree of this shape as a problem, in the file's order; of very many only the first."""
    placed: list[tuple[Mark, Path, ErrorDetails]] = []
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        at_key = detail["type"] == "extra_forbidden"
        if location and location[-1] == "[key]" and not at_key:
            location, at_key = location[:-1], True
        placed.append((_place(root, location, at_key), location, detail))
    placed.sort(key=lambda item: (item[0].file != root.mark.file, item[0].line, item[0].column))
    first = placed[: MAX_PROBLEMS + 1]
    return [mark.problem(dotted(path), message_of(detail, path, shape)) for mark, path, detail in first]


def message_of(detail: ErrorDetails, path: Path, shape: Shape) -> str:
    """What one of pydantic's errors at this path of a spec of this shape says to a person."""
    if detail["type"] == "extra_forbidden":
        *parent, name = path
        return "unknown key" + suggestion(shape, tuple(parent), str(name))
    return _MESSAGES.get(detail["type"], _own_words)(detail, path, shape.at(path))


def dotted(path: Path) -> str:
    """`placement.0.pool`."""
    text = ""
    for part in path:
        text = join(text, part)
    return text


def _place(root: Node, path: Path, at_key: bool) -> Mark:
    """Where the value is, or its key where it has several lines or none, or the innermost thing around it."""
    mark, node = root.mark, root
    for number, part in enumerate(path):
        last = number == len(path) - 1
        if isinstance(node, Mapping) and part in node.values:
            child = node.values[str(part)]
            key = node.marks[str(part)]
            written = isinstance(child, Scalar) and child.text != ""
            mark = child.mark if last and written and not at_key else key
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            child = node.items[part]
            mark = child.mark
        else:
            return mark
        node = child
    return mark


# ------------------------------------------------------------------ messages


def _expected(detail: ErrorDetails, path: Path, wanted: Shape | None) -> str:
    value = detail["input"]
    words = wanted.expected if wanted else detail["msg"]
    hint = ""
    if wanted and wanted.kind == "text" and isinstance(value, bool | int | float):
        hint = f"; put it in quotes if it is meant as text: '{shown(value)}'"
    if detail["type"] == "less_than_equal" and "at most" not in words and " to " not in words:
        words += f" and at most {detail['ctx']['le']}"
    if value is None:
        hint = "; leave the key out to get the default" if wanted and len(path) else ""
    return f"expected {words}, got {shown(value)}{hint}"


def _missing(detail: ErrorDetails, path: Path, wanted: Shape | None) -> str:
    return f"missing; expected {wanted.expected}" if wanted else "missing"


def _own_words(detail: ErrorDetails, path: Path, wanted: Shape | None) -> str:
    return detail["msg"].removeprefix("Value error, ")


_SAID_AS_EXPECTED: Final = (
    *("bool_parsing", "bool_type", "dict_type", "finite_number", "float_parsing", "float_type"),
    *("greater_than", "greater_than_equal", "int_from_float", "int_parsing", "int_parsing_size", "int_type"),
    *("less_than", "less_than_equal", "list_type", "literal_error", "mapping_type", "model_attributes_type"),
    *("model_type", "string_too_long", "string_too_short", "string_type", "too_long", "too_short"),
)
_MESSAGES: Final[dict[str, Callable[[ErrorDetails, Path, Shape | None], str]]] = {
    **dict.fromkeys(_SAID_AS_EXPECTED, _expected),
    "missing": _missing,
}


def shown(value: Any) -> str:
    """A value as a person would name it, cut to 40 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    return str(value)[:40]


# ------------------------------------------------------------------ did you mean


def suggestion(shape: Shape, parent: Path, name: str) -> str:
    """`; did you mean ...?` for an unknown key below `parent`, or where the key belongs, or what there is."""
    around = shape.at(parent)
    if around is None or not around.fields:
        return ""
    here = [key for key in around.fields if key]
    ours = _ELSEWHERE.get(name.lower(), name)
    if len(name) <= 60:
        near = [ours] if ours in here else difflib.get_close_matches(name, here, 1, 0.75)
        near = near or _belongs(shape, parent, ours) or difflib.get_close_matches(name, here, 1, 0.6)
        if near:
            return f"; {near[0]}" if " " in near[0] else f"; did you mean `{near[0]}`?"
    return f"; known here: {', '.join(here)}"


def _belongs(shape: Shape, parent: Path, name: str) -> list[str]:
    """Where else in the spec a key of exactly this name belongs."""
    places = [path for path, _ in shape.places() if path[-1] == name]
    if not places:
        return []
    numbered = tuple("N" if isinstance(part, int) else part for part in parent)
    best = max(places, key=lambda path: (_common(path, numbered), -len(path)))
    where = dotted(
        tuple(parent[i] if i < len(parent) and numbered[i] == p else p for i, p in enumerate(best[:-1]))
    )
    return [f"`{name}` belongs {f'under `{where}`' if where else 'at the top level'}"]


def _common(one: Path, other: Path) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
