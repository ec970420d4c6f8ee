"""Cron lines in real time zones, against a clock on the wall that is watched minute by minute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.times import Cron, all_of, resolve
from orchestrator.spec.cron import MONTHS
from orchestrator.spec.hours import DAYS
from tests.unit.domain.wallclock import NIGHTS, Line, Wall, watch

CASES = [(tz, night) for tz, nights in NIGHTS.items() for night in nights]
CHANGES = [("Europe/Paris", night) for night in NIGHTS["Europe/Paris"][:2]] + [
    ("Australia/Lord_Howe", night) for night in NIGHTS["Australia/Lord_Howe"][:2]
]


def local(text: str, tz: str, after: str, count: int) -> list[str]:
    """The first fires after an instant."""
    return [fire.local for fire in islice(Cron.parse(text, tz).fires(datetime.fromisoformat(after)), count)]


def a_field(draw: Random, low: int, high: int, names: Sequence[str] = ()) -> tuple[str, frozenset[int]]:
    """A field's text and what it means."""
    first, last = sorted((draw.randint(low, high), draw.randint(low, high)))
    step, named = draw.randint(1, high), bool(names) and draw.random() < 0.5
    one, other = (names[value - low] if named else str(value) for value in (first, last))
    everything = range(low, high + 1)
    forms: list[tuple[str, Iterable[int]]] = [
        ("*", everything),
        (f"*/{step}", everything[::step]),
        (one, [first]),
        (f"{one},{other}", [first, last]),
        (f"{one}-{other}", range(first, last + 1)),
        (f"{one}-{other}/{step}", range(first, last + 1, step)),
        (f"{one}/{step}", range(first, high + 1, step)),
    ]
    text, values = draw.choice(forms)
    return text, frozenset(values)


def a_line(draw: Random) -> tuple[str, Line]:
    """A cron line and what it means: mostly on every day, so that it fires in ten days."""
    minute, hour = a_field(draw, 0, 59), a_field(draw, 0, 23)
    day, month, week = (
        a_field(draw, low, high, names) if draw.random() < 0.3 else ("*", frozenset(range(low, high + 1)))
        for low, high, names in ((1, 31, ()), (1, 12, MONTHS), (0, 6, (DAYS[6], *DAYS[:6])))
    )
    both = day[0].startswith("*") or week[0].startswith("*")
    if both and min(day[1]) > 28:
        return a_line(draw)
    real = minute[0].startswith("*") or hour[0].startswith("*")
    weekdays = frozenset((number - 1) % 7 for number in week[1])
    text = " ".join(part[0] for part in (minute, hour, day, month, week))
    return text, Line(minute[1], hour[1], day[1], month[1], weekdays, both, real)


def a_wall(draw: Random) -> Wall:
    """Half of all are of the nights in which clocks change in Paris and on Lord Howe Island."""
    return watch(*draw.choice(CHANGES if draw.random() < 0.5 else CASES))


def check_fires(draw: Random) -> None:
    """One line, one clock, and the fires after one instant."""
    wall, (text, meant) = a_wall(draw), a_line(draw)
    after = wall.begin + timedelta(minutes=draw.randrange(4 * 1440), seconds=draw.randrange(60))
    places = (wall.instants[place] for place in meant.fires(wall))
    expected = [at for at in places if after < at < wall.end][:30]
    found = []
    for fire in Cron.parse(text, wall.tz).fires(after):
        if fire.at >= wall.end or len(found) == 30:
            break
        found.append(fire)
    assert [fire.at for fire in found] == expected, (text, wall.tz, after)
    assert len({fire.local for fire in found}) == len(found), (text, wall.tz, after)
    assert [datetime.fromisoformat(fire.local) for fire in found] == expected


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_fires_are_those_of_the_clock_on_the_wall(draw: Random) -> None:
    check_fires(draw)


def test_a_time_that_comes_twice_fires_once() -> None:
    expected = ["2026-10-24T02:30+02:00", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]
    assert local("30 2 * * *", "Europe/Paris", "2026-10-24T00:00Z", 3) == expected
    assert local("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00Z", 2) == [
        "2026-04-05T01:45+11:00",
        "2026-04-06T01:45+10:30",
    ]


