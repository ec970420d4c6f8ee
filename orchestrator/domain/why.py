"""Why a run waits, in words, from the desk at which it was decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    estimated: bool = False
    """Whether `until` is told from how fast runs go; else it is the latest that limits allow."""


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
    outside = waiting.hours.why(desk.now, desk.least_s) if waiting.hours is not None else ""
    return outside or desk.limit_of_experiment(waiting.experiment)


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
    places = _places(waiting, demand, nodes, desk)
    behind = desk.waits_behind(waiting, demand)
    if places and not behind:
        return VariantVerdict(demand.index, demand.pool, places, f"fits on {places} now", nodes)
    if places:
        return VariantVerdict(demand.index, demand.pool, None, behind, nodes)
    told = ", ".join(_told(node) for node in nodes[:_NODES])
    more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
    ranks = f" for {demand.ranks} ranks" if demand.ranks > 1 else ""
    why = f"pool {demand.pool} has no room{ranks} ({told}{more})"
    return VariantVerdict(demand.index, demand.pool, None, why, nodes)


def _places(waiting: Waiting, demand: Demand, nodes: Sequence[NodeVerdict], desk: Desk) -> str:
    """Names of the nodes on which it fits now; empty where it does not."""
    if demand.ranks == 1:
        return next((node.node for node in nodes if not node.why), "")
    start = desk.place(waiting)
    fits = start is not None and start.demand == demand
    return ", ".join(dict.fromkeys(place.node for place in start.places)) if start and fits else ""


def _told(node: NodeVerdict) -> str:
    until = ""
    if node.until is not None:
        at = _clock(node.until.timestamp())
        until = f" until about {at} (estimate)" if node.estimated else f" until {at} at the latest"
    return f"{node.node}: {node.why or 'has room for one rank'}{until}"


def _node(waiting: Waiting, demand: Demand, room: Room, desk: Desk) -> NodeVerdict:
    lacks = room.lacks(demand)
    away = "" if room.node.closed else desk.keeps_away(waiting, room)
    if lacks or away:
        until, estimated = (None, False) if away else _until(demand, room)
        return NodeVerdict(room.node.name, away or lacks, until, estimated)
    if not desk.may_use(waiting, demand, room):
        reservation = desk.plan.reservations[demand.pool]
        at = reservation.at[room.node.ray_id]
        starts = datetime.fromtimestamp(at, UTC) if at < math.inf else None
        name = reservation.also.get(room.node.ray_id, reservation.waiting.name)
        why = f"kept for {name}, which goes first{_length(waiting, demand, desk)}"
        return NodeVerdict(room.node.name, why, starts, estimated=True)
    return NodeVerdict(room.node.name, "")


def _length(waiting: Waiting, demand: Demand, desk: Desk) -> str:
    """How long the run takes, where that is known: perhaps it is too long to go before."""
    estimated = desk.takes(waiting, demand)
    if estimated is not None and (waiting.lasts is None or estimated < waiting.lasts):
        return f"; this one takes about {_duration(estimated)} (estimate)"
    return f"; this one may take {_duration(waiting.lasts)}" if waiting.lasts is not None else ""


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _until(demand: Demand, room: Room) -> tuple[datetime | None, bool]:
    """When enough of what is in the way is expected to have ended, where that is known, and whether that is
    an estimate."""
    if room.node.closed:
        return None, False
    known = sorted((one for one in room.grants if one.ends is not None), key=lambda one: one.ends or 0.0)
    needed = must_end(room, demand, known)
    last = max(needed or (), key=lambda one: one.ends or 0.0, default=None)
    if last is None or last.ends is None:
        return None, False
    return datetime.fromtimestamp(last.ends, UTC), any(one.estimated for one in needed or ())


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%a %H:%M")
