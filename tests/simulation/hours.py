"""Windows in a simulated world, and what is promised of them (rule 7)."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from orchestrator.domain.admission import LEAST_S, Hours
from orchestrator.domain.windows import closes_at, open_at
from orchestrator.spec.window import WindowRule

_EVERY_HOUR = tuple(range(24))


def _each_hour(begin: int, end: int, tz: str) -> list[WindowRule]:
    """From one minute of every hour to another."""
    return [WindowRule(hours=f"{h:02}:{begin:02}-{h:02}:{end:02}", tz=tz) for h in _EVERY_HOUR]


_RULES = [
    *(None, None, None, None, None),
    _each_hour(0, 20, "UTC"),
    [*_each_hour(5, 15, "Europe/Paris"), WindowRule(hours="03:00-03:45", tz="Asia/Kathmandu")],
    [WindowRule(cron="*/20 * * * *", until="21:35", tz="UTC"), WindowRule(hours="22:00-07:00", tz="UTC")],
]


def some_window(chance: random.Random) -> list[WindowRule] | None:
    """For most specs none."""
    return chance.choice(_RULES)


def starts_within(hours: Hours | None, instant: Any) -> bool:
    """Whether an attempt may start."""
    if hours is None:
        return True
    closes = closes_at(hours.window, instant)
    in_time = closes is None or closes - instant >= timedelta(seconds=LEAST_S)
    return open_at(hours.window, instant) and in_time


def worked_within(hours: Hours | None, begin: Any, end: Any) -> bool:
    """Whether work from one instant to another is within one opening."""
    if hours is None or begin == end:
        return True
    closes = closes_at(hours.window, begin)
    return open_at(hours.window, begin) and (closes is None or end <= closes)
