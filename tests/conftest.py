"""How tests are dealt out where several processes run them (`pytest -n 3 --no-loadscope-reorder`)."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_CLUSTERS = {
    "stacks": ("tests/e2e/",),
    "clusters": (
        "tests/integration/test_gang",
        "tests/integration/test_gateway",
        "tests/integration/test_stack",
    ),
}
"""Tests of whole clusters: of each of these groups, one process runs all, one by one."""
_LONG = ("tests/integration/test_compiled", "tests/unit/trainer", "tests/integration/test_trainer")


class _Dealing(LoadScopeScheduling):  # type: ignore[misc]
    """One process runs a group of clusters; the others run everything else, a file at a time."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid) or nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Dealing:
    """Called where several processes were asked for."""
    return _Dealing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is busy when the others have ended."""
    items.sort(key=lambda item: _place(item.nodeid))


def _group(nodeid: str) -> str:
    return next((name for name, paths in _CLUSTERS.items() if nodeid.startswith(paths)), "")


def _place(nodeid: str) -> int:
    places = {name: place for place, name in enumerate(_CLUSTERS)}
    return places.get(_group(nodeid), len(places) + (not nodeid.startswith(_LONG)))
