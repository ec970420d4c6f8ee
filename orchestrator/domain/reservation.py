"""Nodes that are kept for a run that fits nowhere yet."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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

    @property
    def begins(self) -> float:
        """When the run is expected to start."""
        return max(self.at.values())


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
    found: list[tuple[float, int, str, Room]] = []
    """When, after how many ends, node, and what is left over then."""
    for room in near:
        # One that was ordered to go is surer to go than one that is overdue.
        ends = sorted(room.grants, key=lambda grant: (_expected(grant, now), not grant.stopping))
        needed = must_end(room, demand, ends) if demand.ranks == 1 else ends
        if needed is not None:
            at = max((_expected(grant, now) for grant in needed), default=now)
            found.append((at, len(needed), room.node.name, room.without(needed)))
    ranks, at_of, spare = 0, dict[str, float](), dict[str, Room]()
    for at, _, _, left in sorted(found, key=lambda one: one[:3]):
        before = ranks
        while ranks < demand.ranks and left.fits(demand):
            place = Place(left.node.ray_id, left.node.name, left.choose(demand))
            left.take(grant_of(waiting, demand, place, now))
            ranks += 1
        if ranks > before:
            at_of[left.node.ray_id], spare[left.node.ray_id] = at, left
        if ranks == demand.ranks:
            return Reservation(waiting, demand, at_of, spare)
    return None


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
