"""A controller's schedules under a turned clock, on a real ledger, that dies wherever a test wants it to.

What a dead process leaves is its ledger. Runs and sweeps are what their submit promises, and nothing more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import select

from orchestrator.control.firing import Firing
from orchestrator.control.schedules import Schedules
from orchestrator.domain.records import RunRecord
from orchestrator.domain.schedules import FireRecord, FireState
from orchestrator.domain.states import OPEN_STATES, RunState
from orchestrator.domain.sweeps import SweepRecord, SweepState
from orchestrator.domain.transitions import cancel
from orchestrator.errors import OrchError
from orchestrator.messages import SubmitRequest, Submitted
from orchestrator.messages_schedules import ScheduleRequest, ScheduleView
from orchestrator.messages_sweeps import SweepRequest, SweepSubmitted
from orchestrator.store import tables
from orchestrator.store.ledger import Ledger, Transaction
from tests.clocks import TurnedClock
from tests.unit.records import run, spec

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
"""A Monday."""
_numbers = itertools.count(1)


class KilledError(BaseException):
    """The process is gone: nothing catches this."""


class FusedLedger:
    """A ledger that kills its user at the n-th of the moments before and after each transaction."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.passed = 0
        self.kill_at: int | None = None

    def _moment(self) -> None:
        self.passed += 1
        if self.passed == self.kill_at:
            self.kill_at = None
            raise KilledError

    @contextmanager
    def begin(self) -> Iterator[Transaction]:
        """A transaction; killed before it, at its end before it is committed, or after that."""
        self._moment()
        with self.ledger.begin() as transaction:
            yield transaction
            self._moment()
        self._moment()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A view; killed before it."""
        self._moment()
        with self.ledger.read() as transaction:
            yield transaction


class PaperRuns:
    """Accepts runs by key, and ends them when told."""

    def __init__(self, ledger: FusedLedger) -> None:
        self._ledger = ledger
        self.refusal: OrchError | None = None

    def submit(self, request: SubmitRequest) -> Submitted:
        if self.refusal:
            raise self.refusal
        with self._ledger.begin() as ledger:
            known = ledger.run_by_key(request.key)
            new = run(f"run{next(_numbers):05}", key=request.key, spec=request.spec, user=request.user)
            found = known or ledger.add_run(new)
        return Submitted(run_id=found.id, name=found.spec.name, created=known is None)

    def cancel(self, ref: str) -> None:
        with self._ledger.begin() as ledger:
            ledger.save_run(cancel(ledger.run(ref), NOON))


class PaperSweeps:
    """The same for sweeps, which have no trials here."""

    def __init__(self, ledger: FusedLedger) -> None:
        self._ledger = ledger

    def submit(self, request: SweepRequest) -> SweepSubmitted:
        with self._ledger.begin() as ledger:
            known = ledger.sweeps.by_key(request.key)
            new = SweepRecord(
                id=f"swp{next(_numbers):05}",
                seq=0,
                key=request.key,
                spec=request.spec,
                spec_hash="",
                source=request.source,
                user=request.user,
                state=SweepState.RUNNING,
                created_at=NOON,
                schedule_id=request.schedule_id,
            )
            found = known or ledger.sweeps.add(new)
        return SweepSubmitted(sweep_id=found.id, name=found.spec.name, created=known is None)

    def cancel(self, ref: str) -> None:
        with self._ledger.begin() as ledger:
            ledger.sweeps.save(replace(ledger.sweeps.get(ref), state=SweepState.CANCELLED))


class Nights:
    """One controller after another over one ledger."""

    def __init__(self, ledger: Ledger, begin: datetime = NOON) -> None:
        self.clock = TurnedClock(wall=begin)
        self.fused = FusedLedger(ledger)
        self.ledger = ledger
        self.runs = PaperRuns(self.fused)
        self.sweeps = PaperSweeps(self.fused)
        self.restart()

    def restart(self) -> None:
        """A new process: all it knows is the ledger."""
        ledger = cast(Ledger, self.fused)
        self.firing = Firing(ledger, self.runs, self.sweeps, self.clock)
        self.schedules = Schedules(ledger, self.firing, self.clock)

    def add(self, cron: str | None = "0 22 * * *", **values: Any) -> ScheduleView:
        """Have a schedule accepted."""
        defaults = {"key": f"key-{next(_numbers)}", "name": f"s{next(_numbers)}", "tz": "Europe/Paris"}
        if "sweep" not in values:
            defaults["spec"] = spec()
        return self.schedules.add(ScheduleRequest.model_validate({**defaults, "cron": cron, **values}))

    def go(self, **duration: float) -> None:
        """Turn the clock, which may go back."""
        self.clock.at += timedelta(**duration).total_seconds()

    def look(self, kill_at: int | None = None) -> None:
        """Look until there is nothing more to do. Killed at that moment, the next process goes on."""
        self.fused.passed, self.fused.kill_at = 0, kill_at
        for _ in range(100):
            try:
                self.firing.look()
            except KilledError:
                self.restart()
                continue
            if not self.firing.more:
                self.fused.kill_at = None
                return
        raise AssertionError("it does not come to an end")

    def fires(self, schedule: ScheduleView) -> list[FireRecord]:
        """All of them, oldest first."""
        with self.ledger.read() as ledger:
            return ledger.schedules.fires(schedule.id, 100_000)[::-1]

    def created(self, schedule: ScheduleView) -> list[RunRecord]:
        """Runs with a submit key of this schedule, by age, whatever the fires say."""
        mine = tables.runs.c.key.startswith(f"schedule/{schedule.id}/")
        query = select(tables.runs.c.id).where(mine).order_by(tables.runs.c.seq)
        with self.ledger.read() as ledger:
            return [ledger.run(row.id) for row in ledger._connection.execute(query)]

    def unfinished(self, schedule: ScheduleView) -> list[RunRecord]:
        """Those of them that have not ended."""
        with self.ledger.read() as ledger:
            found = ledger.runs(states=OPEN_STATES)
        return [one for one in found if one.key.startswith(f"schedule/{schedule.id}/")]

    def waiting(self, schedule: ScheduleView) -> list[FireRecord]:
        """Fires that wait."""
        return [fire for fire in self.fires(schedule) if fire.state is FireState.WAITING]

    def change(self, run_id: str, state: RunState) -> None:
        """What happens to a run."""
        with self.ledger.begin() as ledger:
            ledger.save_run(replace(ledger.run(run_id), state=state))

    def end_all(self, schedule: ScheduleView) -> None:
        """All its runs succeed."""
        for one in self.unfinished(schedule):
            self.change(one.id, RunState.SUCCEEDED)
