"""Who has to make room, and who moves to a better place. Pure.

Both take effect through a checkpoint: what is ordered to go saves, ends, and waits in its old place of the
queue. Neither costs a retry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.domain.demand import Demand, Shape
from orchestrator.domain.exchange import would_start
from orchestrator.domain.planner import Desk, eligible
from orchestrator.domain.queue import Waiting
from orchestrator.domain.room import Grant, Room, must_end

REST_S = 60.0
"""An attempt stays at least so long where it began before an upgrade may move it."""
GAIN = 1.25
"""An upgrade has to make the rest of the run, its move included, faster by this factor."""
UNKNOWN_WORTH = 5.0
"""Where the speed there is not known, the rest of the run here has to be so many times the cost of a move."""
_HEADS = 8
"""Blocked runs for which room is looked for in one plan."""
_TRIES = 2
"""Ways to make room for one run that are looked at."""

_Way = list[tuple[Room, list[Grant]]]
"""For each rank a room, and who has to go there."""


@dataclass(frozen=True)
class Eviction:
    """An attempt that has to save and go."""

    victim: Grant
    goes_first: Waiting
    """The run that gets its place."""


@dataclass(frozen=True)
class Running:
    """What an upgrade is decided by."""

    grant: Grant
    shape: Shape
    attempt_s: float
    """Seconds since the attempt began."""
    remaining_s: float | None
    """Expected rest of the run here; None where nothing is known."""
    moves: bool
    """Whether it may be moved: `migrate: auto`, one rank, something to go on from, and no other order."""


@dataclass(frozen=True)
class Upgrade:
    """A run that is to save and go on in a better placement."""

    running: Running
    demand: Demand
    ray_id: str
    node: str


def evictions(desk: Desk) -> list[Eviction]:
    """Who makes room for the first of those that wait, so that each fits once its victims have gone.

    Victims are attempts of lower priority, and backfill that went before its turn. Of the nodes that would
    do, it is the one where the least important, and then the least work, is lost. The rooms are changed.
    """
    found: dict[str, Eviction] = {}
    placed: set[str] = set()
    for waiting in desk.plan.blocked[:_HEADS]:
        if desk.limit_of_experiment(waiting.experiment):
            continue
        for demand in eligible(waiting, desk.now):
            if desk.limit_of_pool(demand.pool):
                continue
            rooms = [
                room
                for room in desk.pools.get(demand.pool, [])
                if not room.node.closed and desk.may_use(waiting, demand, room)
            ]
            ways = _ways(waiting, demand, rooms, desk.now, desk.keeps_for(waiting, demand))
            served = ((way, _served(way, waiting, desk, placed)) for way in ways[:_TRIES])
            way, first = next((one for one in served if one[1] is not None), ([], None))
            if first is None:
                continue
            placed.add(waiting.run_id)
            for room, victims in way:
                for victim in victims:
                    room.give_back(victim)
                    if not victim.stopping:
                        found.setdefault(victim.run_id, Eviction(victim, first))
                room.take(_claim(waiting, demand, room))
            break
    return list(found.values())


def _claim(waiting: Waiting, demand: Demand, room: Room) -> Grant:
    """The place that a run gets; it makes room for nobody who comes after."""
    gpu_ids = room.choose(demand)
    return Grant(waiting.run_id, waiting.name, room.node.ray_id, demand, waiting.order, gpu_ids)


def _served(way: _Way, waiting: Waiting, desk: Desk, placed: Collection[str]) -> Waiting | None:
    """Who would start in the place of these; None where they would go for nothing, come back, and go again.

    It may be somebody else's turn once they hold nothing. That counts where he is above them all.
    """
    gone = {victim.run_id: victim for _, victims in way for victim in victims}
    highest = max((victim.priority for victim in gone.values() if not victim.stopping), default=None)
    if highest is None:
        return waiting
    starts = would_start(waiting, desk, gone, placed)
    if any(start.waiting.run_id == waiting.run_id for start in starts):
        return waiting
    here = {room.node.ray_id for room, _ in way}
    above = (start for start in starts if -start.waiting.order[0] > highest)
    return next((start.waiting for start in above if here & {place.ray_id for place in start.places}), None)


def _ways(waiting: Waiting, demand: Demand, rooms: Iterable[Room], now: float, kept: bool) -> list[_Way]:
    """What would make enough room for all ranks, best first."""
    options: list[tuple[tuple[int, float, int, str], tuple[Room, list[Grant]]]] = []
    for room in rooms:
        if room.node.cpus < demand.cpus or len(room.gpus) < demand.gpus:
            continue
        candidates = sorted(
            (grant for grant in room.grants if _yields(grant, waiting, kept)),
            key=lambda grant: (not grant.stopping, grant.priority, -grant.saved, grant.run_id),
        )
        victims = must_end(room, demand, candidates) if candidates or room.fits(demand) else None
        if victims is not None:
            ordered = [victim for victim in victims if not victim.stopping]
            highest = max((victim.priority for victim in ordered), default=-1000)
            loss = sum(now - victim.saved for victim in ordered)
            options.append(((highest, loss, len(ordered), room.node.name), (room, victims)))
    best = [option for _, option in sorted(options, key=lambda option: option[0])]
    if demand.ranks == 1:
        return [[option] for option in best]
    return [best[: demand.ranks]] if len(best) >= demand.ranks else []


def _yields(grant: Grant, waiting: Waiting, kept: bool) -> bool:
    """Whether a grant makes room for a run that waits, or does so already.

    Backfill does for the run that nodes are kept for, and only for that: who else goes first changes from
    plan to plan with what everybody holds.
    """
    if grant.run_id == waiting.run_id:
        return False
    if grant.stopping or grant.priority < -waiting.order[0]:
        return True
    return kept and grant.backfill and grant.order > waiting.order


def upgrades(
    running: Sequence[Running],
    desk: Desk,
    speedup: Callable[[Running, Demand], float | None],
    move_s: float,
    rest_s: float = REST_S,
) -> list[Upgrade]:
    """Runs that go on in a better one of their placements, which nobody who waits can use.

    `speedup` says how much faster a run is there, None where it is not known; `move_s` is what a move costs.
    Ordered by what waits in the queue, so that of two runs the one that goes first moves first.
    """
    found: list[Upgrade] = []
    for one in sorted(running, key=lambda one: one.grant.order):
        if not one.moves or one.attempt_s < rest_s:
            continue
        better = one.shape.demands
        for demand in better[: _position(one.shape, one.grant.demand)]:
            start = desk.place(_as_waiting(one, demand))
            if start is None or start.backfill:
                continue
            if any(place.node == node for place in start.places for node, _ in one.shape.avoid):
                continue
            if _pays(one, demand, speedup(one, demand), move_s):
                desk.apply(start)
                place = start.places[0]
                found.append(Upgrade(one, demand, place.ray_id, place.node))
                break
    return found


def _position(shape: Shape, demand: Demand) -> int:
    """Place of the current demand among the shape's; beyond them where it is not one of them."""
    return next(
        (place for place, one in enumerate(shape.demands) if one.index >= demand.index), len(shape.demands)
    )


def _as_waiting(one: Running, demand: Demand) -> Waiting:
    grant = one.grant
    shape = Shape((demand,), avoid=one.shape.avoid)
    return Waiting(grant.run_id, grant.name, grant.order, grant.user, grant.experiment, shape, since=0.0)


def _pays(one: Running, demand: Demand, speedup: float | None, move_s: float) -> bool:
    if speedup is None and demand.gpus < one.grant.demand.gpus:
        return False  # the spec's order alone is no reason to leave a GPU
    if one.remaining_s is None:
        return True  # the spec's order says which is better
    if speedup is None:
        return one.remaining_s >= UNKNOWN_WORTH * move_s
    return one.remaining_s >= GAIN * (move_s + one.remaining_s / speedup)
