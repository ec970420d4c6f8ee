"""Which run starts where: a pure function of the queue, the machines and the time.

Levels (priority, then `orch queue top`) are served one after the other. Within a level the next run is of
the user who holds least, of that user's experiment that holds least, and there the one that was accepted
first. It takes the first of its variants that fits.

A run that fits nowhere keeps a node in each of its pools: the one that is expected to be free for it first.
What goes after it may still start, marked as backfill, where that does not touch the node, where it ends
before the node is free, or where it takes what will be left over. Backfill makes room again once the run that
goes first would fit without it, see :mod:`orchestrator.domain.rivalry`.

Within one plan room only shrinks, so that of runs of one shape only one is looked at once it does not fit.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.domain.demand import Demand, Shape
from orchestrator.domain.queue import Bench, Level, Queue, Waiting
from orchestrator.domain.reservation import Place, Reservation, grant_of, reserve
from orchestrator.domain.room import Grant, Room

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
) -> Desk:
    """Who starts now. The rooms are changed: they have the starts in them afterwards.

    `coming` are the places of runs that are saving elsewhere in order to go there: only levels before theirs
    may still take them.
    """
    queue.due(now)
    desk = Desk(rooms, limits, now)
    expected = sorted(coming, key=lambda grant: grant.order, reverse=True)
    for key, level in queue.levels():
        while expected and expected[-1].order[:2] <= key:
            desk.keep(expected.pop())
        for waiting in _in_turn(level, queue, desk):
            start = desk.place(waiting)
            if start is None:
                desk.block(waiting)
                continue
            desk.apply(start)
            desk.plan.starts.append(start)
            if len(desk.plan.starts) >= most:
                desk.plan.more = True
                return desk
    for grant in reversed(expected):
        desk.keep(grant)
    return desk


def eligible(waiting: Waiting, now: float) -> tuple[Demand, ...]:
    """The variants that it would take now."""
    return waiting.shape.demands[:1] if _best_only(waiting, now) else waiting.shape.demands


def _best_only(waiting: Waiting, now: float) -> bool:
    return waiting.shape.best and now < waiting.since + waiting.shape.wait


class Desk:
    """What a plan has decided so far."""

    def __init__(self, rooms: Mapping[str, Room], limits: Limits, now: float) -> None:
        self.plan = Plan()
        self.limits = limits
        self.now = now
        self.rooms = rooms
        self.pools: dict[str, list[Room]] = {}
        self.open: dict[str, list[Room]] = {}
        self._most_cpus: dict[str, float] = defaultdict(float)
        self._most_gpus: dict[str, int] = defaultdict(int)
        """Free on one node of a pool when the plan began."""
        self._blocked: set[tuple[int, bool]] = set()
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
        for demand in eligible(waiting, self.now):
            if self.limit_of_pool(demand.pool):
                continue
            if demand.cpus > self._most_cpus[demand.pool] or demand.gpus > self._most_gpus[demand.pool]:
                continue
            rooms = self._allowed(waiting, demand)
            places = _one(rooms, demand) if demand.ranks == 1 else _gang(waiting, rooms, demand)
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
        return [room for room in rooms if self.may_use(waiting, demand, room)]

    def may_use(self, waiting: Waiting, demand: Demand, room: Room) -> bool:
        """Whether a room is not kept for another run, or this one does not touch what is kept."""
        reservation = self.plan.reservations.get(demand.pool)
        if reservation is None or reservation.waiting.run_id == waiting.run_id:
            return True
        until = math.inf if waiting.lasts is None else self.now + waiting.lasts
        return reservation.allows(room, demand, until)

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
        self._blocked.add(self._key(waiting))
        self.plan.blocked.append(waiting)
        for demand in eligible(waiting, self.now):
            if demand.pool in self.plan.reservations or self.limit_of_pool(demand.pool):
                continue
            reservation = reserve(waiting, demand, self.pools.get(demand.pool, []), self.now)
            if reservation is not None:
                self.plan.reservations[demand.pool] = reservation


class Usage:
    """Who holds how much: the larger of the parts of all CPUs and of all GPUs (dominant resource)."""

    def __init__(self, rooms: Iterable[Room]) -> None:
        self._cpus = self._gpus = 0.0
        self.users: Counter[str] = Counter()
        self.within: Counter[tuple[str, str]] = Counter()
        self.pools: Counter[str] = Counter()
        self.experiments: Counter[str] = Counter()
        rooms = list(rooms)
        for room in rooms:
            self._cpus += room.node.cpus
            self._gpus += room.node.gpus
        seen: set[str] = set()
        for room in rooms:
            for grant in room.grants:
                first = grant.run_id not in seen
                seen.add(grant.run_id)
                self.add(grant.user, grant.experiment, grant.demand, first=first)

    def add(self, user: str, experiment: str, demand: Demand, *, first: bool, ranks: int = 1) -> None:
        """Count ranks in; `first` ones count as an attempt, too."""
        part = ranks * max(
            demand.cpus / self._cpus if self._cpus else 0.0,
            demand.gpus / self._gpus if self._gpus else 0.0,
        )
        self.users[user] += part  # type: ignore[assignment]  # a Counter of floats
        self.within[user, experiment] += part  # type: ignore[assignment]
        if first:
            self.pools[demand.pool] += 1
            self.experiments[experiment] += 1


def _in_turn(level: Level, queue: Queue, desk: Desk) -> Iterator[Waiting]:
    """The runs of a level, each when it is its turn. What was yielded before has started or is hopeless."""
    users = [(desk.usage.users[user], bench.everything[0], user) for user, bench in level.items()]
    heapq.heapify(users)
    turns: dict[str, _Turns] = {}
    while users:
        used, first, user = heapq.heappop(users)
        if used != desk.usage.users[user]:
            heapq.heappush(users, (desk.usage.users[user], first, user))
            continue
        if user not in turns:
            turns[user] = _Turns(user, level[user], queue, desk)
        waiting = turns[user].next()
        if waiting is not None:
            yield waiting
            heapq.heappush(users, (desk.usage.users[user], first, user))


class _Turns:
    """The runs of one user in turn: of the experiment that holds least, then the oldest."""

    def __init__(self, user: str, bench: Bench, queue: Queue, desk: Desk) -> None:
        self._user = user
        self._queue = queue
        self._desk = desk
        self._shapes = bench.shapes
        self._passed: dict[int, int] = {}
        """How many of a line have had their turn."""
        self._best: list[tuple[float, int, str, int, Shape]] = []
        """For each shape (usage, number, experiment, id of the shape, shape); perhaps outdated."""
        for shape in bench.shapes:
            self._push(shape)

    def next(self) -> Waiting | None:
        """Whose turn it is; None where nobody is left who could start."""
        while self._best:
            used, _, experiment, _, shape = heapq.heappop(self._best)
            if self._desk.usage.within[self._user, experiment] != used:
                self._push(shape)
                continue
            line = self._shapes[shape][experiment]
            index = self._passed.get(id(line), 0)
            waiting = self._queue.get(line[index][1])
            assert waiting is not None
            if self._desk.hopeless(waiting):  # and so are the younger ones behind it
                self._passed[id(line)] = len(line)
                self._push(shape)
                continue
            self._passed[id(line)] = index + 1
            self._push(shape)
            return waiting
        return None

    def _push(self, shape: Shape) -> None:
        """The best of a shape, unless nothing of it is left or can start."""
        if self._desk.hopeless_shape(shape):
            return
        best: tuple[float, int, str, int, Shape] | None = None
        for experiment, line in self._shapes[shape].items():
            index = self._passed.get(id(line), 0)
            if index >= len(line) or experiment in self._desk.full:
                continue
            key = (
                self._desk.usage.within[self._user, experiment],
                line[index][0],
                experiment,
                id(shape),
                shape,
            )
            if best is None or key[:2] < best[:2]:
                best = key
        if best is not None:
            heapq.heappush(self._best, best)


def _one(rooms: Iterable[Room], demand: Demand) -> tuple[Place, ...]:
    """The fullest node that takes it, so that larger ones stay free for larger runs; empty: none does."""
    room = min(rooms, key=_fullness, default=None)
    if room is None:
        return ()
    return (Place(room.node.ray_id, room.node.name, room.choose(demand)),)


def _fullness(room: Room) -> tuple[int, float, str]:
    return _free_gpus(room), room.cpus, room.node.name


def _free_gpus(room: Room) -> int:
    return sum(not gpu.whole for gpu in room.gpus)


def _gang(waiting: Waiting, rooms: list[Room], demand: Demand) -> tuple[Place, ...]:
    """Places for all ranks, as few nodes as possible; empty where they do not all fit."""
    trials = [room.copy() for room in rooms]
    places: list[Place] = []
    for room in sorted(trials, key=lambda room: (-room.cpus, room.node.name)):
        while len(places) < demand.ranks and room.fits(demand):
            place = Place(room.node.ray_id, room.node.name, room.choose(demand))
            room.take(grant_of(waiting, demand, place, 0.0))
            places.append(place)
    return tuple(places) if len(places) == demand.ranks else ()
