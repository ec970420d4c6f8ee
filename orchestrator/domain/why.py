"""Why a run waits, in words, from the desk at which it was decided."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.domain.demand import Demand
from orchestrator.domain.planner import Desk, eligible
from orchestrator.domain.queue import Waiting
from orchestrator.domain.room import Room, must_end

_NODES = 8
"""Nodes of a pool that are named; of more only their number."""


@dataclass(frozen=True)
class NodeVerdict:
    """What one node says to one variant."""

    node: str
    why: str
    """Empty where it fits now."""
    until: datetime | None = None
    """When that is expected to end, where it is known."""


@dataclass(frozen=True)
class VariantVerdict:
    """What one variant meets."""

    index: int
    pool: str
    node: str | None
    """Where it would start now."""
    why: str
    nodes: tuple[NodeVerdict, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What stands in the way of one run."""

    run_id: str
    first: str
    """What concerns all variants, in words; empty where nothing does."""
    variants: tuple[VariantVerdict, ...]

    @property
    def node(self) -> str | None:
        """Where it would start now; None where it waits."""
        return None if self.first else next((one.node for one in self.variants if one.node), None)

    @property
    def why(self) -> str:
        """Why it waits, in one line; empty where it starts."""
        if self.first:
            return self.first
        return "" if self.node else "; ".join(one.why for one in self.variants)


def explain(waiting: Waiting, desk: Desk) -> Verdict:
    """What the planner would say of a run after it has done what it decided at this desk."""
    now = desk.now
    first = _for_all(waiting, desk)
    allowed = eligible(waiting, now)
    variants = []
    for demand in waiting.shape.demands:
        if demand in allowed:
            variants.append(_variant(waiting, demand, desk))
        else:
            end = _clock(waiting.since + waiting.shape.wait)
            why = f"pool {demand.pool} is for later: it waits for pool {allowed[0].pool} until {end}"
            variants.append(VariantVerdict(demand.index, demand.pool, None, why))
    return Verdict(waiting.run_id, first, tuple(variants))


def _for_all(waiting: Waiting, desk: Desk) -> str:
    if waiting.held:
        return "held back by its user (`orch queue release`)"
    if waiting.not_before is not None and waiting.not_before > desk.now:
        return f"tries again in {waiting.not_before - desk.now:.0f} s"
    return desk.limit_of_experiment(waiting.experiment)


def _variant(waiting: Waiting, demand: Demand, desk: Desk) -> VariantVerdict:
    rooms = desk.pools.get(demand.pool, [])
    if not rooms:
        known = ", ".join(sorted(desk.pools))
        there = f"pools there are: {known}" if known else "no node is connected"
        why = f"no node of pool {demand.pool} is there ({there})"
        return VariantVerdict(demand.index, demand.pool, None, why)
    limited = desk.limit_of_pool(demand.pool)
    nodes = tuple(_node(waiting, demand, room, desk) for room in rooms)
    if limited:
        return VariantVerdict(demand.index, demand.pool, None, limited, nodes)
    free = [node for node in nodes if not node.why]
    if len(free) >= 1 and demand.ranks == 1:
        return VariantVerdict(demand.index, demand.pool, free[0].node, f"fits on {free[0].node} now", nodes)
    start = desk.place(waiting) if demand.ranks > 1 else None
    if start is not None and start.demand == demand:
        names = ", ".join(dict.fromkeys(place.node for place in start.places))
        return VariantVerdict(demand.index, demand.pool, names, f"fits on {names} now", nodes)
    told = ", ".join(_told(node) for node in nodes[:_NODES])
    more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
    ranks = f" for {demand.ranks} ranks" if demand.ranks > 1 else ""
    why = f"pool {demand.pool} has no room{ranks} ({told}{more})"
    return VariantVerdict(demand.index, demand.pool, None, why, nodes)


def _told(node: NodeVerdict) -> str:
    until = f" until about {_clock(node.until.timestamp())}" if node.until else ""
    return f"{node.node}: {node.why or 'has room for one rank'}{until}"


def _node(waiting: Waiting, demand: Demand, room: Room, desk: Desk) -> NodeVerdict:
    lacks = room.lacks(demand)
    if lacks:
        return NodeVerdict(room.node.name, lacks, _until(demand, room))
    if not desk.may_use(waiting, demand, room):
        first = desk.plan.reservations[demand.pool].waiting.name
        return NodeVerdict(room.node.name, f"kept for {first}, which goes first")
    return NodeVerdict(room.node.name, "")


def _until(demand: Demand, room: Room) -> datetime | None:
    """When enough of what is in the way is expected to have ended, where that is known."""
    if room.node.closed:
        return None
    known = sorted((one for one in room.grants if one.ends is not None), key=lambda one: one.ends or 0.0)
    needed = must_end(room, demand, known)
    ends = [one.ends for one in needed or () if one.ends is not None]
    return datetime.fromtimestamp(max(ends), UTC) if ends else None


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%a %H:%M")
