"""A clock on the wall, watched minute by minute: what cron lines and windows are checked against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

MINUTE = timedelta(minutes=1)
DAYS = 10
"""How long a clock is watched."""
MARGIN = 3 * 1440
"""Minutes at both ends of it that are watched only to know what is going on."""

# Nights on which clocks change, in every kind that there is, and some in which they do not.
NIGHTS = {
    "Europe/Paris": ("2026-03-29", "2026-10-25", "2026-06-10"),
    "Australia/Lord_Howe": ("2026-04-05", "2026-10-04", "2026-12-31"),
    "America/Sao_Paulo": ("2018-11-04", "2018-02-18"),
    "America/Havana": ("2026-03-08", "2026-11-01"),
    "America/St_Johns": ("2006-04-02", "2006-10-29", "2026-03-08"),
    "America/Scoresbysund": ("2025-03-29", "2025-10-25"),
    "Pacific/Apia": ("2011-12-30", "2011-04-02"),
    "Africa/Casablanca": ("2026-02-15", "2026-03-22"),
    "Asia/Kathmandu": ("1986-01-01", "2026-02-28"),
    "Pacific/Chatham": ("2026-04-05", "2026-09-27"),
    "Asia/Pyongyang": ("2015-08-15", "2018-05-05"),
    "America/Caracas": ("2007-12-09", "2016-05-01"),
    "Antarctica/Troll": ("2026-03-29", "2026-10-25"),
    "Asia/Kolkata": ("2028-02-29",),
    "UTC": ("2026-12-31",),
}


@dataclass(frozen=True, eq=False)
class Wall:
    """What a clock showed for ten days."""

    tz: str
    instants: list[datetime]
    """UTC, a minute apart."""
    shown: NDArray[np.int64]
    """What the clock showed then: minutes since 1970 on its own face."""
    face: NDArray[np.int64]
    """Every minute that is on its face in these days, shown or left out, in order."""
    due: NDArray[np.int64]
    """When each of them had come or been passed over for the first time: places in `instants`."""

    @property
    def begin(self) -> datetime:
        """From here on everything is known."""
        return self.instants[MARGIN]

    @property
    def end(self) -> datetime:
        """Up to here."""
        return self.instants[-MARGIN]

    def due_at(self, face_minute: int) -> int:
        """The place of the instant at which a minute on the face was due."""
        return int(self.due[face_minute - int(self.face[0])])


@lru_cache(maxsize=64)
def watch(tz: str, night: str) -> Wall:
    """Look at a clock every minute from five days before a night."""
    zone = ZoneInfo(tz)
    first = datetime.fromisoformat(night).replace(tzinfo=UTC) - timedelta(days=DAYS / 2)
    instants = [first + place * MINUTE for place in range(DAYS * 1440)]
    epoch = datetime(1970, 1, 1)
    shown = [(at.astimezone(zone).replace(tzinfo=None) - epoch) // MINUTE for at in instants]
    face, due, latest = [], [], shown[0] - 1
    for place, minute in enumerate(shown):
        for passed in range(latest + 1, minute + 1):
            face.append(passed)
            due.append(place)
        latest = max(latest, minute)
    return Wall(tz, instants, np.array(shown), np.array(face), np.array(due))


def split(face: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Minute, hour, day of the month, month and day of the week (Monday 0) of minutes on the face."""
    days = face // 1440
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    of_month = (dates - months).astype(np.int64) + 1
    return face % 60, face // 60 % 24, of_month, months.astype(np.int64) % 12 + 1, (days + 3) % 7


@dataclass(frozen=True)
class Line:
    """A cron line as it was meant."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """Monday 0."""
    both_days: bool
    real_time: bool

    def fires(self, wall: Wall) -> list[int]:
        """The places of the instants at which it fires."""
        face = wall.shown if self.real_time else wall.face
        minute, hour, day, month, weekday = split(face)
        number, week = _in(self.days, day), _in(self.weekdays, weekday)
        date = (number & week) if self.both_days else (number | week)
        fits = np.flatnonzero(
            _in(self.minutes, minute) & _in(self.hours, hour) & _in(self.months, month) & date
        )
        places = fits if self.real_time else wall.due[fits]
        return sorted({int(place) for place in places})


def _in(values: Iterable[int], of: NDArray[np.int64]) -> NDArray[np.bool_]:
    table = np.zeros(64, dtype=bool)
    table[list(values)] = True
    return table[of]


def open_daily(wall: Wall, begin: int, end: int, days: Iterable[int]) -> NDArray[np.bool_]:
    """At which minutes it is open from `begin` to `end` (minutes of a day) on the days on which it opens."""
    is_open = np.zeros(len(wall.instants), dtype=bool)
    for day in range(int(wall.face[0]) // 1440 + 1, int(wall.face[-1]) // 1440 - 1):
        if (day + 3) % 7 in days:
            last = day if end > begin else day + 1
            is_open[wall.due_at(day * 1440 + begin) : wall.due_at(last * 1440 + end)] = True
    return is_open


def open_at_fires(wall: Wall, fires: Sequence[int], until: int) -> NDArray[np.bool_]:
    """At which minutes it is open from each fire to the first `until` (minute of the day) after it."""
    is_open = np.zeros(len(wall.instants), dtype=bool)
    days = range(int(wall.face[0]) // 1440 + 1, int(wall.face[-1]) // 1440)
    ends = [wall.due_at(day * 1440 + until) for day in days]
    for fire in fires:
        is_open[fire : min((end for end in ends if end > fire), default=len(is_open))] = True
    return is_open
