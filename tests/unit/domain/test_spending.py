from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.energy import KWH_J, Energy, EnergySource, in_words, joined
from orchestrator.domain.limits import describe, exhausted, joules_left
from orchestrator.domain.records import Member
from orchestrator.domain.spending import spend
from orchestrator.domain.states import Reason
from tests.unit.records import NOW, attempt, run, spec

MEASURED, ESTIMATED, MIXED = EnergySource
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Nightly:
    """1 EUR before NOW + 2 min, 3 EUR after that."""

    currency: str = "EUR"

    def cost(self, kwh: float, begin: datetime, end: datetime) -> float:
        assert begin <= end
        change = min(max(NOW + 2 * MINUTE, begin), end)
        cheap = (change - begin) / (end - begin) if end > begin else 1.0
        return kwh * (cheap + 3 * (1 - cheap))


GANG = attempt(members=(Member("ray-b", "b"), Member("ray-c", "c")))


def test_what_a_rank_says_again_changes_nothing() -> None:
    heard = {0: Energy(KWH_J, MEASURED)}
    first = spend(run(), attempt(), heard, NOW + MINUTE, Nightly())
    assert (first[0].joules_used, first[0].energy_source, first[0].cost) == (KWH_J, MEASURED, 1.0)
    assert (first[1].joules, first[1].energy_at, first[1].cost) == (KWH_J, NOW + MINUTE, 1.0)
    assert spend(*first, heard, NOW + 9 * MINUTE, Nightly()) == first
    assert spend(*first, {0: Energy(5.0, MEASURED)}, NOW + 9 * MINUTE, Nightly()) == first
    assert spend(*first, {}, NOW + 9 * MINUTE, Nightly()) == first


def test_the_cost_is_that_of_the_time_since_the_last_word() -> None:
    one = spend(run(), attempt(), {0: Energy(KWH_J, MEASURED)}, NOW + MINUTE, Nightly())
    two = spend(*one, {0: Energy(3 * KWH_J, MEASURED)}, NOW + 3 * MINUTE, Nightly())
    assert two[1].cost == two[0].cost == pytest.approx(1 + 2 * (0.5 + 1.5))
    late = spend(run(), attempt(), {0: Energy(KWH_J, MEASURED)}, NOW + 4 * MINUTE, Nightly())
    assert late[1].cost == pytest.approx(0.5 + 1.5)
    turned_back = spend(*two, {0: Energy(4 * KWH_J, MEASURED)}, NOW, Nightly())
    assert turned_back[1].cost == pytest.approx(6.0)


def test_without_a_tariff_nothing_has_a_cost() -> None:
    one = spend(run(), attempt(), {0: Energy(KWH_J, MEASURED)}, NOW + MINUTE, None)
    assert (one[0].cost, one[1].cost) == (None, None)
    two = spend(*one, {0: Energy(2 * KWH_J, MEASURED)}, NOW + 2 * MINUTE, Nightly())
    assert (two[0].cost, two[1].cost) == (1.0, 1.0)


def test_a_run_has_used_what_its_attempts_have() -> None:
    after, _ = spend(run(), attempt(), {0: Energy(30.0, MEASURED)}, NOW, None)
    second = attempt(number=2)
    after, second = spend(after, second, {0: Energy(10.0, ESTIMATED)}, NOW, None)
    assert (second.joules, second.energy_source) == (10.0, ESTIMATED)
    assert (after.joules_used, after.energy_source) == (40.0, MIXED)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1e9), st.booleans()), max_size=30), st.floats(0, 1e9)
)
def test_a_gang_uses_the_sum_of_its_ranks(beats: list[tuple[int, float, bool]], before: float) -> None:
    """Whatever comes late, twice or not at all, and whether several are heard together."""
    current, gang = run(joules_used=before), GANG
    heard: dict[int, Energy] = {}
    highest = [0.0, 0.0, 0.0]
    for rank, joules, at_once in beats:
        heard[rank] = Energy(joules, MEASURED)
        highest[rank] = max(highest[rank], joules) if at_once else highest[rank]
        if at_once:
            for other, energy in heard.items():
                highest[other] = max(highest[other], energy.joules)
            current, gang = spend(current, gang, heard, NOW, None)
    assert gang.joules == pytest.approx(sum(highest), abs=1e-3)
    assert [member.joules for member in gang.members] == pytest.approx(highest[1:], abs=1e-3)
    assert current.joules_used == pytest.approx(before + sum(highest), abs=1e-3)


def test_a_controller_that_starts_anew_adds_what_it_hears_to_what_is_written() -> None:
    all_ranks = {rank: Energy(100.0, MEASURED) for rank in range(3)}
    current, gang = spend(run(), GANG, all_ranks, NOW, None)
    current, gang = spend(current, gang, {1: Energy(150.0, ESTIMATED)}, NOW, None)
    assert (gang.joules, gang.energy_source, current.joules_used) == (350.0, MIXED, 350.0)


def test_a_limit_of_energy() -> None:
    limited = run(spec=spec(kwh=0.5), joules_used=0.4 * KWH_J)
    assert joules_left(limited) == pytest.approx(0.1 * KWH_J)
    assert joules_left(run()) is None
    assert exhausted(limited, NOW) is None
    spent = replace(limited, joules_used=0.6 * KWH_J)
    assert (joules_left(spent), exhausted(spent, NOW)) == (0.0, Reason.ENERGY)
    assert describe(spent.spec, Reason.ENERGY) == "it has used up its 0.5 kWh (kwh)"


def test_sources_of_a_sum() -> None:
    assert joined() is joined(None, None) is None
    assert joined(None, MEASURED, MEASURED) is MEASURED
    assert joined(ESTIMATED, None) is ESTIMATED
    assert joined(ESTIMATED, MEASURED) is joined(MIXED, MIXED) is joined(MIXED, MEASURED) is MIXED


@pytest.mark.parametrize(
    ("kwh", "source", "words"),
    [
        (12.345, MEASURED, "12.35 kWh"),
        (0.25, ESTIMATED, "250.0 Wh (estimated)"),
        (0.00123, MIXED, "1.23 Wh (mixed)"),
    ],
)
def test_words(kwh: float, source: EnergySource, words: str) -> None:
    assert in_words(kwh, source) == words
