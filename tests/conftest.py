"""How tests are dealt out where several processes run them (`pytest -n 2 --no-loadscope-reorder`)."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_CLUSTERS = (
    (
        *("tests/integration/test_gang", "tests/integration/test_gateway", "tests/integration/test_stack"),
        *("tests/e2e/test_sc", "tests/e2e/test_sw", "tests/e2e/test_t", "tests/e2e/test_w"),
    ),
    ("tests/e2e",),
)
"""Tests of whole clusters: of each list one at a time, lest they get into each other's way."""
_LONG = ("tests/integration/test_compiled", "tests/unit/trainer", "tests/integration/test_trainer")


class _Dealing(LoadScopeScheduling):  # type: ignore[misc]
    """Each list of clusters is run by one process; the others run everything else, a file at a time."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        which = _clusters(path)
        return path if which is None else f"clusters {which}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Dealing:
    """Called where several processes were asked for."""
    return _Dealing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is busy when the others have ended."""
    items.sort(key=lambda item: _place(item.nodeid))


def _place(nodeid: str) -> int:
    which = _clusters(nodeid)
    return which if which is not None else len(_CLUSTERS) + (not nodeid.startswith(_LONG))


def _clusters(nodeid: str) -> int | None:
    """Which list of clusters a test belongs to."""
    return next((which for which, some in enumerate(_CLUSTERS) if nodeid.startswith(some)), None)
