"""The scheduler's picture of the ledger: who waits and who holds what, kept in memory, true to every commit.

It is made once, from the whole ledger, and follows the commits from then on, so that a plan costs nothing for
the runs that have not changed. It never decides: what a plan starts is checked against the ledger again.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.clock import Clock
from orchestrator.control.live import LiveBoard, Sign
from orchestrator.domain.admission import GRACE_S, LEAST_S, Hours, hours_of
from orchestrator.domain.demand import Shape, demand_of, shape_of
from orchestrator.domain.queue import Order, Queue, Waiting
from orchestrator.domain.records import AttemptRecord, QueuedRun, RunRecord
from orchestrator.domain.rivalry import Running
from orchestrator.domain.room import Grant
from orchestrator.domain.states import EXECUTING, RunState
from orchestrator.domain.tariff import Tariff
from orchestrator.store.ledger import Ledger, Transaction

MOVE_LEAST_S = 600.0
"""A run is not moved to a better place where less than this is left of its hours."""
Remaining = Callable[[RunRecord, AttemptRecord, int | None], float | None]
"""Seconds that a run still takes from this step on, told from how fast runs like it went; None: unknown."""


@dataclass(frozen=True, slots=True)
class _Open:
    """What is known of a run that executes."""

    name: str
    attempt: int
    user: str
    experiment: str
    order: Order
    shape: Shape
    stopping: bool
    migrates: bool
    target: int | None
    """Steps at which it ends; None where that is not known."""
    left: float | None
    """Seconds that its attempt may take; None: any."""
    hours: Hours | None
    """When it may execute; None: always."""
    record: RunRecord


class Board:
    """Waiting runs and open attempts. Use it under :attr:`lock`."""

    def __init__(
        self,
        ledger: Ledger,
        live: LiveBoard,
        clock: Clock,
        remaining: Remaining,
        tariff: Callable[[], Tariff | None] = lambda: None,
        window_grace_s: float = GRACE_S,
    ) -> None:
        """`remaining`: what is left of an attempt that has not shown yet how fast it goes."""
        self.lock = threading.RLock()
        self.queue = Queue(LEAST_S / GRACE_S * window_grace_s)
        self._ledger = ledger
        self._tariff = tariff
        self._live = live
        self._clock = clock
        self._estimated = remaining
        self._runs: dict[str, _Open] = {}
        self._attempts: dict[tuple[str, int], AttemptRecord] = {}
        self._made: dict[tuple[str, int], tuple[AttemptRecord, _Open | None, Sign | None, Grant]] = {}
        with self.lock:
            ledger.watch(self._follow)
            with ledger.read() as transaction:
                self._take_all(transaction)
                for attempt in transaction.open_attempts():
                    self._attempts[attempt.run_id, attempt.number] = attempt

    def _take_all(self, transaction: Transaction) -> None:
        tariff = self._tariff()
        for queued in transaction.each_queued():
            self.queue.add(waiting(queued, tariff))
        for run in transaction.runs(states=tuple(EXECUTING)):
            self._take_run(run)

    def tariff_changed(self) -> None:
        """Think of every run again: there is another tariff."""
        with self.lock, self._ledger.read() as transaction:
            self._take_all(transaction)

    def waiting_of(self, run: RunRecord) -> Waiting:
        """A queued run as the planner sees it, by the tariff of today."""
        return waiting_of(run, self._tariff())

    def _follow(self, transaction: Transaction) -> None:
        with self.lock:
            for key, attempt in transaction.attempts_changed.items():
                if attempt.ended:
                    self._attempts.pop(key, None)
                    self._made.pop(key, None)
                else:
                    self._attempts[key] = attempt
            for run in transaction.runs_changed.values():
                self._take_run(run)

    def _take_run(self, run: RunRecord) -> None:
        if run.state == RunState.QUEUED:
            self.queue.add(self.waiting_of(run))
        else:
            self.queue.remove(run.id)
        if run.state.final or run.state == RunState.QUEUED:
            self._runs.pop(run.id, None)
        else:
            self._runs[run.id] = _open(run, self._tariff())

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing executes."""
        return not (self._runs or self._attempts or len(self.queue))

    def names(self) -> dict[str, str]:
        """Names of the runs that execute, by id."""
        return {run_id: run.name for run_id, run in self._runs.items()}

    def executing(self) -> list[RunRecord]:
        """Runs that execute."""
        return [run.record for run in self._runs.values()]

    def open_attempts(self) -> list[AttemptRecord]:
        """Attempts that have not ended."""
        return list(self._attempts.values())

    def grants(self) -> list[Grant]:
        """What attempts hold, one grant for each rank. An attempt counts until it has ended."""
        found: list[Grant] = []
        for attempt in self._attempts.values():
            first = self._grant(attempt)
            found.append(first)
            for member in attempt.members:
                found.append(replace(first, ray_id=member.ray_id, node=member.node, gpu_ids=member.gpu_ids))
        return found

    def _grant(self, attempt: AttemptRecord) -> Grant:
        """Made anew only where the attempt has been heard of since, or has changed."""
        key = (attempt.run_id, attempt.number)
        run, sign = self._runs.get(attempt.run_id), self._live.sign(*key)
        made = self._made.get(key)
        if made is not None and made[0] is attempt and made[1] is run and made[2] is sign:
            return made[3]
        grant = self._new_grant(attempt, run, sign)
        self._made[key] = (attempt, run, sign, grant)
        return grant

    def _new_grant(self, attempt: AttemptRecord, run: _Open | None, sign: Sign | None) -> Grant:
        now = self._clock.now().timestamp()
        saved = None if sign is None or sign.saved is None else now - (self._clock.monotonic() - sign.saved)
        remaining = _remaining(run, sign)
        if remaining is None and run is not None and run.target is not None:
            step = attempt.first_step if sign is None or sign.step is None else sign.step
            remaining = self._estimated(run.record, attempt, step)
        return _grant(attempt, run, remaining, saved, now)

    def running(self, now: float) -> list[Running]:
        """What upgrades are decided by."""
        found = []
        for attempt in self._attempts.values():
            run = self._runs.get(attempt.run_id)
            if run is None or attempt.started_at is None or run.attempt != attempt.number:
                continue
            sign = self._live.sign(attempt.run_id, attempt.number)
            remaining = _remaining(run, sign)
            saves = remaining is not None if run.target else sign is not None and sign.saved is not None
            found.append(
                Running(
                    self._grant(attempt),
                    run.shape,
                    now - attempt.started_at.timestamp(),
                    remaining,
                    moves=run.migrates
                    and not run.stopping
                    and saves
                    and not attempt.members
                    and not _closed(run, now + MOVE_LEAST_S),
                )
            )
        return found

    def closing(self, at: float) -> list[tuple[str, int]]:
        """Runs that execute, with their attempts, and are outside their hours at this Unix time."""
        found = [(run_id, run) for run_id, run in self._runs.items() if run.hours is not None]
        return [(run_id, run.attempt) for run_id, run in found if not run.stopping and _closed(run, at)]


