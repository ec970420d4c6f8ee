"""The promises of design.md that a simulated world must keep, by their numbers there."""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from datetime import timedelta
from typing import Any

from orchestrator.control.board import hours_of_run
from orchestrator.domain.demand import Demand, shape_of
from orchestrator.domain.exchange import would_start
from orchestrator.domain.liveness import Facts
from orchestrator.domain.planner import Desk, Start, eligible
from orchestrator.domain.queue import Waiting
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.rivalry import Eviction
from orchestrator.domain.room import CONTEXT_BYTES, Grant, Room, must_end
from orchestrator.domain.states import Reason, RunState
from orchestrator.domain.why import explain
from tests.simulation.books import held_by
from tests.simulation.fleet import BEGIN, GIB, Agent
from tests.simulation.hours import starts_within, worked_within
from tests.simulation.world import World, possible

FREE = {
    *(Reason.MOVED, Reason.PREEMPTED, Reason.UPGRADED, Reason.NODE_LOST, Reason.FENCED),
    *(Reason.SHUTDOWN, Reason.DRAINED, Reason.OWNER, Reason.AWAY, Reason.WINDOW),
}
"""Ends that cost no retry (rule 11)."""


CIRCLES = 12


class BrokenPromiseError(AssertionError):
    """A rule did not hold; the message begins with its number."""


def promise(holds: object, rule: str, text: str) -> None:
    """Raise where a rule does not hold."""
    if not holds:
        raise BrokenPromiseError(f"{rule}: {text}")


def check(world: World, what: str, about: Any) -> None:
    """One thing that happened."""
    _CHECKS[what](world, about)


def _save(world: World, run: RunRecord) -> None:
    before = world.runs.get(run.id)
    if before is not None and before.state.final:
        promise(run == before, "rule 6", f"{run.id} was {before.state} and is changed")


def _start(world: World, about: tuple[RunRecord, AttemptRecord]) -> None:
    run, attempt = about
    promise(run.state == RunState.QUEUED, "rule 6", f"{run.id} is {run.state} and starts")
    promise(attempt.number < 200, "rule 4", f"{run.id} is started again and again")
    promise(not run.held, "rule 4", f"{run.id} is held and starts")
    promise(run.not_before is None or run.not_before <= world.instant, "rule 4", f"{run.id} starts early")
    within = starts_within(hours_of_run(run, None), world.instant)
    promise(within, "rule 7", f"{run.id} starts outside its window at {world.instant}")
    for ray_id, _ in held_by(attempt):
        machine = next((one for one in world.machines.values() if one.ray_id == ray_id), None)
        promise(
            machine is not None and not machine.info().closed, "rule 8", f"{run.id} starts where it may not"
        )
    _keeps_away(world, run, attempt)
    promise(1 + len(attempt.members) == attempt.variant.ranks, "rule 8", f"a part of {run.id} starts")
    waited = world.instant - run.created_at
    if run.spec.start == "best" and run.pin_pool is None and waited.total_seconds() < run.spec.wait:
        promise(attempt.variant_index == 0, "rule 8", f"{run.id} did not wait for the best placement")


def _keeps_away(world: World, run: RunRecord, attempt: AttemptRecord) -> None:
    """Where its memory ran out a run starts only if nothing else would do."""
    small = {one.node for one in world.of_run(run.id) if one.reason == Reason.HOST_MEMORY}
    nodes = {attempt.node, *(member.node for member in attempt.members)}
    if not nodes & small:
        return
    allowed = shape_of(run.spec, run.pin_pool).demands
    waited = (world.instant - run.created_at).total_seconds()
    if run.spec.start == "best" and waited < run.spec.wait:
        allowed = allowed[:1]
    infos = [machine.info() for machine in world.machines.values() if machine.name not in small]
    others = [Room.of(info) for info in infos if not info.closed]
    for demand in allowed:
        text = f"{run.id} starts on {nodes} again and pool {demand.pool} would do"
        promise(not possible(demand, others), "rule 11", text)


