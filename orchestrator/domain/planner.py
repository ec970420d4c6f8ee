"""Which run starts where: a pure function of the queue, the machines and the time.

Levels (priority, then `orch queue top`) are served one after the other. Within a level the next run is of
the user who holds least, of that user's experiment that holds least, and there the one that was accepted
first. It takes the first of its variants that fits.

A run that fits nowhere keeps a node in each of its pools: the one that is expected to be free for it first.
What goes after it may still start, marked as backfill, where that does not touch the node, where it ends
before the node is free, or where it takes what will be left over. Backfill makes room again once the run that
goes first would fit without it, see :mod:`orchestrator.domain.rivalry`.

A run avoids nodes on which it has failed for a reason that may be theirs. It takes any other place that is
free first. Where memory ran out it does not go again as long as some other node is large enough, even if
that one is in use now.

Within one plan room only shrinks, so that of runs of one shape only one is looked at once it does not fit.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from orchestrator.domain.demand import Demand, Shape
from orchestrator.domain.fairness import Usage, in_turn
from orchestrator.domain.queue import Queue, Waiting
from orchestrator.domain.reservation import Place, Reservation, grant_of, reserve, with_promise
from orchestrator.domain.retry import NODE_TOO_SMALL
from orchestrator.domain.room import Grant, Room

Takes = Callable[[Waiting, Demand], float | None]
"""Seconds that a run is expected to take in a placement, by how fast runs like it went; None: unknown."""

MOST_STARTS = 32
"""Starts of one plan; the next plan follows at once."""


@dataclass(frozen=True)
class Limits:
    """Most attempts at a time, set by `orch limit`."""

    pools: Mapping[str, int] = field(default_factory=dict)
    experiments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """A run that starts now."""

    waiting: Waiting
    demand: Demand
    places: tuple[Place, ...]
    """One for each rank."""
    backfill: bool = False


@dataclass
class Plan:
    """What is to happen."""

    starts: list[Start] = field(default_factory=list)
    blocked: list[Waiting] = field(default_factory=list)
    """In the order of the queue, the first one of each shape that did not fit."""
    reservations: dict[str, Reservation] = field(default_factory=dict)
    """By pool."""
    more: bool = False
    """Whether to plan again at once: the longest list of starts was reached."""


def plan(
    queue: Queue,
    rooms: Mapping[str, Room],
    limits: Limits,
    now: float,
    coming: Iterable[Grant] = (),
    most: int = MOST_STARTS,
    takes: Takes = lambda waiting, demand: None,
    first: Collection[str] = (),
    without: Collection[str] = (),
    until: str = "",
) -> Desk:
    """Who starts now. The rooms are changed: they have the starts in them afterwards.

    `coming` are the places of runs that are saving elsewhere in order to go there: only levels before theirs
    may still take them. `takes` is asked only where it matters: whether a run ends before a node is needed.
    Of their levels the runs `first` have their turn first: others make room for them, and what these hold
    decides whose turn it is. The runs `without` are passed over, and nothing is decided after `until`.
    """
    queue.due(now)
    desk = Desk(rooms, limits, now, takes, queue, first)
    expected = sorted(coming, key=lambda grant: grant.order, reverse=True)
    for key, level in queue.levels():
        while expected and expected[-1].order[:2] <= key:
            desk.keep(expected.pop())
        for waiting in chain(_promised(key, queue, first), in_turn(level, queue, desk)):
            if waiting.run_id in without or waiting.run_id in desk.seen:
                continue
            desk.seen.add(waiting.run_id)
            start = desk.place(waiting)
            if start is None:
                desk.block(waiting)
            else:
                desk.apply(start)
                desk.plan.starts.append(start)
            if waiting.run_id == until:
                return desk
            if len(desk.plan.starts) >= most:
                desk.plan.more = True
                return desk
    for grant in reversed(expected):
        desk.keep(grant)
    return desk


def _promised(key: tuple[int, int], queue: Queue, first: Collection[str]) -> list[Waiting]:
    """Those of a level for whom others make room."""
    ready = (queue.ready(run_id) for run_id in first)
    return sorted((one for one in ready if one and one.level == key), key=lambda one: one.order)


def eligible(waiting: Waiting, now: float) -> tuple[Demand, ...]:
    """The variants that it would take now."""
    return waiting.shape.demands[:1] if _best_only(waiting, now) else waiting.shape.demands


def _best_only(waiting: Waiting, now: float) -> bool:
    return waiting.shape.best and now < waiting.since + waiting.shape.wait


_TRIES = 8
"""Runs of one shape that are looked at where nodes are kept for another."""


class Desk:
    """What a plan has decided so far."""

    def __init__(
        self,
        rooms: Mapping[str, Room],
        limits: Limits,
        now: float,
        takes: Takes = lambda waiting, demand: None,
        queue: Queue | None = None,
        first: Collection[str] = (),
    ) -> None:
        self.plan = Plan()
        self.queue = Queue() if queue is None else queue
        self.first = first
        self.seen: set[str] = set()
        """Who has had a turn."""
        self.takes = takes
        self.limits = limits
        self.now = now
        self.least_s = self.queue.least_s
        """What has to be left of a run's hours for it to start."""
        self.rooms = rooms
        self.pools: dict[str, list[Room]] = {}
        self.open: dict[str, list[Room]] = {}
        self._most_cpus: dict[str, float] = defaultdict(float)
        self._most_gpus: dict[str, int] = defaultdict(int)
        """Free on one node of a pool when the plan began."""
        self._blocked: set[tuple[int, bool]] = set()
        self._refused: Counter[tuple[int, bool]] = Counter()
        self._too_long = False
        """Whether a node that is kept for another stood in the way of the run that was placed last."""
        self._others: dict[tuple[int, bool], bool] = {}
        """Whether nodes that it does not avoid could take runs of a shape."""
        self.full: set[str] = set()
        """Experiments at their limit."""
        self.usage = Usage(rooms.values())
        for room in rooms.values():
            self.pools.setdefault(room.node.pool, []).append(room)
            if room.cpus >= 1 and not room.node.closed:
                pool = room.node.pool
                self.open.setdefault(pool, []).append(room)
                self._most_cpus[pool] = max(self._most_cpus[pool], room.cpus)
                self._most_gpus[pool] = max(self._most_gpus[pool], _free_gpus(room))

    def hopeless(self, waiting: Waiting) -> bool:
        """Whether one like it has been looked at already, and did not fit."""
        return self._key(waiting) in self._blocked or waiting.experiment in self.full

    def hopeless_shape(self, shape: Shape) -> bool:
        """Whether no run of a shape can start."""
        return (id(shape), False) in self._blocked

    def _key(self, waiting: Waiting) -> tuple[int, bool]:
        return id(waiting.shape), _best_only(waiting, self.now)

    def place(self, waiting: Waiting) -> Start | None:
        """Where it would start; None where nothing fits."""
        if self.limit_of_experiment(waiting.experiment):
            return None
        self._too_long = False
        options: list[tuple[Demand, list[Room]]] = []
        for demand in eligible(waiting, self.now):
            if self.limit_of_pool(demand.pool):
                continue
            if demand.cpus > self._most_cpus[demand.pool] or demand.gpus > self._most_gpus[demand.pool]:
                continue
            options.append((demand, self._allowed(waiting, demand)))
        avoided = {node for node, _ in waiting.shape.avoid}
        elsewhere = [(d, [room for room in rooms if room.node.name not in avoided]) for d, rooms in options]
        for demand, rooms in [*elsewhere, *options] if avoided else options:
            bounded = [(room, self._bound(waiting, demand, room)) for room in rooms]
            places = _one(bounded, demand) if demand.ranks == 1 else _gang(waiting, bounded, demand)
            if places:
                return Start(waiting, demand, places, demand.pool in self.plan.reservations)
        return None

    def limit_of_experiment(self, experiment: str) -> str:
        """Why a limit stands in the way, in words; empty where none does."""
        limit = self.limits.experiments.get(experiment)
        if limit is None or self.usage.experiments[experiment] < limit:
            return ""
        return f"experiment {experiment} is at its limit of {limit}"

    def limit_of_pool(self, pool: str) -> str:
        """The same for a pool."""
        limit = self.limits.pools.get(pool)
        if limit is None or self.usage.pools[pool] < limit:
            return ""
        return f"pool {pool} is at its limit of {limit}"

    def _allowed(self, waiting: Waiting, demand: Demand) -> list[Room]:
        """Nodes that one rank fits on and that are not kept for others."""
        rooms = [room for room in self.open[demand.pool] if room.fits(demand)]
        allowed = [
            room
            for room in rooms
            if not self.keeps_away(waiting, room)
            and room.fits_within(demand, self._bound(waiting, demand, room))
        ]
        self._too_long = self._too_long or len(allowed) < len(rooms)
        return allowed

    def may_use(self, waiting: Waiting, demand: Demand, room: Room) -> bool:
        """Whether nothing but what is in use stands in the way of a run in a room: it does not keep away from
        it, and the room is not kept for another run, or this one does not touch what is kept."""
        if self.keeps_away(waiting, room):
            return False
        bound = self._bound(waiting, demand, room)
        return bound is None or bound.fits(demand)

    def _bound(self, waiting: Waiting, demand: Demand, room: Room) -> Room | None:
        """What will be left over of a room that is kept for another run; None where a run need not keep to
        that: it ends before, or the room is not kept."""
        reservation = self.plan.reservations.get(demand.pool)
        if reservation is None or reservation.waiting.run_id == waiting.run_id:
            return None
        at = reservation.at.get(room.node.ray_id)
        if at is None or waiting.latest_end(self.now) < at < math.inf:
            return None
        estimated = self.takes(waiting, demand) if at < math.inf else None
        ends_before = estimated is not None and self.now + estimated < at
        return None if ends_before else reservation.spare[room.node.ray_id]

    def waits_behind(self, waiting: Waiting, demand: Demand) -> str:
        """Why a run waits although it fits, in words: so many like it did not. Or empty."""
        reservation = self.plan.reservations.get(demand.pool)
        if reservation is None or self.keeps_for(waiting, demand) or not self.hopeless(waiting):
            return ""
        return f"older runs like it do not end before {reservation.waiting.name} can start, which goes first"

    def keeps_away(self, waiting: Waiting, room: Room) -> str:
        """Why a run does not go to a node again, in words; empty where it may."""
        end = dict(waiting.shape.avoid).get(room.node.name)
        if end not in NODE_TOO_SMALL or not self._another_would_do(waiting):
            return ""
        return "its memory ran out there, and another node is large enough"

    def _another_would_do(self, waiting: Waiting) -> bool:
        """Whether nodes on which its memory has not run out could take a run, once others have ended."""
        key = self._key(waiting)
        if key not in self._others:
            small = {node for node, end in waiting.shape.avoid if end in NODE_TOO_SMALL}
            self._others[key] = any(self._could_ever(demand, small) for demand in eligible(waiting, self.now))
        return self._others[key]

    def _could_ever(self, demand: Demand, small: set[str]) -> bool:
        rooms = (room for room in self.pools.get(demand.pool, ()) if not room.node.closed)
        ranks = 0
        for room in rooms:
            ranks += 0 if room.node.name in small else room.could_ever(demand)
            if ranks >= demand.ranks:
                return True
        return False

    def keeps_for(self, waiting: Waiting, demand: Demand) -> bool:
        """Whether it is this run for which nodes of the pool are kept."""
        reservation = self.plan.reservations.get(demand.pool)
        return reservation is not None and reservation.waiting.run_id == waiting.run_id

    def apply(self, start: Start) -> None:
        """Count a start in."""
        waiting, demand = start.waiting, start.demand
        reservation = self.plan.reservations.get(demand.pool)
        for place in start.places:
            grant = grant_of(waiting, demand, place, self.now, start.backfill)
            self.rooms[place.ray_id].take(grant)
            spare = reservation.spare.get(place.ray_id) if reservation is not None else None
            if spare is not None and spare.fits(demand):
                spare.take(grant)
        self.usage.add(waiting.user, waiting.experiment, demand, first=True, ranks=demand.ranks)

    def keep(self, grant: Grant) -> None:
        """Keep the place of a run that is on its way, if it is still free."""
        room = self.rooms.get(grant.ray_id)
        if room is not None and room.fits(grant.demand):
            room.take(replace(grant, gpu_ids=room.choose(grant.demand)))

    def block(self, waiting: Waiting) -> None:
        """Remember that nothing like it fits, and keep nodes for it, unless others are waited for there."""
        if self.limit_of_experiment(waiting.experiment):
            self.full.add(waiting.experiment)
            self.plan.blocked.append(waiting)
            return
        key = self._key(waiting)
        self._refused[key] += 1
        # One that is too long to go before another may have a shorter one of its shape behind it.
        if not self._too_long or self._refused[key] >= _TRIES:
            self._blocked.add(key)
        if self._refused[key] > 1:
            return
        self.plan.blocked.append(waiting)
        found: dict[str, Reservation] = {}
        for demand in eligible(waiting, self.now):
            if demand.pool in self.plan.reservations or self.limit_of_pool(demand.pool):
                continue
            rooms = [room for room in self.pools.get(demand.pool, []) if not self.keeps_away(waiting, room)]
            reservation = reserve(waiting, demand, rooms, self.now)
            sooner = found.get(demand.pool)
            if reservation is not None and (sooner is None or reservation.sort_key < sooner.sort_key):
                found[demand.pool] = reservation
        self.plan.reservations.update(found)
        if waiting.run_id in self.first:
            self._keep_promise(waiting)

    def _keep_promise(self, waiting: Waiting) -> None:
        """Others make room for this run where nodes are kept for one before it: keep what they leave, too."""
        for demand in eligible(waiting, self.now):
            kept = self.plan.reservations.get(demand.pool)
            if kept is None or kept.waiting.run_id == waiting.run_id or self.limit_of_pool(demand.pool):
                continue
            rooms = [room for room in self.pools.get(demand.pool, []) if not self.keeps_away(waiting, room)]
            promised = reserve(waiting, demand, rooms, self.now)
            if promised is not None and promised.unsure == 0:
                self.plan.reservations[demand.pool] = with_promise(kept, promised)
                return


