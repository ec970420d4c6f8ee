"""The energy of attempts between what agents say and what the ledger has.

Agents say it with every beat. It is kept in memory, is shown from there, and goes to the ledger when
something else does, at least once a minute and at the end. What a controller forgets, agents say again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from orchestrator.clock import Clock
from orchestrator.control.live import LiveBoard
from orchestrator.domain.energy import KWH_J
from orchestrator.domain.limits import joules_left
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.spending import Prices, spend
from orchestrator.messages_agent import Point
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool

WRITTEN_EVERY: Final = timedelta(seconds=60)
KWH_KEY: Final = "orch/energy_kwh"
"""Series of what the run has used by the end of each attempt."""
COST_KEY: Final = "orch/cost"


class EnergyBook:
    """What was used, and what it costs by the tariff of now."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        live: LiveBoard,
        clock: Clock,
        prices: Callable[[], Prices | None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._live = live
        self._clock = clock
        self._prices = prices

    @property
    def currency(self) -> str | None:
        """What costs are in; None without a tariff."""
        prices = self._prices()
        return prices.currency if prices is not None else None

    def counted(self, run: RunRecord, attempt: AttemptRecord) -> tuple[RunRecord, AttemptRecord]:
        """Both with all that was heard until now. They have to be of one moment: what is new to the attempt
        is added to the run."""
        heard = self._live.energies(attempt.run_id, attempt.number)
        return spend(run, attempt, heard, self._clock.now(), self._prices()) if heard else (run, attempt)

    def spent(self, run: RunRecord, attempt: AttemptRecord) -> bool:
        """Whether the run has used up what its spec allows."""
        return run.spec.kwh is not None and joules_left(self.counted(run, attempt)[0]) == 0

    def keep(self, run: RunRecord, attempt: AttemptRecord, *, last: bool) -> None:
        """Write down what was heard where that is due, or nothing more will come."""
        since = attempt.energy_at or attempt.created_at
        if not last and self._clock.now() - since < WRITTEN_EVERY:
            return
        if self.counted(run, attempt) == (run, attempt):
            return
        with self._ledger.begin() as ledger:
            run, attempt = ledger.run(run.id), ledger.attempt(run.id, attempt.number)
            run, attempt = self.counted(run, attempt)
            ledger.save_run(run)
            ledger.save_attempt(attempt)

    def point(self, run: RunRecord, attempt: AttemptRecord) -> None:
        """The ended attempt's points: what its run has used by its last step.

        An attempt that has made no step ends where the one before it did; its point gets the next free step.
        """
        if attempt.energy_source is None:
            return
        known = self._spool.latest_many([run.id], keys=[KWH_KEY]).get(run.id, {})
        step = max(attempt.last_step or attempt.first_step or 0, known.get(KWH_KEY, (-1, 0.0))[0] + 1)
        values = {KWH_KEY: run.joules_used / KWH_J, **({COST_KEY: run.cost} if run.cost is not None else {})}
        at = int(self._clock.now().timestamp() * 1000)
        points = [Point(key=key, step=step, time_ms=at, value=value) for key, value in values.items()]
        self._spool.add_points(run.id, attempt.number, points)