def _plan(world: World, about: tuple[Desk, list[Grant]]) -> None:
    desk, _ = about
    started = {start.waiting.run_id for start in desk.plan.starts}
    if world.events % 20 == 0 and not desk.plan.more:
        for one in world.queue:
            verdict = None if one.run_id in started else explain(one, desk)
            promise(
                verdict is None or verdict.why, "rule 4", f"{one.run_id} waits without a reason: {verdict}"
            )
    if desk.plan.more or all(start.backfill for start in desk.plan.starts):
        return
    waiting = [one for one in world.queue if one.run_id not in started and _may_start(one, desk)]
    for start in desk.plan.starts:
        if start.backfill:
            continue
        for other in waiting:
            if other.level < start.waiting.level:
                promise(
                    not _could_have(other, start, desk),
                    "rule 8",
                    f"{start.waiting.run_id} went before {other}",
                )


def _may_start(waiting: Waiting, desk: Desk) -> bool:
    late = waiting.not_before is not None and waiting.not_before > desk.now
    if waiting.hours is not None and not waiting.hours.admits(desk.now):
        return False
    return not waiting.held and not late and not desk.limit_of_experiment(waiting.experiment)


def _could_have(other: Waiting, start: Start, desk: Desk) -> bool:
    """Whether it would have fitted on what a run after it has got."""
    for demand in eligible(other, desk.now):
        if demand.ranks > 1 or demand.pool != start.demand.pool or desk.limit_of_pool(demand.pool):
            continue
        for place in start.places:
            room = desk.rooms[place.ray_id]
            if desk.keeps_away(other, room):
                continue
            mine = [grant for grant in room.grants if grant.run_id == start.waiting.run_id]
            if room.without(mine).fits(demand):
                return True
    return False


def _evictions(world: World, about: tuple[Desk, list[Eviction], dict[str, Room]]) -> None:
    desk, out, rooms = about
    for one in out:
        victim, first = one.victim, one.goes_first
        lower = victim.priority < -first.order[0]
        early = victim.backfill and victim.order > first.order
        promise(lower or early, "rule 8", f"{victim.run_id} makes room for {first.run_id}")
        promise(not victim.stopping, "rule 8", f"{victim.run_id} is ordered to go twice")
    if desk.plan.more or not desk.plan.blocked:
        return
    first = desk.plan.blocked[0]
    if any(one.goes_first.level <= first.level for one in out) or not _may_start(first, desk):
        return
    if any(grant.run_id == first.run_id for room in desk.rooms.values() for grant in room.grants):
        return  # it has a place, once others have gone; or an attempt that it has left is still there
    then = copy(desk)
    then.rooms = rooms
    for demand in eligible(first, desk.now):
        if demand.ranks == 1 and not desk.limit_of_pool(demand.pool):
            for room in rooms.values():
                text = f"nobody makes room for {first.run_id} on {room.node.name}"
                promise(not _could_make_room(first, demand, room, then), "rule 8", text)


def _could_make_room(first: Waiting, demand: Demand, room: Room, desk: Desk) -> bool:
    """Whether it would start there if what yields to it had gone, whichever of that it is."""
    if room.node.pool != demand.pool or room.node.closed or desk.keeps_away(first, room):
        return False
    if any(grant.stopping for grant in room.grants):
        return False
    kept = desk.keeps_for(first, demand)
    yields = [
        grant
        for grant in room.grants
        if grant.priority < -first.order[0] or (grant.backfill and grant.order > first.order and kept)
    ]
    ways = [yields, must_end(room, demand, yields), must_end(room, demand, yields[::-1])]
    return room.without(yields).fits(demand) and all(
        any(start.waiting.run_id == first.run_id for start in would_start(first, desk, _runs(way)))
        for way in ways
    )


def _runs(grants: list[Grant] | None) -> set[str]:
    return {grant.run_id for grant in grants or ()}


def _ended(world: World, about: tuple[RunRecord, AttemptRecord, Reason, RunRecord]) -> None:
    run, attempt, reason, after = about
    if reason in FREE:
        promise(after.retries_used == run.retries_used, "rule 11", f"{run.id} pays for {reason}")
    if run.stop == Reason.CANCELLED and reason != Reason.COMPLETED:
        promise(after.state == RunState.CANCELLED, "rule 6", f"{run.id} was cancelled and is {after.state}")
    promise(attempt.number == run.attempt, "rule 8", f"{run.id}: an old attempt ends it")
    promise(not _in_circles(world, run), "rule 4", f"{run.id} starts and makes room again and again")