_Bounded = tuple[Room, Room | None]
"""A room, and what a run has to keep to in it; None: nothing."""


def _one(rooms: Iterable[_Bounded], demand: Demand) -> tuple[Place, ...]:
    """The fullest node that takes it, so that larger ones stay free for larger runs; empty: none does."""
    room, bound = min(rooms, key=lambda one: _fullness(one[0]), default=(None, None))
    if room is None:
        return ()
    return (Place(room.node.ray_id, room.node.name, room.choose(demand, bound)),)


def _fullness(room: Room) -> tuple[int, float, str]:
    return _free_gpus(room), room.cpus, room.node.name


def _free_gpus(room: Room) -> int:
    return sum(not gpu.whole for gpu in room.gpus)


def _gang(waiting: Waiting, rooms: Iterable[_Bounded], demand: Demand) -> tuple[Place, ...]:
    """Places for all ranks, as few nodes as possible; empty where they do not all fit."""
    trials = [(room.copy(), None if bound is None else bound.copy()) for room, bound in rooms]
    places: list[Place] = []
    for room, bound in sorted(trials, key=lambda one: (-one[0].cpus, one[0].node.name)):
        while len(places) < demand.ranks and room.fits_within(demand, bound):
            place = Place(room.node.ray_id, room.node.name, room.choose(demand, bound))
            for trial in (room, bound):
                if trial is not None:
                    trial.take(grant_of(waiting, demand, place, 0.0))
            places.append(place)
    return tuple(places) if len(places) == demand.ranks else ()
