"""Local times and cron in real time zones. Pure.

Local times come twice when clocks go back, and not at all when they go forward. What names a local time means
the first of two, and the end of the gap where there is none; docs/nights.md says what follows for cron.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import product
from zoneinfo import ZoneInfo

from orchestrator.spec.cron import CronFields, parse_cron
from orchestrator.spec.hours import zone

DAY = timedelta(days=1)
_NEAR = timedelta(hours=36)
"""A day without a change of the clocks this long before and after it is found by adding alone."""
_SECOND = timedelta(seconds=1)
_YEARS = 50
"""A cron line that does not fire for so long never does: 29 February on a Monday comes after 40 at most."""


def resolve(local: datetime, tz: ZoneInfo) -> datetime:
    """The instant (UTC) of a naive local time: the first of two, or the end of the gap that it falls into."""
    first = local.replace(tzinfo=tz).astimezone(UTC)
    if first.astimezone(tz).replace(tzinfo=None) == local:
        return first
    before, after = local.replace(tzinfo=tz, fold=1).astimezone(UTC), first
    offset = after.astimezone(tz).utcoffset()
    while after - before > _SECOND:
        middle = before + timedelta(seconds=(after - before) // _SECOND // 2)
        if middle.astimezone(tz).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after


def all_of(local: datetime, tz: ZoneInfo) -> list[datetime]:
    """Every instant (UTC) at which a clock there shows this naive local time: none, one or two."""
    found = []
    for fold in (0, 1):
        instant = local.replace(tzinfo=tz, fold=fold).astimezone(UTC)
        if instant.astimezone(tz).replace(tzinfo=None) == local and instant not in found:
            found.append(instant)
    return found


@lru_cache(maxsize=16384)
def steady_offset(day: date, tz: ZoneInfo) -> timedelta | None:
    """The zone's offset from UTC where it is the same on the whole day and some time around it."""
    noon = datetime.combine(day, time(12), UTC)
    first, middle, last = (at.astimezone(tz).utcoffset() for at in (noon - _NEAR, noon, noon + _NEAR))
    return first if first == middle == last else None


def at_minute(day: date, minutes: int, tz: ZoneInfo) -> datetime:
    """The instant (UTC) that is so many minutes after a date's midnight on the clock there."""
    local = datetime.combine(day, time()) + timedelta(minutes=minutes)
    offset = steady_offset(day, tz)
    return resolve(local, tz) if offset is None else (local - offset).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Fire:
    """One due time."""

    at: datetime
    """UTC."""
    local: str
    """Local time with its offset from UTC, such as 2026-10-25T02:30+02:00: unique among a line's fires."""


@dataclass(frozen=True)
class Cron:
    """A cron line in a time zone. Make it with :meth:`parse`."""

    text: str
    tz: str
    fields: CronFields = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, tz: str) -> Cron:
        """Raises ValueError, with a message for people, for a wrong line and for an unknown time zone."""
        fields = parse_cron(text)
        zone(tz)
        return cls(" ".join(text.split()), tz, fields)

    def after(self, instant: datetime) -> datetime | None:
        """The first fire (UTC) strictly after an aware instant; None where there is none any more."""
        tz = zone(self.tz)
        best: datetime | None = None
        for day in self._dates(instant.astimezone(tz).date() - DAY):
            if best is not None and day > best.astimezone(tz).date() + DAY:
                break
            found = self._first_on(day, instant, tz)
            best = found if best is None or (found is not None and found < best) else best
        return best

    def fires(self, after: datetime) -> Iterator[Fire]:
        """Every fire strictly after an aware instant, in order."""
        at = self.after(after)
        while at is not None:
            yield Fire(at, at.astimezone(zone(self.tz)).isoformat(timespec="minutes"))
            at = self.after(at)

    def _dates(self, begin: date) -> Iterator[date]:
        """The dates from `begin` on that fit, for 50 years."""
        day, last = begin, min(begin.year + _YEARS, date.max.year - 1)
        while day.year <= last:
            if day.month not in self.fields.months:
                day = (day.replace(day=1) + 32 * DAY).replace(day=1)
                continue
            if self._fits(day):
                yield day
            day += DAY

    def _fits(self, day: date) -> bool:
        number, weekday = day.day in self.fields.days, day.weekday() in self.fields.weekdays
        return (number and weekday) if self.fields.both_days else (number or weekday)

    def _first_on(self, day: date, instant: datetime, tz: ZoneInfo) -> datetime | None:
        """The first fire after the instant that a date which fits has."""
        offset = steady_offset(day, tz)
        if offset is None:
            instants = _changing_day(self, day)
            place = bisect_right(instants, instant)
            return instants[place] if place < len(instants) else None
        local = instant.astimezone(UTC).replace(tzinfo=None) + offset
        minutes = -1 if local.date() < day else local.hour * 60 + local.minute
        found = None if local.date() > day else self._next_minute(minutes)
        return None if found is None else at_minute(day, found, tz)

    def _next_minute(self, after: int) -> int | None:
        """The first minute of a day, counted from midnight, that fits and comes after this one."""
        hour, minute = divmod(after + 1, 60)
        hours, minutes = self.fields.hours, self.fields.minutes
        place = bisect_left(hours, hour)
        if place < len(hours) and hours[place] == hour and minute <= minutes[-1]:
            return hour * 60 + minutes[bisect_left(minutes, minute)]
        place = bisect_right(hours, hour) if place < len(hours) and hours[place] == hour else place
        return hours[place] * 60 + minutes[0] if place < len(hours) else None


@lru_cache(maxsize=1024)
def _changing_day(cron: Cron, day: date) -> tuple[datetime, ...]:
    """The fires of a date near a change of the clocks, in order."""
    tz, found = zone(cron.tz), set()
    for hour, minute in product(cron.fields.hours, cron.fields.minutes):
        local = datetime.combine(day, time(hour, minute))
        found.update(all_of(local, tz) if cron.fields.real_time else [resolve(local, tz)])
    return tuple(sorted(found))
