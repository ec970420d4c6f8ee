"""`--set trainer.max_steps=100`: single values put into a spec's tree before it is checked."""

from __future__ import annotations

from orchestrator.errors import Problem, SpecError
from orchestrator.spec.shape import Path, Shape
from orchestrator.spec.tree import Mapping, Mark, Node, Scalar, Sequence, printable, read_tree


def apply_override(root: Mapping, text: str, shape: Shape) -> list[Problem]:
    """Put one `path=value`, the value in YAML, into a tree of this shape. Returns what is wrong with it."""
    mark = Mark(f"--set {printable(text, 80)}")
    path_text, equals, value_text = text.partition("=")
    if not equals or not path_text.strip():
        return [mark.problem("", "expected KEY=VALUE, such as trainer.max_steps=100")]
    try:
        value, problems = read_tree(value_text, mark.file)
    except SpecError as error:
        return [Mark(mark.file).problem("", problem.message) for problem in error.problems]
    if problems:
        return [Mark(mark.file).problem("", problem.message) for problem in problems]
    leaf = _unplaced(value, mark) if value else Scalar(mark, "", True)
    parts = split_path(path_text.strip(), shape)
    if not all(parts):
        return [mark.problem("", "expected names separated by single dots, such as checkpoint.every_steps")]
    wrong = _put(root, parts, leaf, shape)
    return [mark.problem("", wrong)] if wrong else []


def split_path(text: str, root: Shape) -> list[str]:
    """The parts of a dotted path below a root.

    Below a mapping of free names, such as tags, the rest is one name, up to a setting of what stands there:
    `space.trainer.n_layer.choice` has the parts `space`, `trainer.n_layer` and `choice`.
    """
    parts: list[str] = []
    shape: Shape | None = root
    rest = text
    while rest:
        if shape and shape.kind == "map":
            name, rest = _free_name(rest, shape.item)
            parts.append(name)
            shape = shape.item
            continue
        part, dot, rest = rest.partition(".")
        parts.append(part)
        if dot and not rest:
            parts.append("")
        shape = shape.child(int(part) if part.isdecimal() else part) if shape else None
    return parts


def _free_name(text: str, item: Shape | None) -> tuple[str, str]:
    """A name in a mapping of free names, and what follows it."""
    words = text.split(".")
    for number, word in enumerate(words[1:], 1):
        if item and word in item.fields:
            return ".".join(words[:number]), ".".join(words[number:])
    return text, ""


def _put(root: Mapping, parts: list[str], leaf: Node, shape: Shape) -> str | None:
    """Put the leaf where the path leads, making what is missing on the way; answers what is in the way."""
    node: Node = root
    mark = leaf.mark
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        done = ".".join(parts[:number])
        if isinstance(node, Sequence):
            if not part.isdecimal() or len(part) > 4 or int(part) > len(node.items):
                return f"expected a number from 0 to {len(node.items)} after `{done}`, got '{part}'"
            index = int(part)
            fresh = leaf if last else _container(parts[: number + 1], mark, shape)
            if index == len(node.items):
                node.items.append(fresh)
            elif last or _empty(node.items[index]):
                node.items[index] = fresh
            node = node.items[index]
        elif isinstance(node, Mapping):
            fresh = leaf if last else _container(parts[: number + 1], mark, shape)
            if last or part not in node.values or _empty(node.values[part]):
                node.values[part] = fresh
                node.marks[part] = mark
            node = node.values[part]
        else:
            return f"`{done}` is a single value, so there is no `{part}` in it"
    return None


def _container(parts: list[str], mark: Mark, root: Shape) -> Node:
    path: Path = tuple(int(part) if part.isdecimal() else part for part in parts)
    shape = root.at(path)
    return Sequence(mark) if shape and shape.kind == "list" else Mapping(mark)


def _empty(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _unplaced(node: Node, mark: Mark) -> Node:
    """The same value with the override as its place."""
    node.mark = mark
    if isinstance(node, Mapping):
        node.marks = dict.fromkeys(node.marks, mark)
        for child in node.values.values():
            _unplaced(child, mark)
    elif isinstance(node, Sequence):
        for child in node.items:
            _unplaced(child, mark)
    return node
