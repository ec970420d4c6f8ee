"""Applies what the planner decides: starts, and orders to make room or to move up."""

from __future__ import annotations

import heapq
import logging
import threading
from dataclasses import replace

from orchestrator.clock import Clock
from orchestrator.control.board import Board
from orchestrator.control.estimates import Estimates
from orchestrator.control.fleet import Fleet
from orchestrator.domain.demand import Demand
from orchestrator.domain.exchange import still_promised
from orchestrator.domain.planner import Desk, Limits, Start, plan
from orchestrator.domain.queue import Waiting
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.rivalry import REST_S, Eviction, Running, Upgrade, evictions, upgrades
from orchestrator.domain.room import Grant, Room, rooms_of
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.domain.transitions import make_room
from orchestrator.domain.why import Verdict, explain
from orchestrator.store.ledger import Ledger, Transaction

log = logging.getLogger(__name__)

MOVE_S = 15.0
"""What a move costs where none has been measured: saving, starting the program, restoring."""
_MOST_TAKEN = 1000
_FRESH_S = 1.0
"""Answers to people may be so old."""


class Scheduling:
    """Decides and records. :meth:`round` is for the loop's thread; the rest may be called from any."""

    def __init__(
        self, board: Board, ledger: Ledger, estimates: Estimates, clock: Clock, rest_s: float = REST_S
    ) -> None:
        self._board = board
        self._estimates = estimates
        self._ledger = ledger
        self._clock = clock
        self._rest_s = rest_s
        self._coming: dict[str, Grant] = {}
        """Places of runs that save elsewhere in order to go there."""
        self._promised: dict[str, str] = {}
        """Runs that make room, and the runs that get their places."""
        self._taken: dict[tuple[str, int], tuple[Waiting, RunRecord, AttemptRecord | None]] = {}
        """Runs that were asked about lately, with their last attempts."""
        self._shown: tuple[float, Fleet, Desk] | None = None
        self._lock = threading.Lock()
        self._limits: Limits | None = None
        self.draining = False
        """True once machines are being taken down: nothing new starts."""

    # ---- deciding

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing executes."""
        return self._board.idle

    def round(self, fleet: Fleet) -> tuple[list[tuple[RunRecord, AttemptRecord]], bool]:
        """Start and order what should be; what was started, and whether there is more to do at once.

        What has changed between planning and recording is left to the next round.
        """
        with self._board.lock:
            desk = self._desk(fleet)
            if desk.plan.more:
                out, up = [], []
            else:
                out, up = evictions(desk), self._upgrades(desk)
        self._shown = None
        if not (desk.plan.starts or out or up):
            return [], False
        started: list[tuple[RunRecord, AttemptRecord]] = []
        with self._ledger.begin() as ledger:
            for start in desk.plan.starts:
                run = ledger.run(start.waiting.run_id)
                if run.state == RunState.QUEUED and self._board.waiting_of(run) == start.waiting:
                    started.append(self._start(ledger, run, start))
            for eviction in out:
                self._evict(ledger, eviction)
            for upgrade in up:
                self._upgrade(ledger, upgrade)
        return started, desk.plan.more

    def desk(self, fleet: Fleet) -> Desk:
        """What would be decided now; nothing is recorded."""
        with self._board.lock:
            return self._desk(fleet)

    def _desk(self, fleet: Fleet) -> Desk:
        now = self._clock.now().timestamp()
        grants = self._board.grants()
        self._promised = still_promised(self._promised, grants)
        return plan(
            self._board.queue,
            rooms_of(fleet.nodes, grants),
            self.limits(),
            now,
            self._still_coming(),
            takes=self._takes,
            first=set(self._promised.values()),
        )

    def _still_coming(self) -> list[Grant]:
        saving = {attempt.run_id for attempt in self._board.open_attempts()}
        self._coming = {run_id: grant for run_id, grant in self._coming.items() if run_id in saving}
        return list(self._coming.values())

    def _upgrades(self, desk: Desk) -> list[Upgrade]:
        return upgrades(self._board.running(desk.now), desk, self._speedup, MOVE_S, self._rest_s)

    def _takes(self, waiting: Waiting, demand: Demand) -> float | None:
        """What is left of a run that waits, in one of its placements; None where nothing is known."""
        key = (waiting.run_id, demand.index)
        known = self._taken.get(key)
        if known is None or known[0] is not waiting:
            with self._ledger.read() as ledger:
                run = ledger.run(waiting.run_id)
                last = ledger.last_attempts([run.id]).get(run.id)
            if len(self._taken) >= _MOST_TAKEN:
                self._taken.clear()
            known = self._taken[key] = (waiting, run, last)
        return self._estimates.would_take(known[1], known[1].spec.placement[demand.index], known[2])

    def _speedup(self, running: Running, demand: Demand) -> float | None:
        with self._ledger.read() as ledger:
            run = ledger.run(running.grant.run_id)
            attempt = ledger.attempt(run.id, run.attempt)
        return self._estimates.speedup(run, attempt, run.spec.placement[demand.index])

    # ---- recording

    def _start(self, ledger: Transaction, run: RunRecord, start: Start) -> tuple[RunRecord, AttemptRecord]:
        """Record the attempt before it is launched, so that a crash in between loses nothing."""
        now = self._clock.now()
        run = replace(run, state=RunState.STARTING, attempt=run.attempt + 1, message="", reason=None)
        first, *others = start.places
        attempt = AttemptRecord(
            run_id=run.id,
            number=run.attempt,
            ray_id=first.ray_id,
            node=first.node,
            variant_index=start.demand.index,
            variant=run.spec.placement[start.demand.index],
            phase=Phase.LAUNCHING,
            created_at=now,
            gpu_ids=first.gpu_ids,
            members=tuple(Member(place.ray_id, place.node, place.gpu_ids) for place in others),
            backfill=start.backfill,
        )
        ledger.save_run(run)
        ledger.add_attempt(attempt)
        names = ", ".join(dict.fromkeys(place.node for place in start.places))
        before = ", before its turn" if start.backfill else ""
        ledger.add_event(run.id, now, "placed", f"attempt {run.attempt} goes to {names}{before}")
        return run, attempt

    def _evict(self, ledger: Transaction, eviction: Eviction) -> None:
        victim = ledger.run(eviction.victim.run_id)
        ordered = make_room(victim, Reason.PREEMPTED)
        if ordered == victim:
            return
        first = eviction.goes_first
        ledger.save_run(ordered)
        self._promised[victim.id] = first.run_id
        text = f"saves and makes room for {first.name} ({first.run_id}), which goes first"
        ledger.add_event(victim.id, self._clock.now(), "preempted", text)

    def _upgrade(self, ledger: Transaction, upgrade: Upgrade) -> None:
        run = ledger.run(upgrade.running.grant.run_id)
        if run.stop is not None or run.state != RunState.RUNNING:
            return
        ledger.save_run(make_room(run, Reason.UPGRADED))
        text = f"{upgrade.node} (pool {upgrade.demand.pool}) is free and better: saves, to go on there"
        ledger.add_event(run.id, self._clock.now(), "upgrade", text)
        self._coming[run.id] = replace(
            upgrade.running.grant, ray_id=upgrade.ray_id, demand=upgrade.demand, gpu_ids=()
        )

    # ---- limits

    def limits(self) -> Limits:
        """Those that are set."""
        if self._limits is None:
            with self._ledger.read() as ledger:
                self._limits = Limits(ledger.limits("pool"), ledger.limits("experiment"))
        return self._limits

    def set_limit(self, kind: str, name: str, most: int | None) -> Limits:
        """Set the limit of a `pool` or an `experiment`, or take it away with None."""
        with self._ledger.begin() as ledger:
            ledger.set_limit(kind, name, most)
        self._limits = self._shown = None
        return self.limits()

    # ---- answering

    def why(self, run_id: str, fleet: Fleet) -> Verdict | None:
        """What stands in the way of a run that waits; None where it does not wait."""
        with self._lock, self._board.lock:
            waiting = self._board.queue.get(run_id)
            return explain(waiting, self._shown_desk(fleet)) if waiting is not None else None

    def forget_shown(self) -> None:
        """Answer from a fresh plan."""
        self._shown = None

    def judge(self, candidate: RunRecord, fleet: Fleet) -> Verdict:
        """What would stand in the way of a run that has not been submitted."""
        with self._lock, self._board.lock:
            return explain(self._board.waiting_of(candidate), self._shown_desk(fleet))

    def rooms(self, fleet: Fleet) -> dict[str, Room]:
        """What attempts hold, by the nodes' Ray ids."""
        with self._board.lock:
            return rooms_of(fleet.nodes, self._board.grants())

    def first_in_line(self, count: int) -> list[str]:
        """The first runs that wait."""
        with self._board.lock:
            first = heapq.nsmallest(count, self._board.queue, key=lambda one: one.order)
        return [one.run_id for one in first]

    def line(self, count: int, fleet: Fleet) -> list[tuple[Waiting, Verdict]]:
        """The first runs that wait, with what stands in the way of each."""
        with self._lock, self._board.lock:
            first = heapq.nsmallest(count, self._board.queue, key=lambda one: one.order)
            desk = self._shown_desk(fleet) if first else None
            return [(one, explain(one, desk)) for one in first] if desk is not None else []

    def ahead(self, priority: int) -> int:
        """Waiting runs that go before a new one of this priority."""
        with self._board.lock:
            return sum(not one.held and one.order[0] <= -priority for one in self._board.queue)

    def _shown_desk(self, fleet: Fleet) -> Desk:
        at = self._clock.monotonic()
        if self._shown is None or at - self._shown[0] > _FRESH_S or self._shown[1] is not fleet:
            self._shown = (at, fleet, self._desk(fleet))
        return self._shown[2]
