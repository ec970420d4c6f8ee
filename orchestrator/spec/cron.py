"""The five fields of a cron line, as sets of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from orchestrator.spec.hours import DAYS

MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MAX_TEXT: Final = 500


@dataclass(frozen=True)
class _Field:
    """One of the five."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """The first one stands for `low`."""

    def parse(self, text: str) -> frozenset[int]:
        """The numbers that a list of ranges with steps names."""
        found: set[int] = set()
        for part in text.split(","):
            found.update(self._part(part, text))
        return frozenset(found)

    def _part(self, part: str, text: str) -> range:
        span, slash, step = part.partition("/")
        if slash and (not _number(step) or int(step) == 0):
            self._wrong(text, f"a step of 1 or more after the '/', not {step!r}")
        first, dash, last = span.partition("-")
        if span == "*":
            begin, end = self.low, self._last
        else:
            begin = self._value(first, text)
            end = self._value(last, text) if dash else max(begin, self._last) if slash else begin
        if end < begin and last == "sun":
            end = 7
        if end < begin:
            self._wrong(text, f"a range that runs forward, not {span!r}")
        return range(begin, end + 1, int(step) if slash else 1)

    @property
    def _last(self) -> int:
        """The last one of `*`: a Sunday is there once."""
        return self.high if self.name != "day of the week" else 6

    def _value(self, word: str, text: str) -> int:
        if word in self.names:
            return self.low + self.names.index(word)
        if not _number(word) or not self.low <= int(word) <= self.high:
            named = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
            self._wrong(text, f"{self.low} to {self.high}{named}, not {word!r}")
        return int(word)

    def _wrong(self, text: str, expected: str) -> NoReturn:
        raise ValueError(f"in the {self.name} {text[:40]!r}: expected {expected}")


def _number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 4


_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, MONTHS),
    _Field("day of the week", 0, 7, (DAYS[6], *DAYS[:6])),
)


@dataclass(frozen=True)
class CronFields:
    """What a cron line means, apart from where."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    """Both ascending."""
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """Monday is 0."""
    both_days: bool
    """A date has to fit `days` and `weekdays`. Otherwise one is enough: so it is where neither field begins
    with `*`."""
    real_time: bool
    """The minute or the hour begins with `*`: it follows real time when the clocks change."""


def parse_cron(text: str) -> CronFields:
    """Read `MINUTE HOUR DAY MONTH WEEKDAY`. Raises ValueError, which says what is wrong in which field."""
    words = text.lower().split()
    if len(words) != 5 or len(text) > _MAX_TEXT:
        raise ValueError(
            f"expected the 5 fields of cron (minute, hour, day of the month, month, day of the week), "
            f"such as `0 22 * * mon-fri`, got {text[:60]!r}"
        )
    minutes, hours, days, months, week = (
        field.parse(word) for field, word in zip(_FIELDS, words, strict=True)
    )
    both = words[2].startswith("*") or words[4].startswith("*")
    if both and min(days) > max(_LONGEST[month - 1] for month in months):
        raise ValueError(f"in the day of the month {words[2][:40]!r}: none of its months has such a day")
    return CronFields(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=days,
        months=months,
        weekdays=frozenset((day - 1) % 7 for day in week),
        both_days=both,
        real_time=words[0].startswith("*") or words[1].startswith("*"),
    )
