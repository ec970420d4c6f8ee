"""Keeps every attempt in sight: notices those that are over, unreachable, or back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta

from orchestrator.clock import Clock
from orchestrator.control.exclusions import NodeHealth
from orchestrator.control.fleet import Fleet
from orchestrator.control.live import LiveBoard
from orchestrator.control.nodebook import NodeBook
from orchestrator.control.outcomes import Outcomes
from orchestrator.control.probes import Probes
from orchestrator.control.shares import gpu_share
from orchestrator.domain.demand import shape_of
from orchestrator.domain.fleet import Away, NodeInfo
from orchestrator.domain.liveness import FORGOTTEN_S, Facts, Lost, Silent, may_leave, needs_probe, verdict
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.room import Room
from orchestrator.domain.states import Reason
from orchestrator.domain.transitions import abandon, lose_sight
from orchestrator.messages_agent import Outcome
from orchestrator.store.ledger import Ledger

log = logging.getLogger(__name__)


class Sight:
    """Called by the loop once a round. Safe to repeat at any time."""

    def __init__(
        self,
        ledger: Ledger,
        live: LiveBoard,
        outcomes: Outcomes,
        probes: Probes,
        health: NodeHealth,
        book: NodeBook,
        rooms: Callable[[Fleet], Mapping[str, Room]],
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._live = live
        self._outcomes = outcomes
        self._probes = probes
        self._health = health
        self._book = book
        self._rooms = rooms
        self._clock = clock
        self._returned: dict[str, float] = {}
        """Actor name -> since when its machine has been back as another Ray node, in monotonic seconds."""

    def look(self, fleet: Fleet) -> None:
        """End what is over, and let runs leave machines that were away for too long."""
        with self._ledger.read() as ledger:
            attempts = ledger.open_attempts()
        away: dict[str, Away] = {}
        speaking: set[str] = set()
        for attempt in attempts:
            facts = self._facts(attempt, fleet)
            found = verdict(attempt, facts)
            if isinstance(found, Lost):
                outcome = Outcome(reason=found.reason, message=found.message)
                self._outcomes.end(attempt.run_id, attempt.number, outcome)
            elif isinstance(found, Silent):
                since = self._clock.now() - timedelta(seconds=facts.silence)
                away[attempt.ray_id] = Away(f"{attempt.node} cannot be reached", since)
                self._silent(attempt, facts, found, fleet)
            elif facts.returned_s is not None:
                self._rebind(attempt, fleet)
            if found is None:
                speaking.add(attempt.ray_id)
                self._probes.forget(attempt.actor_name)
        self._health.away({ray_id: one for ray_id, one in away.items() if ray_id not in speaking})

    def _facts(self, attempt: AttemptRecord, fleet: Fleet) -> Facts:
        node = _successor(attempt, fleet)
        now, name = self._clock.monotonic(), attempt.actor_name
        if node is None:
            self._returned.pop(name, None)
        elif name not in self._returned:
            self._returned[name] = now
        sign = self._live.sign(attempt.run_id, attempt.number)
        known = sign.boot_id if sign is not None else ""
        silence = self._live.silence(attempt.run_id, attempt.number)
        facts = Facts(
            silence=silence,
            node_alive=fleet.alive(attempt.ray_id),
            returned_s=now - self._returned[name] if node is not None else None,
            rebooted=bool(node and node.boot_id and known and node.boot_id != known),
            missed=self._book.misses(attempt.node, attempt.name, silence, known),
        )
        return replace(facts, actor=self._probes.answer(name)) if needs_probe(facts) else facts

    def _silent(self, attempt: AttemptRecord, facts: Facts, found: Silent, fleet: Fleet) -> None:
        with self._ledger.read() as ledger:
            run = ledger.run(attempt.run_id)
        if run.attempt != attempt.number or run.state.final:
            if facts.silence > FORGOTTEN_S:
                outcome = Outcome(reason=Reason.AWAY, message=f"{attempt.node} was not heard of again")
                self._outcomes.end(attempt.run_id, attempt.number, outcome)
            return
        if lose_sight(run, found.message) != run:
            self._lose_sight(attempt, found.message)
            return
        why = may_leave(run, facts, lambda: self._fits_elsewhere(run, attempt, fleet))
        if why:
            self._leave(attempt, why, fleet)

    def _lose_sight(self, attempt: AttemptRecord, message: str) -> None:
        with self._ledger.begin() as ledger:
            run = ledger.run(attempt.run_id)
            if run.attempt != attempt.number or self._heard(attempt):
                return
            after = lose_sight(run, message)
            if after != run:
                ledger.save_run(after)
                ledger.add_event(run.id, self._clock.now(), "unreachable", message)

    def _leave(self, attempt: AttemptRecord, why: str, fleet: Fleet) -> None:
        now = self._clock.now()
        message = f"{attempt.node} was left: {why}"
        with self._ledger.begin() as ledger:
            run, attempt = ledger.run(attempt.run_id), ledger.attempt(attempt.run_id, attempt.number)
            if run.attempt != attempt.number or attempt.ended or self._heard(attempt):
                return
            run, attempt = abandon(run, attempt, now, message, gpu_share(fleet, attempt))
            ledger.save_run(run)
            ledger.save_attempt(attempt)
            ledger.add_event(run.id, now, "left", message)
        log.warning("run %s: %s", run.id, message)
        self._outcomes.left(run)

    def _heard(self, attempt: AttemptRecord) -> bool:
        """Whether its agent has spoken since the decision."""
        facts = Facts(silence=self._live.silence(attempt.run_id, attempt.number))
        return verdict(attempt, replace(facts, node_alive=False)) is None

    def _fits_elsewhere(self, run: RunRecord, attempt: AttemptRecord, fleet: Fleet) -> bool:
        """Whether another machine has room for the run now. Gangs wait: theirs is hard to tell."""
        if not fleet.connected:
            return False
        demands = [demand for demand in shape_of(run.spec, run.pin_pool).demands if demand.ranks == 1]
        others = [
            room
            for room in self._rooms(fleet).values()
            if room.node.name != attempt.node and not room.node.closed
        ]
        return any(
            room.node.pool == demand.pool and room.fits(demand) for room in others for demand in demands
        )

    def _rebind(self, attempt: AttemptRecord, fleet: Fleet) -> None:
        """The attempt speaks and goes on, on a machine that Ray had given up and counts as another node now:
        what it occupies is occupied there."""
        node = _successor(attempt, fleet)
        if node is None:
            return
        with self._ledger.begin() as ledger:
            attempt = ledger.attempt(attempt.run_id, attempt.number)
            if not attempt.ended:
                ledger.save_attempt(replace(attempt, ray_id=node.ray_id))
        log.info("%s goes on as a guest of Ray node %s", attempt.actor_name, node.ray_id)


def _successor(attempt: AttemptRecord, fleet: Fleet) -> NodeInfo | None:
    """The Ray node as which the attempt's machine has come back; None where it has not, or never left."""
    if fleet.alive(attempt.ray_id) is not False:
        return None
    return next((node for node in fleet.nodes if node.name == attempt.node and node.alive), None)
