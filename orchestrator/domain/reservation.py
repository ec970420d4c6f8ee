"""Nodes that are kept for a run that fits nowhere yet."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.domain.demand import Demand
from orchestrator.domain.queue import Waiting
from orchestrator.domain.room import Grant, Room, must_end

_RESERVABLE = 32
"""Nodes of a pool that are looked at to find the one to keep."""


@dataclass(frozen=True)
class Place:
    """Where one rank goes."""

    ray_id: str
    node: str
    gpu_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reservation:
    """Nodes of one pool that are kept for a run that fits nowhere yet."""

    waiting: Waiting
    demand: Demand
    at: Mapping[str, float]
    """Ray id of each node -> Unix time at which it is expected to be free for it; infinite: unknown."""
    spare: Mapping[str, Room]
    """What will be left over of them then."""
    unsure: int = 0
    """Attempts in its way that were not ordered to go."""
    also: Mapping[str, str] = field(default_factory=dict)
    """Ray id -> name of the run for which others make room there, and which comes after this one."""

    @property
    def begins(self) -> float:
        """When the run is expected to start."""
        return max(self.at.values())

    @property
    def sort_key(self) -> tuple[float, int]:
        """Smaller is better. Of what is overdue and what was ordered to go only the latter is sure to go:
        where others make room for the run, it is there that nobody else may begin meanwhile."""
        return self.begins, self.unsure


def grant_of(waiting: Waiting, demand: Demand, place: Place, now: float, backfill: bool = False) -> Grant:
    """What one rank of a start holds."""
    ends = waiting.latest_end(now)
    return Grant(
        waiting.run_id,
        waiting.name,
        place.ray_id,
        demand,
        waiting.order,
        place.gpu_ids,
        ends=ends if ends < math.inf else None,
        backfill=backfill,
        user=waiting.user,
        experiment=waiting.experiment,
    )


def reserve(waiting: Waiting, demand: Demand, rooms: Iterable[Room], now: float) -> Reservation | None:
    """The nodes of a pool that are expected to be free for it first; None where it can never fit there."""
    near = heapq.nsmallest(_RESERVABLE, (room for room in rooms if not room.node.closed), key=_promising)
    found: list[tuple[float, int, int, str, Room]] = []
    """When, after how many ends that are not sure, after how many at all, node, what is left over then."""
    for room in near:
        # One that was ordered to go is surer to go than one that is overdue.
        ends = sorted(room.grants, key=lambda grant: (_expected(grant, now), not grant.stopping))
        needed = must_end(room, demand, ends) if demand.ranks == 1 else ends
        if needed is not None:
            at = max((_expected(grant, now) for grant in needed), default=now)
            unsure = sum(not grant.stopping for grant in needed)
            found.append((at, unsure, len(needed), room.node.name, room.without(needed)))
    ranks, unsure_at_all, at_of, spare = 0, 0, dict[str, float](), dict[str, Room]()
    for at, unsure, _, _, left in sorted(found, key=lambda one: one[:4]):
        before = ranks
        while ranks < demand.ranks and left.fits(demand):
            place = Place(left.node.ray_id, left.node.name, left.choose(demand))
            left.take(grant_of(waiting, demand, place, now))
            ranks += 1
        if ranks > before:
            at_of[left.node.ray_id], spare[left.node.ray_id] = at, left
            unsure_at_all += unsure
        if ranks == demand.ranks:
            return Reservation(waiting, demand, at_of, spare, unsure_at_all)
    return None


def with_promise(kept: Reservation, promised: Reservation) -> Reservation:
    """The same, and what others are about to leave for a run that comes later in the queue: who comes after
    both would begin there only to be ordered to go, again and again."""
    at, spare, also = dict(kept.at), dict(kept.spare), dict(kept.also)
    for ray_id, room in promised.spare.items():
        known = spare.get(ray_id)
        if known is not None:
            room = known.without([grant for grant in known.grants if grant.stopping])
            for _ in range(promised.demand.ranks):
                if room.fits(promised.demand):
                    place = Place(ray_id, room.node.name, room.choose(promised.demand))
                    room.take(grant_of(promised.waiting, promised.demand, place, 0.0))
        at[ray_id] = min(promised.at[ray_id], at.get(ray_id, math.inf))
        spare[ray_id], also[ray_id] = room, promised.waiting.name
    return replace(kept, at=at, spare=spare, also=also)


def _promising(room: Room) -> tuple[float, float, str]:
    first = min((grant.ends for grant in room.grants if grant.ends is not None), default=math.inf)
    return first, -room.cpus, room.node.name


def _expected(grant: Grant, now: float) -> float:
    """When a grant is expected to be free: one that is overdue, or was ordered to go, at any moment.

    So nothing begins as backfill where all that is in the way is going: it would be ordered to go, too.
    """
    if grant.stopping:
        return now
    return math.inf if grant.ends is None else max(grant.ends, now)
