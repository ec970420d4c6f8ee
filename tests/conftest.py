"""How tests are dealt out where several processes run them (`pytest -n 2 --no-loadscope-reorder`)."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_ONE_BY_ONE = (
    "tests/e2e",
    "tests/integration/test_gang",
    "tests/integration/test_gateway",
    "tests/integration/test_stack",
)
"""Tests of whole clusters, which would get into each other's way."""
_LONG = ("tests/integration/test_compiled", "tests/unit/trainer", "tests/integration/test_trainer")


class _Dealing(LoadScopeScheduling):  # type: ignore[misc]
    """One process runs all clusters; the others run everything else, a file at a time."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "clusters" if path.startswith(_ONE_BY_ONE) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Dealing:
    """Called where several processes were asked for."""
    return _Dealing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is busy when the others have ended."""
    items.sort(key=lambda item: _place(item.nodeid))


def _place(nodeid: str) -> int:
    return 0 if nodeid.startswith(_ONE_BY_ONE) else 1 if nodeid.startswith(_LONG) else 2
