"""Windows: the times at which something may happen, as intervals [open, close) of instants. Pure.

A window is made of openings that recur (:func:`daily`, :func:`from_cron`) and of other windows:
:func:`either` of them, :func:`both`, or :func:`outside` of one. None stands for "always". What asks
about the same day of the same window is answered from what was worked out first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache, reduce
from itertools import takewhile

from orchestrator.domain.times import DAY, Cron, at_minute
from orchestrator.spec.hours import EVERY_DAY, parse_days, parse_hours, parse_time, show_days, show_time, zone

Span = tuple[datetime, datetime]
"""An interval [open, close) of UTC instants."""

FAR = datetime(9999, 1, 1, tzinfo=UTC)
"""The close of what never closes."""
_YEAR = timedelta(days=400)
"""What stays open for longer never closes. What opens by days of the week does so within this, or never."""
_LEAP = timedelta(days=9 * 366)
"""What opens by cron does so within this, or never: 29 February comes after eight years at most."""
_EDGE = timedelta(seconds=1)
_LONGEST = timedelta(days=3)
"""No opening of :func:`from_cron` is longer, not even across a date that a country left out."""


@dataclass(frozen=True)
class Daily:
    """Opens at the same local time on the same days of every week."""

    begin: int
    """Minutes after midnight."""
    end: int
    """The same; one that is not later than `begin` is the next day's."""
    days: frozenset[int]
    """The days on which it opens; Monday is 0."""
    tz: str

    def __str__(self) -> str:
        days = show_days(self.days)
        return f"{show_time(self.begin)}-{show_time(self.end)}{days and ' '}{days} ({self.tz})"

    def openings(self, start: datetime) -> Iterator[Span]:
        """Those that close after `start`, in order."""
        tz = zone(self.tz)
        for day in _dates(start.astimezone(tz).date() - 2 * DAY):
            if day.weekday() in self.days:
                last = day if self.end > self.begin else day + DAY
                span = at_minute(day, self.begin, tz), at_minute(last, self.end, tz)
                if span[1] > span[0] and span[1] > start:
                    yield span


@dataclass(frozen=True)
class AtFires:
    """Opens at every fire of a cron line, until a local time."""

    cron: Cron
    until: int
    """Minutes after midnight: it closes at the first such time after the fire."""

    def __str__(self) -> str:
        return f"`{self.cron.text}` until {show_time(self.until)} ({self.cron.tz})"

    def openings(self, start: datetime) -> Iterator[Span]:
        """Those that close after `start`, in order."""
        tz, at = zone(self.cron.tz), self.cron.after(start - _LONGEST)
        while at is not None:
            begin = at
            days = _dates(begin.astimezone(tz).date() - DAY)
            close = next(end for end in (at_minute(day, self.until, tz) for day in days) if end > begin)
            if close > start:
                yield begin, close
            # What fires while it is open closes at the same time.
            at = self.cron.after(close - _EDGE)


class Mix(StrEnum):
    """How a window follows from its parts."""

    EITHER = "either"
    BOTH = "both"
    OUTSIDE = "outside"


@dataclass(frozen=True)
class Window:
    """A set of instants. Made by the functions of this module; equal where it is made in the same way."""

    mix: Mix
    parts: tuple[Daily | AtFires | Window, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.mix, self.parts)))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        parts = [f"({part})" if _is_mixed(part) else str(part) for part in self.parts]
        if self.mix is Mix.OUTSIDE:
            return f"outside {parts[0]}"
        return (" and " if self.mix is Mix.BOTH else " or ").join(parts) or "never"


def _is_mixed(part: Daily | AtFires | Window) -> bool:
    return isinstance(part, Window) and len(part.parts) > 1


def daily(start: str, end: str, days: Iterable[str] | str | None, tz: str) -> Window:
    """From `start` to `end` on the days on which it opens: `22:00` to `07:00` goes on into the next day.

    `days` is such as `mon-fri`; None is every day. Raises ValueError with a message for people.
    """
    begin, finish = parse_hours(f"{start}-{end}")
    zone(tz)
    which = EVERY_DAY if days is None else parse_days(days if isinstance(days, str) else list(days))
    return Window(Mix.EITHER, (Daily(begin, finish, which, tz),))


def from_cron(cron: Cron, until: str) -> Window:
    """Opens at each fire and closes at the first local time `until` after it. Raises ValueError."""
    return Window(Mix.EITHER, (AtFires(cron, parse_time(until)),))


