"""Prices by the hour, and what is paid."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from orchestrator.domain.tariff import Tariff
from orchestrator.domain.windows import open_at
from orchestrator.spec.hours import DAYS, show_time
from tests.unit.domain.test_times import a_wall
from tests.unit.domain.wallclock import MARGIN, open_daily

PARIS = "Europe/Paris"
TARIFF = Tariff.of(
    [("22:00-06:00", None, 0.17), ("00:00-24:00", "sat-sun", 0.20)], default=0.30, currency="EUR", tz=PARIS
)


def at(text: str) -> datetime:
    """An instant in Paris in winter."""
    return datetime.fromisoformat(f"{text}+01:00").astimezone(UTC)


def test_the_first_band_that_holds_counts() -> None:
    assert TARIFF.price(at("2026-11-27T21:59")) == 0.30
    assert TARIFF.price(at("2026-11-27T22:00")) == 0.17
    assert TARIFF.price(at("2026-11-28T05:59")) == 0.17
    assert TARIFF.price(at("2026-11-28T06:00")) == 0.20
    assert TARIFF.price(at("2026-11-30T06:00")) == 0.30


def test_a_cost_is_taken_over_the_hours_that_it_spans() -> None:
    begin = at("2026-11-27T20:00")
    assert TARIFF.mean_price(begin, begin + timedelta(hours=4)) == pytest.approx((0.30 + 0.17) / 2)
    assert TARIFF.cost(10, begin, begin + timedelta(hours=12)) == pytest.approx(
        10 * (2 * 0.30 + 8 * 0.17 + 2 * 0.20) / 12
    )
    assert TARIFF.mean_price(begin, begin) == 0.30
    assert [price for _, _, price in TARIFF.pieces(begin, begin + timedelta(hours=12))] == [
        0.30,
        0.17,
        0.17,
        0.20,
    ]


def test_cheap_hours_are_a_window() -> None:
    assert TARIFF.cheaper_than(0.30) is None
    assert str(TARIFF.cheaper_than(0.17)) == "22:00-06:00 (Europe/Paris)"
    cheap = TARIFF.cheaper_than(0.20)
    assert open_at(cheap, at("2026-11-28T12:00"))
    assert not open_at(cheap, at("2026-11-27T12:00"))
    never = TARIFF.cheaper_than(0.10)
    assert never is not None
    assert not open_at(never, at("2026-11-28T03:00"))


@pytest.mark.parametrize("part", range(2))
def test_prices_are_those_of_the_clock_on_the_wall(part: int) -> None:
    draw = Random(part)
    for _ in range(250):
        check_prices(draw)


def check_prices(draw: Random) -> None:
    """One tariff, one clock, and what is paid in one span of time."""
    wall, prices, written = a_wall(draw), {}, []
    for place in range(draw.randrange(5)):
        begin, end = draw.sample(range(1441), 2) if place else (0, 1440)
        begin, end = (0, 1) if begin == 1440 else (begin, end)
        days, price = draw.sample(range(7), draw.choice([1, 3, 7])), draw.choice([0.1, 0.2, 0.3, 0.4])
        until = "24:00" if end == 1440 else show_time(end)
        written.append((f"{show_time(begin)}-{until}", ",".join(DAYS[day] for day in days), price))
        for minute in open_daily(wall, begin, end, days).nonzero()[0]:
            prices.setdefault(int(minute), price)
    tariff = Tariff.of(written, default=0.25, currency="EUR", tz=wall.tz)
    first, length = MARGIN + draw.randrange(1440), draw.randint(1, 2880)
    span = [prices.get(minute, 0.25) for minute in range(first, first + length)]
    begin_at, end_at = wall.instants[first], wall.instants[first + length]
    assert tariff.price(begin_at) == span[0], (tariff, begin_at)
    assert tariff.mean_price(begin_at, end_at) == pytest.approx(sum(span) / length), (tariff, begin_at)
    limit = draw.choice([0.05, 0.1, 0.25, 0.3, 0.4])
    cheap = tariff.cheaper_than(limit)
    for minute in range(0, length, 97):
        assert open_at(cheap, wall.instants[first + minute]) == (span[minute] <= limit), (tariff, limit)
