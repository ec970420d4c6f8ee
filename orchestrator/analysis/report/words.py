"""Numbers, durations and instants as a report writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import Any

NOTHING = "–"
"""Stands where there is no value."""


def measure(value: float | None) -> str:
    """A value of a metric in four decimals, so that a column lines up; very small or large ones in digits."""
    if value is None:
        return NOTHING
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def setting(value: Any) -> str:
    """A value of a parameter."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 1 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " → ".join(map(setting, value))
    return str(value)


def column_setting(value: Any) -> str:
    """A value of a parameter in a column of such: fractions in three digits, zeros included."""
    return f"{value:#.3g}" if isinstance(value, float) else setting(value)


def count(value: int | None) -> str:
    """A whole number with thousands set apart."""
    return NOTHING if value is None else f"{value:,}"


def counted(number: int, what: str, more: str = "") -> str:
    """Such as `1 trial` and `3 trials`; `more` is a plural that is not made by an s."""
    return f"{number:,} {what if number == 1 else more or f'{what}s'}"


def duration(seconds: float | None) -> str:
    """Such as `42 s`, `3 min 20 s`, `5 h 04 min`, `2 d 3 h`."""
    if seconds is None:
        return NOTHING
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def energy(kwh: float | None, per: float = 1.0) -> str:
    """Energy in units of `per` kWh, such as 0.001 for Wh; the unit stands above the column."""
    if kwh is None:
        return NOTHING
    amount = kwh / per
    return (
        f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.3f}" if amount >= 0.001 else "< 0.001"
    )


def money(amount: float | None) -> str:
    """An amount; the currency stands above the column."""
    if amount is None:
        return NOTHING
    if 0 < amount < 0.001:
        return "< 0.001"
    return f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.3f}"


def size(octets: int) -> str:
    """Bytes, such as `12.3 MiB`."""
    power = min(4, max(0, octets.bit_length() - 1) // 10)
    return (
        f"{octets} B"
        if not power
        else f"{octets / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
    )


def instant(at: datetime, zone: tzinfo | None) -> str:
    """Date and time to the minute in a zone; in this machine's where it is None."""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M")


def listed(words: Iterable[str]) -> str:
    """Such as `a`, `a and b`, `a, b and c`."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted path where it is its own; the whole path elsewhere."""
    known = list(paths)
    ends = [path.rpartition(".")[2] for path in known]
    return {path: end if ends.count(end) == 1 else path for path, end in zip(known, ends, strict=True)}


def rounded(value: float) -> float:
    """Six significant digits: as many as a picture can show."""
    return float(f"{value:.6g}") if math.isfinite(value) else 0.0