def _in_circles(world: World, run: RunRecord) -> bool:
    """Whether its last attempts had all but begun when they were ordered to make room."""
    if run.attempt < CIRCLES:
        return False
    for attempt in world.of_run(run.id)[-CIRCLES:]:
        ended = attempt.ended_at or world.instant
        brief = (ended - attempt.created_at).total_seconds() < 15
        if not brief or attempt.reason not in (Reason.PREEMPTED, None):
            return False
    return True


def _lost(world: World, about: tuple[AttemptRecord, Agent | None]) -> None:
    attempt, agent = about
    lives = agent is not None and not agent.gone and agent.ended is None
    promise(not lives, "rule 13", f"{attempt.run_id} is declared lost and lives")


def _left(world: World, about: tuple[RunRecord, AttemptRecord, Facts]) -> None:
    run, attempt, facts = about
    patient = run.spec.migrate == "never" and run.stop is None
    promise(not patient or facts.silence >= run.spec.away, "rule 13", f"{run.id} left {attempt.node} early")
    promise(facts.silence > 0, "rule 13", f"{run.id} left {attempt.node}, which speaks")


def _worked(world: World, agent: Agent) -> None:
    assert agent.begun is not None
    hours, begun = hours_of_run(world.runs[agent.run_id], None), BEGIN + timedelta(seconds=agent.begun)
    within = worked_within(hours, begun, world.instant)
    promise(within, "rule 7", f"{agent.run_id} works outside its window, from {begun} to {world.instant}")


def _finish(world: World, agent: Agent) -> None:
    attempt = world.attempts[agent.run_id, agent.number]
    hours, begun = hours_of_run(world.runs[agent.run_id], None), attempt.created_at
    within = agent.slept or worked_within(hours, begun, world.instant)
    promise(within, "rule 7", f"{agent.run_id} ends at {world.instant}, after its window")


def _commit(world: World, key: tuple[str, int]) -> None:
    run_id, number = key
    promise(world.fences[run_id] == number, "rule 2", f"attempt {number} of {run_id} commits behind a fence")


def _upgrade(world: World, upgrade: Any) -> None:
    grant = upgrade.running.grant
    promise(upgrade.demand.index < grant.demand.index, "rule 8", f"{grant.run_id} moves to a worse place")
    promise(world.runs[grant.run_id].spec.migrate == "auto", "rule 8", f"{grant.run_id} may not be moved")


def _looked(world: World, desk: Desk) -> None:
    executed = {(attempt.run_id, attempt.number) for attempt in world.open_attempts()}
    for run in world.live():
        if run.state == RunState.QUEUED:
            promise(run.id in world.queue, "rule 4", f"{run.id} is queued and nobody knows")
        else:
            owned = (run.id, run.attempt) in executed
            promise(owned, "rule 4", f"{run.id} is {run.state} and nothing executes it")
    _capacity(world)


def _capacity(world: World) -> None:
    cpus: dict[str, float] = defaultdict(float)
    whole: dict[tuple[str, int], int] = defaultdict(int)
    shared: dict[tuple[str, int], int] = defaultdict(int)
    for attempt in world.open_attempts():
        wanted, share = attempt.variant.cpus, attempt.variant.gpu_memory
        for ray_id, gpu_ids in held_by(attempt):
            cpus[ray_id] += wanted
            for gpu in gpu_ids:
                if share is None:
                    whole[ray_id, gpu] += 1
                else:
                    shared[ray_id, gpu] += share + CONTEXT_BYTES
    for machine in world.machines.values():
        ray_id = machine.ray_id
        promise(cpus[ray_id] <= machine.cpus, "rule 8", f"{machine.name} has granted too many CPUs")
        for gpu in range(machine.gpus):
            one, some = whole[ray_id, gpu], shared[ray_id, gpu]
            promise(one <= 1 and not (one and some), "rule 8", f"a GPU of {machine.name} is granted twice")
            promise(some <= 12 * GIB, "rule 8", f"{machine.name} has granted too much GPU memory")


def _nothing(world: World, about: Any) -> None:
    pass


_CHECKS = {
    "save": _save,
    "start": _start,
    "plan": _plan,
    "evictions": _evictions,
    "ended": _ended,
    "commit": _commit,
    "worked": _worked,
    "finish": _finish,
    "upgrade": _upgrade,
    "looked": _looked,
    "cancel": _nothing,
    "lost": _lost,
    "left": _left,
}
