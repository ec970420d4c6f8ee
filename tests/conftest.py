"""How tests are dealt out where several processes run them (`pytest -n 2 --dist loadgroup`)."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_ONE_BY_ONE = ("tests/e2e", "tests/integration/test_gateway", "tests/integration/test_stack")
"""Tests of whole clusters, which would get into each other's way."""
_COMPILERS = ("tests/integration/test_compiled",)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs the clusters, from the beginning; the others run everything else, a file at a time."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_place)


def _group(item: pytest.Item) -> str:
    path = item.path.relative_to(ROOT).as_posix()
    if path.startswith(_ONE_BY_ONE):
        return "clusters"
    return "compilers" if path.startswith(_COMPILERS) else path


def _place(item: pytest.Item) -> int:
    """What takes longest comes first, so that no process is busy when the others have ended."""
    group = _group(item)
    return 0 if group == "clusters" else 1 if group == "compilers" or "/trainer/" in group else 2
