"""From a YAML file to a sweep's spec, or to everything that is wrong with it.

A sweep's file is one with `base` or `space` at its top. Short forms are written out in the tree, so that
every mistake has its place: a list for a parameter means `choice`, and a text for `base` is the path of a run
spec, which stands in its own file with its own lines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from orchestrator.errors import Problem, SpecError
from orchestrator.spec.checks import merge_errors
from orchestrator.spec.loading import (
    LoadedSpec,
    in_order,
    parse_spec,
    python_value,
    read_mapping,
    read_text,
    with_new,
)
from orchestrator.spec.models import RunSpec
from orchestrator.spec.overrides import apply_override
from orchestrator.spec.problems import dotted, message_of, problems_of
from orchestrator.spec.shape import shape_of
from orchestrator.spec.sweep import Parameter, SweepSpec
from orchestrator.spec.tree import Mapping, Node, Scalar, Sequence, printable, read_tree
from orchestrator.spec.trial_checks import path_of, wrong_settings, wrong_values

_SWEEP_KEYS: Final = frozenset({"base", "space"})


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep's spec and where it came from."""

    spec: SweepSpec
    source: str
    """The file's text as the user wrote it, without the overrides and the file that `base` names."""
    path: Path | None = None
    overrides: tuple[str, ...] = ()


def load_sweep(path: Path, overrides: Items[str] = ()) -> LoadedSweep:
    """Read and check a sweep's file, with `--set` overrides put in first.

    Raises SpecError with every problem found, also those of the file that `base` names.
    """
    source = read_text(path)
    return LoadedSweep(_parse(source, str(path), overrides, path.parent), source, path, tuple(overrides))


def load_any(path: Path, overrides: Items[str] = ()) -> LoadedSpec | LoadedSweep:
    """Read and check the file of a run or of a sweep, whichever it is. Raises SpecError."""
    source = read_text(path)
    if is_sweep(source, str(path)):
        return LoadedSweep(_parse(source, str(path), overrides, path.parent), source, path, tuple(overrides))
    return LoadedSpec(parse_spec(source, str(path), overrides), source, path, tuple(overrides))


def parse_sweep(text: str, file_name: str = "sweep", overrides: Items[str] = ()) -> SweepSpec:
    """The sweep that a YAML text describes; a path in `base` is relative to where the program runs.

    Raises SpecError with every problem found, in the file's order.
    """
    return _parse(text, file_name, overrides, Path())


def is_sweep(text: str, file_name: str) -> bool:
    """Whether a text is meant as a sweep. Raises SpecError where it cannot be read."""
    root, _ = read_tree(text.removeprefix("\ufeff"), file_name)
    return isinstance(root, Mapping) and not _SWEEP_KEYS.isdisjoint(root.values)


def check_sweep(sweep: SweepSpec) -> None:
    """Check every value and every combination of values of a sweep that did not come from a file.

    Loading does it, too; a sweep that comes from somewhere else has to be checked before it is accepted.

    Raises:
        SpecError: not every trial would be accepted as a run.
    """
    wrong = wrong_values(sweep.base, sweep.space)
    if not wrong:
        return
    shape = shape_of(SweepSpec)
    problems: list[Problem] = []
    for detail in merge_errors("SweepSpec", [], wrong).errors(include_url=False):
        path = tuple(part for part in detail["loc"] if part != "[key]")
        problems.append(Problem(sweep.name, 0, 0, dotted(path), message_of(detail, path, shape)))
    raise SpecError(problems)


def _parse(text: str, file_name: str, overrides: Items[str], folder: Path) -> SweepSpec:
    root, problems = read_mapping(text, file_name)
    shape = shape_of(SweepSpec)
    first = [one for one in overrides if one.partition("=")[0].strip() == "base"]
    for override in first:
        problems += apply_override(root, override, shape)
    of_file = _read_base(root, folder)
    _write_out(root)
    for override in overrides:
        if override not in first:
            problems += apply_override(root, override, shape)
    _write_out(root)
    try:
        sweep = _checked(python_value(root, shape))
    except ValidationError as error:
        if isinstance(root.values.get("base"), Mapping):
            of_file = with_new(of_file, _problems_of_base(root))
        found = [one for one in problems_of(error, root, shape) if one.key != "base" or not of_file]
        problems = with_new(problems, with_new(of_file, found))
    if problems:
        raise SpecError(in_order(problems, file_name))
    return sweep


def _read_base(root: Mapping, folder: Path) -> list[Problem]:
    """Put the file that `base` names where its path stands. Returns what keeps it from being read."""
    base = root.values.get("base")
    if not isinstance(base, Scalar) or not isinstance(base.value, str):
        return []
    file = folder / os.path.expanduser(base.value)  # unlike Path's it leaves a user who does not exist
    try:
        tree, problems = read_mapping(read_text(file), printable(str(file), 300))
    except SpecError as error:
        return [
            one if one.line else base.mark.problem("base", f"{printable(one.file, 300)}: {one.message}")
            for one in error.problems
        ]
    root.values["base"] = tree
    return problems


def _problems_of_base(root: Mapping) -> list[Problem]:
    """What is wrong with a base that stands in a file of its own, in the words of that file."""
    base = root.values["base"]
    if base.mark.file == root.mark.file:
        return []
    shape = shape_of(RunSpec)
    try:
        RunSpec.model_validate({"name": "base", **python_value(base, shape)})
    except ValidationError as error:
        return problems_of(error, base, shape)
    return []


def _write_out(root: Mapping) -> None:
    """Short forms in the space as long ones, and values for places of free text as they were written."""
    space = root.values.get("space")
    if not isinstance(space, Mapping):
        return
    for text, parameter in space.values.items():
        if isinstance(parameter, Sequence):
            parameter = Mapping(parameter.mark, {"choice": parameter}, {"choice": parameter.mark})
            space.values[text] = parameter
        place = shape_of(RunSpec).at(path_of(text))
        if place and place.kind == "free-text" and isinstance(parameter, Mapping):
            _quote(parameter.values.get("choice"))


def _quote(choice: Node | None) -> None:
    for item in choice.items if isinstance(choice, Sequence) else []:
        if isinstance(item, Scalar) and item.value is not None:
            item.plain = False


def _checked(data: dict[str, Any]) -> SweepSpec:
    """The sweep, or everything that is wrong with it: its values are checked as far as they can be."""
    try:
        sweep = SweepSpec.model_validate(data)
    except ValidationError as error:
        raise merge_errors("SweepSpec", error.errors(include_url=False), _wrong_in_parts(data)) from None
    if wrong := wrong_values(sweep.base, sweep.space):
        raise merge_errors("SweepSpec", [], wrong)
    return sweep


def _wrong_in_parts(data: dict[str, Any]) -> list[InitErrorDetails]:
    """What is wrong with the values of parameters that are right by themselves, of a sweep that is not."""
    base, space = data.get("base"), data.get("space")
    if not isinstance(base, dict) or not isinstance(space, dict):
        return []
    parameters: dict[str, Parameter] = {}
    for text, value in space.items():
        with suppress(ValidationError):
            parameters[text] = Parameter.model_validate(value)
    try:
        return wrong_values(RunSpec.model_validate({"name": "base", **base}), parameters)
    except ValidationError:
        return wrong_settings(parameters)
