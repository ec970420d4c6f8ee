"""What the controller of a simulated world does: the real decisions, recorded in a dictionary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.domain import transitions
from orchestrator.domain.demand import shape_of
from orchestrator.domain.exchange import still_promised
from orchestrator.domain.liveness import Facts, Lost, Silent, may_leave, verdict
from orchestrator.domain.planner import Desk, plan
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.rivalry import Eviction, Running, evictions, upgrades
from orchestrator.domain.room import rooms_of
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.domain.transitions import after_attempt, after_left_attempt, make_room
from tests.simulation.books import Books
from tests.simulation.fleet import BEGIN


class Controlled(Books):
    """A world with a controller. What is on its machines comes with :class:`Executing`."""

    def _launch(self, attempt: AttemptRecord) -> None:
        raise NotImplementedError

    def _hear(self, key: tuple[str, int]) -> None:
        raise NotImplementedError

    def look(self) -> None:
        """One round of the controller: plan, record, launch, order."""
        self._look_after_the_silent()
        nodes = [machine.info() for machine in self.machines.values()]
        now = self.instant.timestamp()
        saving = {attempt.run_id for attempt in self.open_attempts()}
        self.coming = {run_id: grant for run_id, grant in self.coming.items() if run_id in saving}
        grants = self.grants()
        rooms = rooms_of(nodes, grants)
        self.promised = still_promised(self.promised, grants)
        first = set(self.promised.values())
        desk = plan(self.queue, rooms, self.limits, now, self.coming.values(), takes=self._takes, first=first)
        self.check(self, "plan", (desk, grants))
        before = {ray_id: room.copy() for ray_id, room in desk.rooms.items()}
        out = [] if desk.plan.more else evictions(desk)
        self.check(self, "evictions", (desk, out, before))
        for start in desk.plan.starts:
            self._start(start)
        for eviction in out:
            self._evict(eviction)
        if not desk.plan.more:
            self._upgrade(desk, now)
        self.check(self, "looked", desk)
        due = self.queue.next_due()
        if due is not None and not now < self.looks_at <= due:
            self.looks_at = due
            self.after(max(0.01, due - self.instant.timestamp()), self.look)
        if desk.plan.more:
            self.after(0.0, self.look)

    def _start(self, start: Any) -> None:
        run = self.runs[start.waiting.run_id]
        first, *others = start.places
        number = run.attempt + 1
        attempt = AttemptRecord(
            run.id,
            number,
            first.ray_id,
            first.node,
            start.demand.index,
            run.spec.placement[start.demand.index],
            Phase.LAUNCHING,
            self.instant,
            first.gpu_ids,
            tuple(Member(place.ray_id, place.node, place.gpu_ids) for place in others),
            start.backfill,
        )
        self.check(self, "start", (run, attempt))
        self.save_run(replace(run, state=RunState.STARTING, attempt=number, message="", reason=None))
        self.save_attempt(attempt)
        self.after(self.random.uniform(0.5, 3), lambda: self._launch(attempt))

    def _evict(self, eviction: Eviction) -> None:
        victim = self.runs[eviction.victim.run_id]
        if victim.stop is None and not victim.state.final and victim.state != RunState.QUEUED:
            self._order(make_room(victim, Reason.PREEMPTED))
            self.promised[victim.id] = eviction.goes_first.run_id

    def _upgrade(self, desk: Desk, now: float) -> None:
        running = []
        for attempt in self.open_attempts():
            run = self.runs[attempt.run_id]
            if run.state != RunState.RUNNING or attempt.number != run.attempt:
                continue
            age = now - attempt.created_at.timestamp()
            moves = run.spec.migrate == "auto" and run.pin_pool is None and not attempt.members
            running.append(Running(self._grant(attempt), self.shape(run), age, None, moves))
        for upgrade in upgrades(running, desk, lambda one, demand: None, 15.0):
            self.check(self, "upgrade", upgrade)
            grant = upgrade.running.grant
            self._order(make_room(self.runs[grant.run_id], Reason.UPGRADED))
            self.coming[grant.run_id] = replace(
                grant, ray_id=upgrade.ray_id, demand=upgrade.demand, gpu_ids=()
            )

    def _order(self, run: RunRecord) -> None:
        """Record an order to stop; the agent hears of it with its next beat."""
        self.save_run(run)
        key = (run.id, run.attempt)
        self.after(self.random.uniform(0.2, 1.5), lambda: self._hear(key))

    def _look_after_the_silent(self) -> None:
        """What the controller makes of machines of which it hears nothing."""
        for attempt in self.open_attempts():
            if any(self._given_up(member.node, member.ray_id) for member in attempt.members):
                self.end(attempt, Reason.NODE_LOST)
                continue
            facts = self._facts(attempt)
            found = verdict(attempt, facts)
            if isinstance(found, Lost):
                self.check(self, "lost", (attempt, self.agents.get((attempt.run_id, attempt.number))))
                self.end(attempt, found.reason)
            elif isinstance(found, Silent):
                self._silent(attempt, facts, found)

    def _given_up(self, name: str, ray_id: str) -> bool:
        machine = self.machines[name]
        return machine.ray_id != ray_id or not machine.known_alive

    def _facts(self, attempt: AttemptRecord) -> Facts:
        machine = self.machines[attempt.node]
        agent = self.agents.get((attempt.run_id, attempt.number))
        since = machine.silent_since if machine.silent else self.now
        if agent is None and attempt.phase != Phase.RUNNING:
            since = (attempt.created_at - BEGIN).total_seconds()
        elif agent is None or agent.gone:
            since = min(since, machine.silent_since)
        back = machine.ray_id != attempt.ray_id and machine.known_alive
        return Facts(
            silence=self.now - since,
            node_alive=machine.known_alive and machine.ray_id == attempt.ray_id,
            returned_s=self.now - machine.back_since if back else None,
            rebooted=back and agent is not None and agent.gone,
        )

    def _silent(self, attempt: AttemptRecord, facts: Facts, found: Silent) -> None:
        run = self.runs[attempt.run_id]
        if run.attempt != attempt.number or run.state.final:
            return
        after = transitions.lose_sight(run, found.message)
        if after != run:
            self.save_run(after)
            self.after(max(0.1, run.spec.away - facts.silence), self.look)
            return
        why = may_leave(run, facts, lambda: self._fits_elsewhere(run, attempt))
        if why:
            self.check(self, "left", (run, attempt, facts))
            run, attempt = transitions.abandon(run, attempt, self.instant, why)
            self.save_attempt(attempt)
            self.save_run(run)

    def _fits_elsewhere(self, run: RunRecord, attempt: AttemptRecord) -> bool:
        rooms = rooms_of([machine.info() for machine in self.machines.values()], self.grants())
        return any(
            room.node.pool == demand.pool and room.node.name != attempt.node and room.fits(demand)
            for room in rooms.values()
            if not room.node.closed
            for demand in shape_of(run.spec, run.pin_pool).demands
            if demand.ranks == 1
        )

    def end(self, attempt: AttemptRecord, reason: Reason) -> None:
        """Record the end of an attempt and what follows; a second end changes nothing."""
        known = self.attempts[attempt.run_id, attempt.number]
        if known.ended:
            return
        run = self.runs[attempt.run_id]
        owns = run.attempt == known.number and not run.state.final
        if owns:
            run, known = transitions.reach(run, known)
        self.save_attempt(replace(known, phase=Phase.ENDED, reason=reason, ended_at=self.instant))
        if owns:
            after = after_attempt(run, known, reason, "", self.instant)
            self.check(self, "ended", (run, known, reason, after))
            self.save_run(after)
        else:
            self.save_run(after_left_attempt(run, known, reason))