def _closed(run: _Open, at: float) -> bool:
    return run.hours is not None and not run.hours.open_at(at)


def running_of(
    run: RunRecord, attempt: AttemptRecord, remaining: float | None, saved: float | None, now: float
) -> Grant:
    """What rank 0 of an attempt holds; `remaining` seconds of work, and when it was saved, where known."""
    executing = not run.state.final and run.state != RunState.QUEUED
    return _grant(attempt, _open(run, None) if executing else None, remaining, saved, now)


def _grant(
    attempt: AttemptRecord, run: _Open | None, remaining: float | None, saved: float | None, now: float
) -> Grant:
    demand = demand_of(attempt.variant_index, attempt.variant)
    gpu_ids = attempt.gpu_ids or tuple(range(attempt.variant.gpus))
    if run is None or run.attempt != attempt.number:  # an attempt that its run has left, and that may end
        name = run.name if run else attempt.run_id
        left = Grant(attempt.run_id, name, attempt.ray_id, demand, (0, 0, 0), gpu_ids, stopping=True)
        return replace(left, node=attempt.node)
    begun = (attempt.started_at or attempt.created_at).timestamp()
    end = None if remaining is None else now + remaining
    limits = [
        None if run.left is None else begun + run.left,
        None if run.hours is None else run.hours.closes(now),
    ]
    limit = min((at for at in limits if at is not None), default=None)
    return Grant(
        attempt.run_id,
        run.name,
        attempt.ray_id,
        demand,
        run.order,
        gpu_ids,
        ends=min((at for at in (end, limit) if at is not None), default=None),
        estimated=end is not None and (limit is None or end < limit),
        stopping=run.stopping,
        backfill=attempt.backfill,
        saved=begun if saved is None else saved,
        user=run.user,
        experiment=run.experiment,
        node=attempt.node,
    )


def _remaining(run: _Open | None, sign: Sign | None) -> float | None:
    """Seconds that the run would still take where it is; None where that is not known."""
    if run is None or sign is None or sign.step is None or sign.pace is None or run.target is None:
        return None
    return max(0, run.target - sign.step) * sign.pace


def waiting_of(run: RunRecord, tariff: Tariff | None = None) -> Waiting:
    """A queued run as the planner sees it."""
    spec = run.spec
    return Waiting(
        run.id,
        spec.name,
        _order(spec.priority, run.front, run.seq),
        sys.intern(run.user),
        sys.intern(spec.experiment),
        shape_of(spec, run.pin_pool, run.avoid),
        run.created_at.timestamp(),
        run.not_before.timestamp() if run.not_before else None,
        run.held,
        _left(spec.max_duration, run.seconds_used),
        hours_of_run(run, tariff),
    )


def waiting(run: QueuedRun, tariff: Tariff | None = None) -> Waiting:
    """The same from the short record."""
    return Waiting(
        run.id,
        run.name,
        _order(run.priority, run.front, run.seq),
        run.user,
        run.experiment,
        shape_of(run, run.pin_pool, run.avoid),
        run.created_at.timestamp(),
        run.not_before.timestamp() if run.not_before else None,
        run.held,
        _left(run.max_duration, run.seconds_used),
        hours_of(run.window, run.max_price, tariff),
    )


def hours_of_run(run: RunRecord, tariff: Tariff | None) -> Hours | None:
    """When a run may execute; None: always."""
    spec = run.spec
    return hours_of(tuple(spec.window) if spec.window is not None else None, spec.max_price, tariff)


def _order(priority: int, front: int, seq: int) -> Order:
    return (-priority, -front, seq)


def _left(max_duration: float | None, used: float) -> float | None:
    return None if max_duration is None else max(0.0, max_duration - used)


def _target(run: RunRecord) -> int | None:
    steps = (run.pause_at, run.spec.trainer.max_steps if run.spec.trainer else None)
    return min((step for step in steps if step is not None), default=None)


def _open(run: RunRecord, tariff: Tariff | None) -> _Open:
    spec = run.spec
    return _Open(
        spec.name,
        run.attempt,
        sys.intern(run.user),
        sys.intern(spec.experiment),
        _order(spec.priority, run.front, run.seq),
        shape_of(spec, avoid=run.avoid),
        stopping=run.stop is not None,
        migrates=spec.migrate == "auto" and run.pin_pool is None,
        target=_target(run),
        left=_left(spec.max_duration, run.seconds_used),
        hours=hours_of_run(run, tariff),
        record=run,
    )