def test_a_time_that_is_left_out_fires_once_at_the_end_of_the_gap() -> None:
    expected = ["2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]
    assert local("30 2 * * *", "Europe/Paris", "2026-03-28T00:00Z", 3) == expected
    assert local("15,45 2,3 * * *", "Europe/Paris", "2026-03-29T00:00Z", 3) == [
        "2026-03-29T03:00+02:00",
        "2026-03-29T03:15+02:00",
        "2026-03-29T03:45+02:00",
    ]
    assert local("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00Z", 2) == [
        "2018-11-04T01:00-02:00",
        "2018-11-05T00:00-02:00",
    ]
    assert local("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00Z", 1) == ["2011-12-31T00:00+14:00"]


def test_an_hourly_line_stays_hourly() -> None:
    assert local("0 * * * *", "Europe/Paris", "2026-10-24T23:30Z", 3) == [
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
    ]
    assert local("0 * * * *", "Europe/Paris", "2026-03-29T00:00Z", 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-29T04:00+02:00",
    ]
    assert local("*/20 2 * * *", "Europe/Paris", "2026-03-28T20:00Z", 1) == ["2026-03-30T02:00+02:00"]


def test_days_of_the_month_and_of_the_week() -> None:
    either = local("0 12 13 * fri", "UTC", "2026-11-01T00:00Z", 5)
    assert [text[8:10] for text in either] == ["06", "13", "20", "27", "04"]
    assert local("0 12 13 * *", "UTC", "2026-11-01T00:00Z", 2) == [
        "2026-11-13T12:00+00:00",
        "2026-12-13T12:00+00:00",
    ]
    assert local("0 0 * * 7", "UTC", "2026-11-28T12:00Z", 1) == local(
        "0 0 * * sun", "UTC", "2026-11-28T12:00Z", 1
    )
    assert local("0 0 * * sat-sun", "UTC", "2026-11-27T12:00Z", 2) == [
        "2026-11-28T00:00+00:00",
        "2026-11-29T00:00+00:00",
    ]


def test_rare_dates_come_and_impossible_ones_are_refused() -> None:
    assert local("0 0 29 2 *", "UTC", "2096-03-01T00:00Z", 1) == ["2104-02-29T00:00+00:00"]
    with pytest.raises(ValueError, match="none of its months has such a day"):
        Cron.parse("0 0 31 feb,apr *", "UTC")
    # 30 February or a Monday of February: Mondays are left.
    assert Cron.parse("0 0 30 2 mon", "UTC").after(datetime(2026, 1, 1, tzinfo=UTC)) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 22 * *", "5 fields of cron"),
        ("0 22 * * * *", "5 fields of cron"),
        ("60 * * * *", r"in the minute '60': expected 0 to 59, not '60'"),
        ("* 24 * * *", "in the hour '24': expected 0 to 23"),
        ("* * 0 * *", "in the day of the month '0': expected 1 to 31"),
        ("* * * 13 *", "in the month '13': expected 1 to 12 or jan to dec"),
        ("* * * * 8", "in the day of the week '8': expected 0 to 7 or sun to sat"),
        ("* * * * fri-mon", "a range that runs forward, not 'fri-mon'"),
        ("*/0 * * * *", "a step of 1 or more after the '/', not '0'"),
        ("1,,2 * * * *", "expected 0 to 59, not ''"),
        ("٣ * * * *", "expected 0 to 59"),
        ("9" * 400 + " * * * *", "in the minute '9{40}'"),
    ],
)
def test_wrong_lines_say_which_field(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cron.parse(text, "UTC")


@pytest.mark.parametrize("tz", ["", "Mars/Base", "../../etc/passwd", "Europe", "x" * 5000])
def test_unknown_zones_are_refused(tz: str) -> None:
    with pytest.raises(ValueError, match="expected a time zone such as Europe/Paris"):
        Cron.parse("* * * * *", tz)


def test_equal_lines_are_equal() -> None:
    assert Cron.parse("0  22 * * mon ", "UTC") == Cron.parse("0 22 * * mon", "UTC")
    assert hash(Cron.parse("0 22 * * *", "UTC")) == hash(Cron.parse("0 22 * * *", "UTC"))
    assert Cron.parse("0 22 * * *", "UTC") != Cron.parse("0 22 * * *", "Europe/Paris")


def test_local_times_that_come_twice_or_never() -> None:
    paris = ZoneInfo("Europe/Paris")
    twice, never = datetime(2026, 10, 25, 2, 30), datetime(2026, 3, 29, 2, 30)
    assert [at.hour for at in all_of(twice, paris)] == [0, 1]
    assert all_of(never, paris) == []
    assert resolve(never, paris) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert resolve(twice, paris) == all_of(twice, paris)[0]
