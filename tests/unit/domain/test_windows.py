"""Windows, against a clock on the wall that is watched minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.domain.times import Cron
from orchestrator.domain.windows import (
    Window,
    both,
    closes_at,
    daily,
    either,
    first_open,
    from_cron,
    next_opening,
    open_at,
    openings,
    outside,
)
from orchestrator.spec.hours import DAYS, show_time
from tests.unit.domain.test_times import a_line, a_wall
from tests.unit.domain.wallclock import MARGIN, Wall, open_at_fires, open_daily

Bits = NDArray[np.bool_]
PARIS = "Europe/Paris"


def at(text: str) -> datetime:
    """An instant."""
    return datetime.fromisoformat(text).astimezone(UTC)


def a_window(draw: Random, wall: Wall, depth: int = 0) -> tuple[Window, Bits]:
    """A window, and the minutes at which it is open by the clock on the wall."""
    kind = draw.choice(["daily", "daily", "fires", "either", "both", "outside"][: 3 if depth == 2 else 6])
    if kind == "daily":
        begin, end = a_time(draw), a_time(draw)
        end = end if end != begin else 1440
        days = draw.sample(range(7), draw.choice([1, 3, 7]))
        until = "24:00" if end == 1440 else show_time(end)
        window = daily(show_time(begin), until, [DAYS[day] for day in days], wall.tz)
        return window, open_daily(wall, begin, end, days)
    if kind == "fires":
        (text, line), until_minute = a_line(draw), a_time(draw)
        window = from_cron(Cron.parse(text, wall.tz), show_time(until_minute))
        return window, open_at_fires(wall, line.fires(wall), until_minute)
    if kind == "outside":
        window, bits = a_window(draw, wall, depth + 1)
        return outside(window), ~bits
    parts = [a_window(draw, wall, depth + 1) for _ in range(draw.choice([1, 2, 2, 3]))]
    join = np.logical_or if kind == "either" else np.logical_and
    windows = [window for window, _ in parts]
    return (either if kind == "either" else both)(windows), join.reduce([bits for _, bits in parts])


def a_time(draw: Random) -> int:
    """A minute of the day, often one near which clocks change."""
    return draw.choice([0, 60, 90, 119, 120, 150, 180, 1380, 1439, *(draw.randrange(1440) for _ in range(9))])


def check_window(draw: Random) -> None:
    """One window, one clock, and everything that can be asked about one instant."""
    wall = a_wall(draw)
    window, bits = a_window(draw, wall)
    first, last = MARGIN + draw.randrange(4 * 1440), len(wall.instants) - MARGIN
    begin, end = wall.instants[first], wall.end
    found = painted(openings(window, begin, end), begin, last - first)
    assert np.array_equal(found, bits[first:last]), (window, begin)
    instant = begin + timedelta(seconds=draw.choice([0, 0, 1, 59]))
    is_open = bool(bits[first])
    assert open_at(window, instant) == is_open, (window, instant)
    edges = np.flatnonzero(np.diff(bits.astype(np.int8))) + 1
    up = [wall.instants[edge] for edge in edges if bits[edge] and wall.instants[edge] >= instant]
    down = [wall.instants[edge] for edge in edges if not bits[edge] and wall.instants[edge] > instant]
    assert within(next_opening(window, instant), up, end), (window, instant)
    closes = closes_at(window, instant)
    assert within(closes, down, end) if is_open else closes is None, (window, instant)
    opens = first_open(window, instant)
    assert opens == instant if is_open else within(opens, up, end), (window, instant)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_windows_are_open_when_the_clock_on_the_wall_says_so(draw: Random) -> None:
    check_window(draw)


def within(found: datetime | None, expected: list[datetime], end: datetime) -> bool:
    """What comes before the end of what is known is what was expected; the rest comes later or never."""
    if expected and expected[0] < end:
        return found == expected[0]
    return found is None or found >= end


def painted(spans: list[tuple[datetime, datetime]], begin: datetime, length: int) -> Bits:
    """Openings as minutes."""
    bits = np.zeros(length, dtype=bool)
    for opened, closed in spans:
        bits[(opened - begin) // timedelta(minutes=1) : (closed - begin) // timedelta(minutes=1)] = True
    return bits


def test_a_night_belongs_to_the_day_on_which_it_opens() -> None:
    night = daily("22:00", "07:00", "mon-fri", PARIS)
    assert open_at(night, at("2026-11-28T06:59:59+01:00"))  # Saturday morning: Friday's.
    assert not open_at(night, at("2026-11-28T07:00+01:00"))
    assert next_opening(night, at("2026-11-28T07:00+01:00")) == at("2026-11-30T22:00+01:00")
    assert not open_at(night, at("2026-11-30T03:00+01:00"))  # Monday morning: Sunday's, which has none.
    assert closes_at(night, at("2026-11-30T22:00+01:00")) == at("2026-12-01T07:00+01:00")
    assert closes_at(night, at("2026-11-30T21:59:59+01:00")) is None


def test_nights_in_which_clocks_change() -> None:
    night = daily("22:00", "07:00", None, PARIS)
    spring, autumn = at("2026-03-28T22:00+01:00"), at("2026-10-24T22:00+02:00")
    assert closes_at(night, spring) == spring + timedelta(hours=8)
    assert closes_at(night, autumn) == autumn + timedelta(hours=10)
    gap = daily("02:30", "04:00", None, PARIS)
    assert next_opening(gap, spring) == at("2026-03-29T03:00+02:00")
    assert openings(daily("02:00", "02:45", None, PARIS), spring, spring + timedelta(hours=12)) == []
    lord_howe = daily("01:45", "03:00", None, "Australia/Lord_Howe")
    first = at("2026-04-05T01:45+11:00")
    assert openings(lord_howe, first - timedelta(hours=2), first + timedelta(hours=4)) == [
        (first, first + timedelta(minutes=105))
    ]


def test_what_touches_is_one_opening() -> None:
    always = either([daily("22:00", "07:00", None, PARIS), daily("07:00", "22:00", None, PARIS)])
    now = at("2026-11-29T07:00+01:00")
    assert open_at(always, now)
    assert closes_at(always, now) is None
    assert next_opening(always, now) is None
    weekend = daily("00:00", "24:00", "sat, sun", PARIS)
    assert closes_at(weekend, at("2026-11-28T12:00+01:00")) == at("2026-11-30T00:00+01:00")
    long_night = either([daily("22:00", "07:00", "fri", PARIS), weekend])
    assert next_opening(long_night, at("2026-11-28T00:00+01:00")) == at("2026-12-04T22:00+01:00")


def test_what_is_never_open() -> None:
    never = both([daily("08:00", "12:00", None, PARIS), daily("12:00", "16:00", None, PARIS)])
    now = at("2026-11-29T12:00+01:00")
    assert not open_at(never, now)
    assert next_opening(never, now) is None
    assert first_open(either([]), now) is None
    assert closes_at(outside(either([])), now) is None
    assert open_at(outside(either([])), now)


def test_no_window_is_always() -> None:
    now = at("2026-11-29T12:00+01:00")
    assert open_at(None, now)
    assert closes_at(None, now) is None
    assert next_opening(None, now) is None
    assert first_open(None, now) == now
    assert openings(None, now, now + timedelta(hours=1)) == [(now, now + timedelta(hours=1))]
    assert openings(None, now, now) == []


def test_a_window_from_cron_closes_at_the_first_such_time() -> None:
    window = from_cron(Cron.parse("0 22 * * fri", PARIS), "07:00")
    assert openings(window, at("2026-11-27T00:00Z"), at("2026-12-04T00:00Z")) == [
        (at("2026-11-27T22:00+01:00"), at("2026-11-28T07:00+01:00"))
    ]
    whole = from_cron(Cron.parse("0 22 * * fri", PARIS), "22:00")
    assert closes_at(whole, at("2026-11-27T22:00+01:00")) == at("2026-11-28T22:00+01:00")


def test_they_say_what_they_are() -> None:
    assert str(daily("22:00", "7:00", None, PARIS)) == "22:00-07:00 (Europe/Paris)"
    night = daily("22:00", "07:00", "mon-wed,sat", "UTC")
    assert str(night) == "22:00-07:00 mon-wed, sat (UTC)"
    cron = from_cron(Cron.parse("0 22 * * *", "UTC"), "07:00")
    assert str(either([night, cron])) == ("22:00-07:00 mon-wed, sat (UTC) or `0 22 * * *` until 07:00 (UTC)")
    assert str(both([night, outside(cron)])) == (
        "22:00-07:00 mon-wed, sat (UTC) and outside `0 22 * * *` until 07:00 (UTC)"
    )


def test_equal_windows_are_equal() -> None:
    assert daily("22:00", "07:00", "mon-fri", PARIS) == daily("22:00", "7:00", ["mon-thu", "fri"], PARIS)
    assert hash(daily("22:00", "07:00", None, PARIS)) == hash(daily("22:00", "07:00", "mon-sun", PARIS))
    assert daily("22:00", "07:00", None, PARIS) != daily("22:00", "07:00", None, "UTC")


@pytest.mark.parametrize(
    ("start", "end", "days", "message"),
    [
        ("22:00", "22:00", None, "an end that differs"),
        ("24:00", "07:00", None, "expected hours such as"),
        ("22", "07:00", None, "expected hours such as"),
        ("22:00", "25:00", None, "expected hours such as"),
        ("22:00", "07:00", "mon-fry", "expected days such as mon-fri"),
        ("22:00", "07:00", "", "expected days such as mon-fri"),
    ],
)
def test_wrong_hours_are_refused(start: str, end: str, days: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        daily(start, end, days, PARIS)
