"""Schedules: what a client can ask of the controller about them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice

from orchestrator.clock import Clock
from orchestrator.control.firing import Firing, Rule
from orchestrator.control.ids import new_id
from orchestrator.control.schedule_views import coming_view, fire_view, schedule_view
from orchestrator.domain.schedule_window import windowed
from orchestrator.domain.schedules import (
    FireRecord,
    FireState,
    Ruling,
    ScheduleRecord,
    ScheduleState,
    at_instant,
    by_hand,
    coming,
)
from orchestrator.errors import ConflictError, Problem, SpecError
from orchestrator.messages_schedules import (
    ComingView,
    FireView,
    ScheduleDetail,
    ScheduleRequest,
    ScheduleView,
)
from orchestrator.spec.sweep import SweepSpec
from orchestrator.store.ledger import Ledger, Transaction
from orchestrator.store.schedule_book import OPEN

_SHOWN = 10
"""Fires that `show` tells of, in each direction."""


class Schedules:
    """Everything that the API offers about schedules."""

    def __init__(self, ledger: Ledger, firing: Firing, clock: Clock) -> None:
        self._ledger = ledger
        self._firing = firing
        self._clock = clock

    # ---- asking

    def all(self, *, ended: bool) -> list[ScheduleView]:
        """Schedules, oldest first; with `ended` also those that never fire again by themselves."""
        with self._ledger.read() as ledger:
            found = ledger.schedules.all(states=() if ended else OPEN)
            return [self._view(ledger, schedule) for schedule in found]

    def detail(self, ref: str) -> ScheduleDetail:
        """Everything about one schedule."""
        with self._ledger.read() as ledger:
            schedule = ledger.schedules.find(ref)
            is_sweep = isinstance(schedule.spec, SweepSpec)
            return ScheduleDetail(
                schedule=self._view(ledger, schedule),
                spec=None if is_sweep else schedule.spec,
                sweep=schedule.spec if is_sweep else None,
                coming=list(islice(self._coming(schedule), _SHOWN)),
                fires=_fires(ledger, schedule, _SHOWN),
            )

    def fires(self, ref: str, limit: int) -> list[FireView]:
        """What became of due times, newest first."""
        with self._ledger.read() as ledger:
            return _fires(ledger, ledger.schedules.find(ref), limit)

    def coming(self, ref: str | None, limit: int) -> list[ComingView]:
        """Due times that are still to come, of one schedule or of all, in their order."""
        with self._ledger.read() as ledger:
            found = [ledger.schedules.find(ref)] if ref else ledger.schedules.all(states=OPEN)
        merged = heapq.merge(*map(self._coming, found), key=lambda one: one.at)
        return list(islice(merged, limit))

    def _coming(self, schedule: ScheduleRecord) -> Iterator[ComingView]:
        for fire in coming(schedule, self._clock.now()):
            yield coming_view(schedule, fire)

    def _view(self, ledger: Transaction, schedule: ScheduleRecord) -> ScheduleView:
        return schedule_view(
            schedule,
            next(self._coming(schedule), None),
            next(iter(_fires(ledger, schedule, 1)), None),
            len(ledger.schedules.waiting(schedule.id)),
        )

    # ---- telling

    def add(self, request: ScheduleRequest) -> ScheduleView:
        """Accept a schedule. On return it is on disk; the same key is the same schedule.

        ConflictError where another one has the name, SpecError where it never fires.
        """
        with self._ledger.begin() as ledger:
            schedule = ledger.schedules.by_key(request.key)
            if schedule is None:
                schedule = _new(request, self._clock.now())
                other = ledger.schedules.named(schedule.name)
                if other is not None:
                    raise ConflictError(
                        f"schedule {other.id} is called {other.name} already",
                        remedy=f"give another --name, or take it away: orch schedule rm {other.name}",
                    )
                schedule = ledger.schedules.add(schedule)
            view = self._view(ledger, schedule)
        self._firing.wake()
        return view

    def pause(self, ref: str) -> ScheduleView:
        """No due time counts until it is resumed; what has fired goes on."""
        with self._firing.lock:
            schedule = self._find(ref)
            while self._firing.decide(schedule.id):
                pass
            return self._set(schedule.id, ScheduleState.PAUSED)

    def resume(self, ref: str) -> ScheduleView:
        """Due times count from now on."""
        return self._set(self._find(ref).id, ScheduleState.ACTIVE)

    def remove(self, ref: str) -> ScheduleView:
        """It never fires again, and what waits creates nothing. What it has created goes on."""
        with self._firing.lock:
            schedule = self._find(ref)
            if schedule.state is ScheduleState.REMOVED:
                raise ConflictError(f"schedule {schedule.id} is removed already")
            self._firing.rule(schedule.id, self._removed)
        return self._changed(schedule.id)

    def run(self, ref: str, key: str) -> FireView:
        """Fire now, whatever state it is in; the same key is the same fire.

        Earlier work that has not ended is minded as by any fire; ConflictError where it would be skipped.
        """
        with self._firing.lock:
            schedule = self._find(ref)
            local = f"hand-{key}"
            with self._ledger.read() as ledger:
                known = ledger.schedules.fire(schedule.id, local)
            if known is None:
                self._firing.rule(schedule.id, self._by_hand(local))
            self._firing.wake()
            self._firing.look()
        with self._ledger.read() as ledger:
            fire = ledger.schedules.fire(schedule.id, local)
            assert fire is not None
            return fire_view(schedule, fire, ledger.schedules.work_states([fire]))

    def _by_hand(self, local: str) -> Rule:
        def ruling(
            ledger: Transaction, schedule: ScheduleRecord, waiting: list[FireRecord], busy: str
        ) -> Ruling:
            if schedule.state is ScheduleState.REMOVED:
                raise ConflictError(f"schedule {schedule.id} is removed")
            made = by_hand(schedule, local, self._clock.now(), waiting, busy)
            if made.fires[-1].state is not FireState.WAITING:
                raise ConflictError(
                    f"schedule {schedule.name} does not fire now: {made.fires[-1].message}",
                    remedy="cancel that first, or wait until it has ended",
                )
            return made

        return ruling

    def _removed(
        self, ledger: Transaction, schedule: ScheduleRecord, waiting: list[FireRecord], busy: str
    ) -> Ruling:
        now = self._clock.now()
        gone = replace(schedule, state=ScheduleState.REMOVED, message="removed by its user", ended_at=now)
        why = "its schedule was removed"
        return Ruling(gone, [], [replace(fire, state=FireState.SKIPPED, message=why) for fire in waiting])

    def _find(self, ref: str) -> ScheduleRecord:
        with self._ledger.read() as ledger:
            return ledger.schedules.find(ref)

    def _set(self, schedule_id: str, state: ScheduleState) -> ScheduleView:
        """Make it active or paused; nothing changes where it is so already."""
        with self._firing.lock, self._ledger.begin() as ledger:
            schedule = ledger.schedules.get(schedule_id)
            if schedule.state not in OPEN:
                raise ConflictError(
                    f"schedule {schedule.id} is {schedule.state}: {schedule.message}",
                    remedy="`orch schedule add` makes a new one",
                )
            if schedule.state is not state:
                message = "paused by its user" if state is ScheduleState.PAUSED else ""
                changed = replace(schedule, state=state, message=message)
                if state is ScheduleState.ACTIVE:
                    changed = replace(changed, cursor=self._clock.now())
                ledger.schedules.save(changed)
        return self._changed(schedule_id)

    def _changed(self, schedule_id: str) -> ScheduleView:
        self._firing.wake()
        with self._ledger.read() as ledger:
            return self._view(ledger, ledger.schedules.get(schedule_id))


def _fires(ledger: Transaction, schedule: ScheduleRecord, limit: int) -> list[FireView]:
    found = ledger.schedules.fires(schedule.id, limit)
    states = ledger.schedules.work_states(found)
    return [fire_view(schedule, fire, states) for fire in found]


def _new(request: ScheduleRequest, now: datetime) -> ScheduleRecord:
    spec = request.spec or request.sweep
    assert spec is not None
    at = at_instant(request.at, request.tz) if request.at else None
    if request.until is not None:
        spec = windowed(spec, request.cron, at, request.until, request.tz)
    schedule = ScheduleRecord(
        id=new_id(),
        seq=0,
        key=request.key,
        name=request.name,
        spec=spec,
        source=request.source,
        user=request.user,
        cron=request.cron,
        at=at,
        tz=request.tz,
        overlap=request.overlap,
        catch_up=request.catch_up,
        state=ScheduleState.ACTIVE,
        created_at=now,
        cursor=now,
    )
    if next(schedule.fires(now), None) is None:
        what = f"--at {schedule.local(at)} is over" if at else f"--cron {request.cron!r} never fires"
        raise SpecError([Problem("", 0, 0, "", what)])
    return schedule
