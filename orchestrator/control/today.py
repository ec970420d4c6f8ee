"""What attempts have used since an instant of today: asked every second, read from the ledger once."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.clock import Clock
from orchestrator.domain.energy import EnergySource, joined
from orchestrator.domain.records import AttemptRecord
from orchestrator.store.ledger import Ledger, Transaction

_FARTHEST = timedelta(days=2)
"""Nobody's day began longer ago."""
_Key = tuple[str, int]


@dataclass(frozen=True)
class DayUse:
    """Energy of a day so far."""

    joules: float = 0.0
    source: EnergySource | None = None
    cost: float | None = None


class Today:
    """Follows the commits once it has been asked. Safe to use from several threads."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        self._from: datetime | None = None
        """The ledger was read from here on."""
        self._attempts: dict[_Key, AttemptRecord] = {}
        ledger.watch(self._follow)

    def since(self, since: datetime, counted: Iterable[AttemptRecord] = ()) -> DayUse:
        """What was used since then, two days ago at the earliest.

        `counted`: attempts that execute, with what was heard of them and is not in the ledger yet. An attempt
        that began before `since` counts in part: as if it had used all of it evenly.
        """
        since = max(since, self._clock.now() - _FARTHEST)
        with self._lock:
            self._read(since)
            attempts = dict(self._attempts)
        attempts.update(((one.run_id, one.number), one) for one in counted if one.energy_source)
        return _total(attempts.values(), since)

    def _read(self, since: datetime) -> None:
        stale = self._from is not None and self._clock.now() - self._from > 2 * _FARTHEST
        if self._from is not None and self._from <= since and not stale:
            return
        with self._ledger.read() as ledger:
            found = ledger.counted_since(since)
        self._attempts = {(one.run_id, one.number): one for one in found}
        self._from = since

    def _follow(self, transaction: Transaction) -> None:
        with self._lock:
            if self._from is not None:
                changed = transaction.attempts_changed.items()
                self._attempts.update({key: one for key, one in changed if one.energy_source})


def _total(attempts: Iterable[AttemptRecord], since: datetime) -> DayUse:
    joules, sources, costs = 0.0, [], []
    for attempt in attempts:
        share = _share(attempt, since)
        if share > 0:
            joules += share * attempt.joules
            sources.append(attempt.energy_source)
            costs += [share * attempt.cost] if attempt.cost is not None else []
    return DayUse(joules, joined(*sources), sum(costs) if costs else None)


def _share(attempt: AttemptRecord, since: datetime) -> float:
    """The part of an attempt's time that is later than `since`."""
    begin, end = attempt.started_at or attempt.created_at, attempt.energy_at
    if end is None or end <= since:
        return 0.0
    return 1.0 if begin >= since else (end - since) / (end - begin)
