"""YAML as a tree that remembers where everything was written.

The tree is built from the parser's event stream, so limits hold before anything is composed: a file of
a million brackets ends at the depth limit, and aliases are never expanded. Scalars follow YAML 1.2's core
schema: `1e-3` is a number, `no` and `on` are text, and there are no dates or octal surprises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml

from orchestrator.errors import Problem, SpecError

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 32
MAX_NODES: Final = 5000
MAX_PROBLEMS: Final = 100

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_INT: Final = re.compile(r"[-+]?[0-9]{1,100}|0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}", re.ASCII)
_FLOAT: Final = re.compile(
    r"[-+]?(?:\.[0-9]{1,100}|[0-9]{1,100}(?:\.[0-9]{0,100})?)(?:[eE][-+]?[0-9]{1,10})?", re.ASCII
)
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in an input. Line and column count from 1; 0 where the input has none."""

    file: str
    line: int = 0
    column: int = 0

    def problem(self, key: str, message: str) -> Problem:
        """A problem at this place."""
        return Problem(self.file, self.line, self.column, key, message)


@dataclass(slots=True)
class Scalar:
    """One value. `plain` tells that it was written without quotes, so that it may be a number."""

    mark: Mark
    text: str
    plain: bool

    @property
    def value(self) -> bool | int | float | str | None:
        """What YAML 1.2's core schema makes of it."""
        return plain_value(self.text) if self.plain else self.text


@dataclass(slots=True)
class Sequence:
    """A list."""

    mark: Mark
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping:
    """A mapping; keys are always text. `marks` says where each key was written."""

    mark: Mark
    values: dict[str, Node] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)


Node: TypeAlias = Scalar | Sequence | Mapping


def plain_value(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar by YAML 1.2's core schema; absurdly long numbers stay text."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def read_tree(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """The tree of one YAML document, None where there is no document, and what is not allowed in it.

    Raises SpecError for what makes going on pointless: no YAML, too large, too deep, too many values.
    """
    _check_text(text, file)
    reader = _Reader(file)
    try:
        return reader.read(yaml.parse(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        raise SpecError([*reader.problems, _syntax_problem(error, text, file)]) from error


def _check_text(text: str, file: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise SpecError(
            [_at_offset(text, error.start, file, "expected UTF-8 text, got half of a surrogate pair")]
        ) from error
    if size > MAX_BYTES:
        raise SpecError(
            [Problem(file, 0, 0, "", f"expected at most {MAX_BYTES // 1024} KiB, got {size // 1024} KiB")]
        )


def _at_offset(text: str, offset: int, file: str, message: str) -> Problem:
    before = text[:offset]
    return Problem(file, before.count("\n") + 1, offset - before.rfind("\n"), "", message)


def _syntax_problem(error: yaml.YAMLError, text: str, file: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        bad = re.search("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
        return _at_offset(
            text, bad.start() if bad else 0, file, "expected text, got a control character: is this YAML?"
        )
    what = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    message = f"not valid YAML: {what}" + (f" ({context})" if context else "")
    if "nesting depth" in what:  # newer libyamls count too, and end before the events that we count
        message = f"nested more than {MAX_DEPTH} deep"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return Problem(file, mark.line + 1 if mark else 0, mark.column + 1 if mark else 0, "", message)


class _Reader:
    """Builds the tree from events; goes on after what is forbidden but harmless, to report all of it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._nodes = 0

    def read(self, events: Iterator[Any]) -> tuple[Node | None, list[Problem]]:
        """The first document; a second one is a problem."""
        root: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._note(event, "expected one document, got a second one")
                    break
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, events, 1, "")
        return root, self.problems

    def _node(self, event: Any, events: Iterator[Any], depth: int, path: str) -> Node:
        self._count(event, depth)
        mark = self._mark(event)
        if isinstance(event, yaml.AliasEvent):
            self._note(event, f"aliases such as *{event.anchor} are not allowed: write the value out", path)
            return Scalar(mark, f"*{event.anchor}", False)
        if event.anchor is not None:
            self._note(
                event,
                f"anchors such as &{event.anchor} are not allowed: write the value where it is needed",
                path,
            )
        if event.tag is not None:
            self._note(event, f"tags such as {_short(event.tag)} are not allowed: write a plain value", path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(mark, events, depth, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(mark, events, depth, path)
        return Scalar(mark, event.value, bool(event.implicit[0]))

    def _sequence(self, mark: Mark, events: Iterator[Any], depth: int, path: str) -> Sequence:
        sequence = Sequence(mark)
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            sequence.items.append(self._node(event, events, depth + 1, join(path, len(sequence.items))))
        return sequence

    def _mapping(self, mark: Mark, events: Iterator[Any], depth: int, path: str) -> Mapping:
        mapping = Mapping(mark)
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._node(event, events, depth + 1, path)
            name = key.text if isinstance(key, Scalar) else ""
            value = self._node(next(events), events, depth + 1, join(path, name))
            if not isinstance(key, Scalar):
                self._note(event, "expected a word as key, got a list or a mapping", path)
            elif name == "<<" and key.plain:
                self._note(event, "merge keys (<<) are not allowed: write the settings out", path)
            elif isinstance(event, yaml.AliasEvent):
                continue
            elif name in mapping.values:
                first = mapping.marks[name].line
                self._note(event, f"this key is there twice; the first is on line {first}", join(path, name))
            else:
                mapping.values[name] = value
                mapping.marks[name] = key.mark
        return mapping

    def _count(self, event: Any, depth: int) -> None:
        self._nodes += 1
        if depth > MAX_DEPTH:
            self._stop(event, f"nested more than {MAX_DEPTH} deep")
        if self._nodes > MAX_NODES:
            self._stop(event, f"expected at most {MAX_NODES} values")

    def _stop(self, event: Any, message: str) -> None:
        raise SpecError([*self.problems, self._mark(event).problem("", message)])

    def _note(self, event: Any, message: str, path: str = "") -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(self._mark(event).problem(path, message))

    def _mark(self, event: Any) -> Mark:
        return Mark(self.file, event.start_mark.line + 1, event.start_mark.column + 1)


def join(path: str, part: str | int) -> str:
    """A dotted path with one more part, cut where a key is absurdly long."""
    return f"{path}.{_short(str(part))}" if path else _short(str(part))


def _short(text: str) -> str:
    return printable(text, 60)


def printable(text: str, most: int) -> str:
    """Text from a user that fits into one line of a message and does nothing to a terminal."""
    text = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