def either(windows: Iterable[Window]) -> Window:
    """Open where one of them is. What touches is one opening. Of none: never open."""
    return _mixed(Mix.EITHER, windows)


def both(windows: Iterable[Window]) -> Window:
    """Open where all of them are; there is at least one."""
    return _mixed(Mix.BOTH, windows)


def outside(window: Window) -> Window:
    """Open where the window is not."""
    return Window(Mix.OUTSIDE, (window,))


def _mixed(mix: Mix, windows: Iterable[Window]) -> Window:
    parts = tuple(windows)
    return parts[0] if len(parts) == 1 else Window(mix, parts)


def open_at(window: Window | None, instant: datetime) -> bool:
    """Whether it is open at an aware instant."""
    return window is None or any(begin <= instant < end for begin, end in _near(window, instant))


def closes_at(window: Window | None, instant: datetime) -> datetime | None:
    """The end of the opening that holds the instant; None where it is not open, or never closes."""
    if window is None:
        return None
    ends = (end for begin, end in _near(window, instant) if begin <= instant < end)
    end = next(ends, FAR)
    return None if end == FAR else end


def next_opening(window: Window | None, instant: datetime) -> datetime | None:
    """The first begin of an opening at the instant or after it; None where there is none any more."""
    if window is None:
        return None
    return next((begin for begin, _ in _near(window, instant) if begin >= instant), None)


def first_open(window: Window | None, instant: datetime) -> datetime | None:
    """The first instant at or after this one at which it is open; None where there is none any more."""
    return instant if open_at(window, instant) else next_opening(window, instant)


def openings(window: Window | None, begin: datetime, end: datetime) -> list[Span]:
    """What of [begin, end) it is open, in order, cut off at both ends."""
    if window is None:
        return [(begin, end)] if begin < end else []
    found = []
    for opened, closed in _spans(window, begin, end):
        if opened >= end:
            break
        found.append((opened, min(closed, end)))
    return found


def _near(window: Window, instant: datetime) -> tuple[Span, ...]:
    """The openings of the instant's UTC day and the next one after it."""
    return _of_day(window, instant.astimezone(UTC).date())


@lru_cache(maxsize=8192)
def _of_day(window: Window, day: date) -> tuple[Span, ...]:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    found: list[Span] = []
    horizon = start + min(FAR - start, _LEAP if _by_cron(window) else _YEAR)
    # A second earlier, so that what begins at midnight is told from what goes on.
    for span in _spans(window, start - _EDGE, horizon):
        found.append(span)
        if span[0] >= start + DAY:
            break
    return tuple(found)


def _spans(window: Daily | AtFires | Window, start: datetime, horizon: datetime) -> Iterator[Span]:
    """What of [start, horizon) it is open: in order, apart from each other, lazily. Ends may be later."""
    if not isinstance(window, Window):
        return _joined(takewhile(lambda span: span[0] < horizon, window.openings(start)), start)
    parts = [_spans(part, start, horizon) for part in window.parts]
    if window.mix is Mix.OUTSIDE:
        return _gaps(parts[0], start, horizon)
    return _joined(heapq.merge(*parts), start) if window.mix is Mix.EITHER else reduce(_common, parts)


def _by_cron(window: Daily | AtFires | Window) -> bool:
    if isinstance(window, Window):
        return any(_by_cron(part) for part in window.parts)
    return isinstance(window, AtFires)


def _joined(spans: Iterable[Span], start: datetime) -> Iterator[Span]:
    """What touches or overlaps as one; `spans` come in the order of their begins."""
    last: Span | None = None
    for begin, end in spans:
        if last is not None and begin <= last[1]:
            last = last[0], max(last[1], end)
            if last[1] - last[0] > _YEAR:
                yield last[0], FAR
                return
            continue
        if last is not None:
            yield last
        last = max(begin, start), end
    if last is not None:
        yield last


def _gaps(spans: Iterator[Span], start: datetime, horizon: datetime) -> Iterator[Span]:
    free = start
    for begin, end in spans:
        if begin > free:
            yield free, begin
        free = end
    if free < horizon:
        yield free, FAR


def _common(first: Iterator[Span], second: Iterator[Span]) -> Iterator[Span]:
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        begin, end = max(one[0], other[0]), min(one[1], other[1])
        if begin < end:
            yield begin, end
        if one[1] <= other[1]:
            one = next(first, None)
        else:
            other = next(second, None)


def _dates(begin: date) -> Iterator[date]:
    while begin < date.max - DAY:
        yield begin
        begin += DAY
