"""A spool in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.spool import Spool
from tests.clocks import TurnedClock


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def spool(tmp_path: Path, clock: TurnedClock) -> Iterator[Spool]:
    spool = Spool(tmp_path / "points.db", clock)
    yield spool
    spool.close()
