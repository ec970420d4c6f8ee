"""What the tests of specs share."""

from __future__ import annotations

import pytest

from orchestrator.errors import Problem, SpecError
from orchestrator.spec import RunSpec, parse_spec

MINIMAL = "name: a\ntrainer: {}\n"


def problems(text: str, *overrides: str) -> list[Problem]:
    """What is wrong with a spec; fails where nothing is."""
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "s.yaml", overrides)
    return caught.value.problems


def only(text: str, *overrides: str) -> Problem:
    """The one thing that is wrong with a spec."""
    found = problems(text, *overrides)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def parse(text: str, *overrides: str) -> RunSpec:
    """A spec that must be right."""
    return parse_spec(text, "s.yaml", overrides)
