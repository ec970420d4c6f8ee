"""From a YAML file to a run's spec, or to everything that is wrong with it."""

from __future__ import annotations

import stat
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import Problem, SpecError
from orchestrator.spec.models import RunSpec
from orchestrator.spec.overrides import apply_override
from orchestrator.spec.problems import problems_of, shown
from orchestrator.spec.shape import Shape, shape_of
from orchestrator.spec.tree import MAX_BYTES, MAX_PROBLEMS, Mapping, Node, Scalar, Sequence, read_tree


@dataclass(frozen=True)
class LoadedSpec:
    """A spec and where it came from."""

    spec: RunSpec
    source: str
    """The file's text as the user wrote it, without the overrides."""
    path: Path | None = None
    overrides: tuple[str, ...] = ()


def load_spec(path: Path, overrides: Items[str] = ()) -> LoadedSpec:
    """Read and check a spec file, with `--set` overrides put in first.

    Raises SpecError with every problem found, also where there is no readable file.
    """
    source = read_text(path)
    return LoadedSpec(parse_spec(source, str(path), overrides), source, path, tuple(overrides))


def parse_spec(text: str, file_name: str = "spec", overrides: Items[str] = ()) -> RunSpec:
    """The spec that a YAML text describes. Raises SpecError with every problem found, in the file's order."""
    root, problems = read_mapping(text, file_name)
    shape = shape_of(RunSpec)
    for override in overrides:
        problems += apply_override(root, override, shape)
    _write_out_window(root)
    try:
        spec = RunSpec.model_validate(python_value(root, shape))
    except ValidationError as error:
        problems = with_new(problems, problems_of(error, root, shape))
    if problems:
        raise SpecError(in_order(problems, file_name))
    return spec


def read_mapping(text: str, file_name: str) -> tuple[Mapping, list[Problem]]:
    """The tree of a spec's text, and what is not allowed in it. Raises SpecError where there is none."""
    root, broken = read_tree(text.removeprefix("\ufeff"), file_name)
    if not isinstance(root, Mapping):
        raise SpecError([*broken, _not_a_spec(root, file_name)])
    return root, broken


def with_new(known: list[Problem], more: list[Problem]) -> list[Problem]:
    """All of the first, and of the others those that are about other places."""
    places = {(problem.file, problem.line, problem.column) for problem in known if problem.line}
    return known + [one for one in more if (one.file, one.line, one.column) not in places]


def _write_out_window(root: Mapping) -> None:
    """Give the short forms of `window` the form of the long one, so that mistakes have their places."""
    node = root.values.get("window")
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return
    items: list[Node] = node.items if isinstance(node, Sequence) else [node]
    for number, item in enumerate(items):
        if isinstance(item, Scalar):
            items[number] = Mapping(item.mark, {"hours": item}, {"hours": item.mark})
    root.values["window"] = Sequence(node.mark, items)


def in_order(problems: list[Problem], file_name: str) -> list[Problem]:
    """The file's problems by line, then what has no line, such as overrides; of very many the first."""
    problems = sorted(problems, key=lambda p: (p.file != file_name, p.line == 0, p.line, p.column))
    if len(problems) <= MAX_PROBLEMS:
        return problems
    return [*problems[:MAX_PROBLEMS], Problem(file_name, 0, 0, "", "and more problems after these")]


def python_value(node: Node, shape: Shape | None) -> Any:
    """The plain Python value of a tree, as the place where it stands wants it.

    Free text, such as an argument or a tag, stays as it was written (`0010`, `1e-3`). A truth value where
    a number is expected stays text, because Python would count it as 0 or 1.
    """
    if isinstance(node, Mapping):
        return {
            key: python_value(value, shape.child(key) if shape else None)
            for key, value in node.values.items()
        }
    if isinstance(node, Sequence):
        item = shape.item if shape and shape.kind == "list" else None
        return [python_value(value, item) for value in node.items]
    value = node.value
    if shape and shape.kind == "free-text" and value is not None:
        return node.text
    return node.text if shape and shape.kind == "number" and isinstance(value, bool) else value


def _not_a_spec(root: Node | None, file_name: str) -> Problem:
    if root is None or (isinstance(root, Scalar) and root.value is None):
        return Problem(file_name, 0, 0, "", "expected a spec, got an empty file")
    got = (
        f"a list of {len(root.items)}"
        if isinstance(root, Sequence)
        else shown(root.value if isinstance(root, Scalar) else None)
    )
    return root.mark.problem("", f"expected a mapping such as `name: my-run`, got {got}")


def read_text(path: Path) -> str:
    """The text of a spec's file. Raises SpecError where it cannot be one."""

    def wrong(message: str, line: int = 0, column: int = 0) -> SpecError:
        return SpecError([Problem(str(path), line, column, "", message)])

    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise wrong("expected a file, got a directory")
        if not stat.S_ISREG(mode):
            raise wrong("expected a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise wrong("no such file") from error
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise wrong(f"cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise wrong(f"expected at most {MAX_BYTES // 1024} KiB: is this a spec?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - before.rfind(b"\n")
        raise wrong("expected UTF-8 text: is this a binary file?", before.count(b"\n") + 1, column) from error
