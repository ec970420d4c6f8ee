"""A report of a sweep."""

from __future__ import annotations

import pytest

from orchestrator.analysis.report import Report
from tests.report_demo import sweep_report


@pytest.fixture(scope="module")
def report() -> Report:
    return sweep_report()
