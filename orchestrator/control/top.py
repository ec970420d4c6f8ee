"""The live picture of `orch top`, in one answer.

It is asked every second by everybody who watches, so it comes from what is in memory where it can: the board,
the signs of life, curves and energy that are kept up to date. What has to be worked out whole (what waits and
why, sweeps, schedules) is shown again for a while.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from orchestrator.clock import Clock
from orchestrator.control.board import Board
from orchestrator.control.curves import Curves
from orchestrator.control.energy import EnergyBook
from orchestrator.control.fleet import FleetWatcher
from orchestrator.control.live import LiveBoard
from orchestrator.control.machines import Machines
from orchestrator.control.schedules import Schedules
from orchestrator.control.scheduling import Scheduling
from orchestrator.control.today import Today
from orchestrator.control.views import Views
from orchestrator.domain.energy import KWH_J
from orchestrator.domain.limits import HOUR_S
from orchestrator.domain.queue import Waiting
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.sweeps import SweepRecord, SweepState, TrialState
from orchestrator.domain.trials import Used
from orchestrator.domain.why import Verdict
from orchestrator.messages import Health
from orchestrator.messages_schedules import ComingView
from orchestrator.messages_top import (
    TopBudget,
    TopEnergy,
    TopNode,
    TopRun,
    TopSweep,
    TopView,
    TopWaiting,
)
from orchestrator.store.ledger import Ledger, Transaction

CURVES = ("train/loss", "val/loss")
_RUNS, _WAITING, _FIRES = 60, 30, 12
_ENDED, _LATELY = 5, timedelta(hours=1)
_KEPT_S = 2.0
_KEPT_COSTS = 50
"""What is worked out whole is shown for so many times what that took: 2 % of a processor, at most."""
T = TypeVar("T")
_Watts = dict[tuple[str, int], dict[int, float]]
"""By attempt and rank."""


class Top:
    """Builds the picture. Safe to use from several threads."""

    def __init__(
        self,
        ledger: Ledger,
        live: LiveBoard,
        board: Board,
        scheduling: Scheduling,
        watcher: FleetWatcher,
        views: Views,
        machines: Machines,
        schedules: Schedules,
        energy: EnergyBook,
        today: Today,
        curves: Curves,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._live = live
        self._board = board
        self._scheduling = scheduling
        self._watcher = watcher
        self._views = views
        self._machines = machines
        self._energy = energy
        self._today = today
        self._curves = curves
        self._clock = clock
        self._sweeps = Kept(self._read_sweeps, clock)
        self._waits = Kept(self._read_waiting, clock)
        self._fires: Kept[list[ComingView]] = Kept(lambda: _fires(schedules), clock)

    def view(self, health: Health, since: datetime) -> TopView:
        """Everything now, with the energy since an instant."""
        now, waiting = self._clock.now(), self._waits.get()
        with self._board.lock:
            waiting = [one for one in waiting if one.id in self._board.queue]
            records = {record.id: record for record in self._board.executing()}
            attempts = self._board.open_attempts()
            queued = len(self._board.queue)
        watts = {(one.run_id, one.number): self._live.watts(one.run_id, one.number) for one in attempts}
        counted = [self._counted(one, records.get(one.run_id)) for one in attempts]
        return TopView(
            at=now,
            health=health,
            draining=self._scheduling.draining,
            running=self._running([(run, one) for run, one in counted if run is not None], watts),
            running_total=len(records),
            waiting=waiting,
            waiting_total=queued,
            nodes=self._nodes(attempts, watts),
            sweeps=self._sweeps.get(),
            fires=[one for one in self._fires.get() if one.at > now][:_FIRES],
            energy=self._used(since, [one for _, one in counted], watts),
        )

    def _counted(
        self, attempt: AttemptRecord, run: RunRecord | None
    ) -> tuple[RunRecord | None, AttemptRecord]:
        """Both with what was heard of them; no run where that has left the attempt."""
        if run is None or run.attempt != attempt.number:
            return None, attempt
        return self._energy.counted(run, attempt)

    def _running(self, runs: list[tuple[RunRecord, AttemptRecord]], watts: _Watts) -> list[TopRun]:
        first = sorted(runs, key=lambda one: (one[0].started_at or one[0].created_at, one[0].seq))[:_RUNS]
        views = self._views.counted(first)
        curves = self._curves.of({view.id: view.step for view in views})
        found = []
        for view in views:
            sign = self._live.sign(view.id, view.attempt)
            used = watts[view.id, view.attempt].values()
            found.append(
                TopRun(
                    run=view,
                    step_s=sign.pace if sign is not None else None,
                    watts=sum(used) if used else None,
                    curves=curves.get(view.id, {}),
                )
            )
        return found

    def _read_waiting(self) -> list[TopWaiting]:
        now = self._clock.now().timestamp()
        draining = "everything is being taken down" if self._scheduling.draining else ""
        line = self._scheduling.line(_WAITING, self._watcher.fleet)
        found = [_waiting(waiting, verdict, now) for waiting, verdict in line]
        return [one.model_copy(update={"why": draining or one.why}) for one in found]

    def _nodes(self, attempts: list[AttemptRecord], watts: _Watts) -> list[TopNode]:
        used: dict[str, float] = {}
        for attempt in attempts:
            places = [attempt.node, *(member.node for member in attempt.members)]
            for rank, power in watts[attempt.run_id, attempt.number].items():
                used[places[rank]] = used.get(places[rank], 0.0) + power
        return [TopNode(node=node, watts=used.get(node.name)) for node in self._machines.nodes()]

    def _used(self, since: datetime, counted: list[AttemptRecord], watts: _Watts) -> TopEnergy:
        use = self._today.since(since, counted)
        now = [power for ranks in watts.values() for power in ranks.values()]
        return TopEnergy(
            since=since,
            kwh=use.joules / KWH_J,
            source=use.source,
            cost=use.cost,
            currency=self._energy.currency if use.cost is not None else None,
            watts=sum(now) if now else None,
        )

    def _read_sweeps(self) -> list[TopSweep]:
        now = self._clock.now()
        with self._ledger.read() as ledger:
            found = ledger.sweeps.all(states=[state for state in SweepState if not state.final])
            ended = ledger.sweeps.all(states=[state for state in SweepState if state.final], limit=_ENDED)
            found += [one for one in ended if one.ended_at and now - one.ended_at < _LATELY]
            return [_sweep(ledger, sweep, now) for sweep in found]


class Kept(Generic[T]):
    """Something that is made anew once it is old: after two seconds, or 50 times what making it took."""

    def __init__(self, make: Callable[[], T], clock: Clock) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._made: tuple[T, float] | None = None
        """And until when it is good, in monotonic seconds."""

    def get(self) -> T:
        """What there is; of several who ask at once one makes it."""
        with self._lock:
            begun = self._clock.monotonic()
            if self._made is None or self._made[1] <= begun:
                made, done = self._make(), self._clock.monotonic()
                self._made = made, done + max(_KEPT_S, _KEPT_COSTS * (done - begun))
            return self._made[0]


def _fires(schedules: Schedules) -> list[ComingView]:
    """The next one of each schedule, in their order."""
    coming = [one.next for one in schedules.all(ended=False) if one.next is not None]
    return sorted(coming, key=lambda one: one.at)


def _waiting(waiting: Waiting, verdict: Verdict, now: float) -> TopWaiting:
    opens = None
    if waiting.hours is not None and not waiting.hours.open_at(now):
        opens = waiting.hours.next_start(now)
    nodes = [node for one in verdict.variants for node in one.nodes if node.until is not None]
    first = min(nodes, key=lambda node: node.until or datetime.max, default=None)
    return TopWaiting(
        id=waiting.run_id,
        name=waiting.name,
        user=waiting.user,
        priority=-waiting.order[0],
        since=datetime.fromtimestamp(waiting.since, UTC),
        why=verdict.why,
        held=waiting.held,
        opens=datetime.fromtimestamp(opens, UTC) if opens is not None else None,
        free=first.until if first is not None and not verdict.first else None,
        estimated=first.estimated if first is not None else False,
    )


def _sweep(ledger: Transaction, sweep: SweepRecord, now: datetime) -> TopSweep:
    spec = sweep.spec
    counts = ledger.sweeps.count(sweep.id)
    first, best = ledger.sweeps.best(sweep) or (None, None)
    points = spec.budget.trials
    return TopSweep(
        id=sweep.id,
        name=spec.name,
        state=sweep.state,
        message=sweep.message,
        metric=spec.objective.metric,
        done=sum(count for state, count in counts.items() if state.final),
        open=counts.get(TrialState.OPEN, 0),
        total=points * spec.repeat if points is not None else None,
        best_trial=first.number if first else None,
        best_value=best,
        budgets=_budgets(sweep, ledger.sweeps.used(sweep.id, now)),
    )


def _budgets(sweep: SweepRecord, used: Used) -> list[TopBudget]:
    budget = sweep.spec.budget
    limits = {
        "duration": (used.seconds, budget.duration),
        "gpu_hours": (used.gpu_seconds / HOUR_S, budget.gpu_hours),
        "kwh": ((used.joules or 0.0) / KWH_J, budget.kwh),
    }
    return [TopBudget(kind=kind, used=now, most=most) for kind, (now, most) in limits.items() if most]
