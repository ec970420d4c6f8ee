"""Which limit ends an attempt first, and what attempts use up."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.limits import Limit, describe, exhausted, first_limit, gpu_rate, share_of
from orchestrator.domain.states import Reason
from orchestrator.domain.transitions import after_attempt
from orchestrator.spec.models import Variant
from tests.unit.records import NOW, attempt, run, spec

HOUR = timedelta(hours=1)
GPU = Variant(pool="gpu", gpus=2)
SHARE = Variant(pool="gpu", gpus=1, gpu_memory=6 * 2**30)


def test_the_first_limit_counts() -> None:
    limited = run(spec=spec(max_duration=7200, deadline=NOW + HOUR, gpu_hours=3, placement=[GPU]))
    assert first_limit(limited, GPU, NOW) == Limit(Reason.DEADLINE, 3600.0)
    assert first_limit(limited, GPU, NOW - HOUR) == Limit(Reason.GPU_HOURS, 5400.0)
    assert first_limit(limited, Variant(pool="cpu"), NOW - 2 * HOUR) == Limit(Reason.TIME_LIMIT, 7200.0)
    assert first_limit(limited, GPU, NOW + 2 * HOUR) == Limit(Reason.DEADLINE, 0.0)
    assert first_limit(run(), GPU, NOW) is None


def test_what_was_used_before_counts() -> None:
    used = run(spec=spec(max_duration=100, gpu_hours=1), seconds_used=40.0, gpu_seconds_used=3540.0)
    assert first_limit(used, GPU, NOW) == Limit(Reason.GPU_HOURS, 30.0)
    assert first_limit(used, Variant(pool="cpu"), NOW) == Limit(Reason.TIME_LIMIT, 60.0)


def test_shares_and_gangs() -> None:
    assert gpu_rate(Variant(pool="gpu", gpus=2, ranks=3)) == 6
    assert gpu_rate(SHARE, share_of(SHARE, 24 * 2**30)) == 0.25
    assert share_of(SHARE, None) == share_of(SHARE, 0) == share_of(GPU, 2**30) == 1.0
    assert share_of(SHARE, 2**30) == 1.0


@given(first=st.floats(0, 1e6), second=st.floats(0, 1e6), gpus=st.integers(0, 8), ranks=st.integers(1, 8))
def test_use_adds_up_over_attempts(first: float, second: float, gpus: int, ranks: int) -> None:
    current = run(spec=spec(gpu_hours=1))
    for spent in (first, second):
        one = attempt(variant=Variant(pool="gpu", gpus=gpus, ranks=ranks))
        end = NOW + timedelta(seconds=spent)
        current = after_attempt(current, one, Reason.MOVED, "", end)
    assert current.seconds_used == pytest.approx(first + second, abs=1e-3)
    assert current.gpu_seconds_used == pytest.approx((first + second) * gpus * ranks, abs=0.1)


def test_a_waiting_run_that_has_met_a_limit_need_not_start() -> None:
    late = run(spec=spec(deadline=NOW))
    assert exhausted(late, NOW - timedelta(seconds=1)) is None
    assert exhausted(late, NOW) == Reason.DEADLINE
    assert exhausted(run(spec=spec(max_duration=10), seconds_used=10), NOW) == Reason.TIME_LIMIT
    spent = run(spec=spec(gpu_hours=1, placement=[GPU]), gpu_seconds_used=3600)
    assert exhausted(spent, NOW) == Reason.GPU_HOURS
    both = run(spec=spec(gpu_hours=1, placement=[GPU, Variant(pool="cpu")]), gpu_seconds_used=3600)
    assert exhausted(both, NOW) is None


def test_the_text_names_the_setting() -> None:
    limited = spec(max_duration=7200, deadline=NOW, gpu_hours=1.5)
    assert "max_duration" in describe(limited, Reason.TIME_LIMIT)
    assert "2026-03-01T22:00:00+00:00" in describe(limited, Reason.DEADLINE)
    assert "1.5 GPU-hours" in describe(limited, Reason.GPU_HOURS)
