"""When a run may execute by its window and its highest price, and what to say of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from orchestrator.domain.tariff import Tariff
from orchestrator.domain.times import Cron
from orchestrator.domain.windows import (
    Window,
    both,
    closes_at,
    daily,
    either,
    from_cron,
    next_opening,
    open_at,
)
from orchestrator.spec.hours import zone
from orchestrator.spec.window import WindowRule

GRACE_S = 60.0
"""So long before the hours end, an attempt is told to save: it has ended when they do."""
LEAST_S = 120.0
"""No attempt starts where less than this is left of the hours; half of it would go to saving."""
_TRIES = 500
"""Openings that are looked at for one that is long enough to start in."""
_TOLD = 3
"""Openings of a window that are named."""
_DAY_S = 86400.0


@dataclass(frozen=True)
class Hours:
    """The hours in which runs may execute, and how to speak of them."""

    window: Window
    closed: str
    """What is the case outside of them: `outside its window 22:00-07:00 (Europe/Paris)`."""
    opens: str
    """What happens at their begin: `it opens`."""
    tz: str
    """The zone in which their begin is told."""

    def closes(self, now: float) -> float | None:
        """Unix time at which the hours end that hold `now`; None where none do, or they never end."""
        end = closes_at(self.window, _instant(now))
        return None if end is None else end.timestamp()

    def open_at(self, now: float) -> bool:
        """Whether it may execute at this Unix time."""
        return open_at(self.window, _instant(now))

    def admits(self, now: float, least_s: float = LEAST_S) -> bool:
        """Whether an attempt may start at this Unix time."""
        if not self.open_at(now):
            return False
        end = self.closes(now)
        return end is None or end - now >= least_s

    def next_start(self, now: float, least_s: float = LEAST_S) -> float | None:
        """Unix time from which an attempt may start, which may be `now`; None where that is never."""
        if self.admits(now, least_s):
            return now
        at: datetime | None = _instant(now)
        for _ in range(_TRIES):
            at = next_opening(self.window, at) if at is not None else None
            if at is None or self.admits(at.timestamp(), least_s):
                break
            at += timedelta(seconds=1)
        else:
            return None
        return None if at is None else at.timestamp()

    def why(self, now: float, least_s: float = LEAST_S) -> str:
        """Why no attempt starts at this Unix time, in words; empty where one may."""
        if self.admits(now, least_s):
            return ""
        end, start = self.closes(now), self.next_start(now, least_s)
        told = self.closed
        if end is not None:
            told = f"the hours in which it may run end in {_span(end - now)}, too soon to start"
        if start is None:
            return f"{told}; that does not change any more"
        return f"{told}; {self.opens} in {_span(start - now)}, at {_clock(start, now, self.tz)}"


@lru_cache(maxsize=4096)
def hours_of(
    rules: tuple[WindowRule, ...] | None, max_price: float | None, tariff: Tariff | None
) -> Hours | None:
    """The hours of a spec with this `window` and `max_price`; None where it may always run.

    Without a tariff a spec with `max_price` never runs.
    """
    window = None if rules is None else _of_rules(rules)
    if max_price is None:
        return window
    priced = _of_price(max_price, tariff)
    if window is None or priced is None:
        return window or priced
    return Hours(
        both([window.window, priced.window]),
        f"{window.closed}, or {priced.closed}",
        "both allow it",
        window.tz,
    )


def _of_rules(rules: tuple[WindowRule, ...]) -> Hours:
    windows = [_of_rule(rule) for rule in rules]
    told = " or ".join(map(str, windows[:_TOLD]))
    more = f" and {len(windows) - _TOLD} more" if len(windows) > _TOLD else ""
    return Hours(either(windows), f"outside its window {told}{more}", "it opens", rules[0].tz)


def _of_rule(rule: WindowRule) -> Window:
    if rule.hours is not None:
        begin, _, end = rule.hours.partition("-")
        return daily(begin, end, rule.days, rule.tz)
    assert rule.cron is not None
    assert rule.until is not None
    return from_cron(Cron.parse(rule.cron, rule.tz), rule.until)


def _of_price(max_price: float, tariff: Tariff | None) -> Hours | None:
    if tariff is None:
        why = "it has `max_price`, and no tariff is set (`orch tariff set FILE`)"
        return Hours(either([]), why, "", "UTC")
    window = tariff.cheaper_than(max_price)
    if window is None:
        return None
    why = f"electricity costs more than {max_price:g} {tariff.currency} per kWh (`max_price`)"
    return Hours(window, why, "it gets cheaper", tariff.tz)


def _instant(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _span(seconds: float) -> str:
    """`3 h 12 min`, `12 min`, `45 s`; from two days on `3 d 4 h`."""
    whole = max(1, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 2 * 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _clock(at: float, now: float, tz: str) -> str:
    local = _instant(at).astimezone(zone(tz))
    if at - now < _DAY_S:
        return local.strftime("%H:%M")
    return local.strftime("%a %H:%M" if at - now < 6 * _DAY_S else "%Y-%m-%d %H:%M")
