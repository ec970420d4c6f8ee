"""Hours, days of the week and time zones as people write them: `22:00-07:00`, `mon-fri`, `Europe/Paris`."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY: Final = frozenset(range(7))
DAY_MINUTES: Final = 24 * 60
TIME_PATTERN: Final = r"(?:[01]?[0-9]|2[0-3]):[0-5][0-9]"
HOURS_PATTERN: Final = rf"{TIME_PATTERN} *- *(?:{TIME_PATTERN}|24:00)"

_ZONE_LINK: Final = Path("/etc/localtime")
_ZONE_NAME: Final = Path("/etc/timezone")
_DAY_WORDS: Final = "days such as mon-fri or [mon, wed], of mon, tue, wed, thu, fri, sat and sun"


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The time zone of this name, such as Europe/Paris. Raises ValueError where there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"expected a time zone such as Europe/Paris or UTC, got {name[:60]!r}") from None


def parse_time(text: str) -> int:
    """Minutes after midnight that `7:00` or `22:30` names. Raises ValueError."""
    text = text.strip()
    if not re.fullmatch(TIME_PATTERN, text, re.ASCII):
        raise ValueError(f"expected a time of day from 00:00 to 23:59, such as 22:00, got {text[:40]!r}")
    hour, _, minute = text.partition(":")
    return int(hour) * 60 + int(minute)


def parse_hours(text: str) -> tuple[int, int]:
    """Begin and end of `22:00-07:00` in minutes after midnight; an end that is not later is the next day's.

    The end may be 24:00. Raises ValueError.
    """
    text = text.strip()
    if not re.fullmatch(HOURS_PATTERN, text, re.ASCII):
        raise ValueError(f"expected hours such as 22:00-07:00, got {text[:40]!r}")
    begin, _, end = (part.strip() for part in text.partition("-"))
    hours = parse_time(begin), DAY_MINUTES if end == "24:00" else parse_time(end)
    if hours[0] == hours[1]:
        raise ValueError(
            f"expected an end that differs from the begin, got {text!r}; whole days are 00:00-24:00"
        )
    return hours


def parse_days(value: Any) -> frozenset[int]:
    """Days of the week, Monday 0, from `mon-fri`, `mon, wed` or a list of those. Raises ValueError.

    A range may go round the end of the week: `sat-mon`.
    """
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"expected {_DAY_WORDS}")
    return frozenset().union(*(_day_range(part.strip().lower()) for part in parts))


def _day_range(text: str) -> set[int]:
    first, dash, last = (part.strip() for part in text.partition("-"))
    if first not in DAYS or (dash and last not in DAYS):
        raise ValueError(f"expected {_DAY_WORDS}, got {text[:40]!r}")
    begin = DAYS.index(first)
    length = (DAYS.index(last) - begin) % 7 if dash else 0
    return {(begin + more) % 7 for more in range(length + 1)}


def show_time(minutes: int) -> str:
    """`07:00` for 420."""
    return f"{minutes // 60:02}:{minutes % 60:02}"


def show_days(days: frozenset[int]) -> str:
    """`mon-fri` or `mon, wed`; empty for every day."""
    if days == EVERY_DAY:
        return ""
    parts: list[str] = []
    for begin in sorted(day for day in days if (day - 1) % 7 not in days):
        length = next(more for more in range(1, 8) if (begin + more) % 7 not in days)
        names = [DAYS[(begin + more) % 7] for more in range(length)]
        parts.append(f"{names[0]}-{names[-1]}" if length > 2 else ", ".join(names))
    return ", ".join(parts)


def local_zone() -> str | None:
    """The name of this machine's time zone: TZ, else what the system says. None where it cannot be told."""
    for found in (_of_environment, _of_link, _of_file):
        name = found()
        with suppress(ValueError):
            if name:
                zone(name)
                return name
    return None if _ZONE_LINK.exists() else "UTC"


def _of_environment() -> str:
    return os.environ.get("TZ", "").removeprefix(":")


def _of_link() -> str:
    """macOS and most Linux systems link a file of the time zone database, by its name there."""
    return str(_ZONE_LINK.resolve()).partition("zoneinfo/")[2]


def _of_file() -> str:
    try:
        return _ZONE_NAME.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
