"""Thousands of cron lines and windows against clocks on the wall that are watched minute by minute.

`make soak` looks at 100,000.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from tests.unit.domain.test_times import check_fires
from tests.unit.domain.test_windows import check_window

SAMPLES = 100_000 if os.environ.get("ORCH_SOAK") else 10_000
"""Three quarters are cron lines, the others windows."""

pytestmark = pytest.mark.timeout(24 * 3600)


@pytest.mark.parametrize("part", range(2))
def test_lines(part: int) -> None:
    draw = Random(part)
    for _ in range(SAMPLES * 3 // 8):
        check_fires(draw)


@pytest.mark.parametrize("part", range(2))
def test_windows(part: int) -> None:
    draw = Random(part)
    for _ in range(SAMPLES // 8):
        check_window(draw)
