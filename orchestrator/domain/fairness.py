"""Whose turn it is within a level: of the user who holds least, and of that user's experiment that does."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from orchestrator.domain.demand import Demand, Shape
from orchestrator.domain.queue import Bench, Level, Line, Queue, Waiting
from orchestrator.domain.room import Room

if TYPE_CHECKING:
    from orchestrator.domain.planner import Desk


_Lines = dict[str, Line]
"""Those of one shape by experiment."""


class Usage:
    """Who holds how much: the larger of the parts of all CPUs and of all GPUs (dominant resource)."""

    def __init__(self, rooms: Iterable[Room]) -> None:
        self._cpus = self._gpus = 0.0
        self.users: dict[str, float] = defaultdict(float)
        self.within: dict[tuple[str, str], float] = defaultdict(float)
        """By user and experiment."""
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
        self.users[user] += part
        self.within[user, experiment] += part
        if first:
            self.pools[demand.pool] += 1
            self.experiments[experiment] += 1


def in_turn(level: Level, queue: Queue, desk: Desk) -> Iterator[Waiting]:
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
        self._passed: dict[int, int] = {}
        """How many of a line have had their turn."""
        self._best: list[tuple[float, int, str, int, Shape, _Lines]] = []
        """For each shape (usage, number, experiment, id of the shape, shape, its lines); perhaps outdated."""
        for shape, lines in bench.shapes.items():
            self._push(shape, lines)

    def next(self) -> Waiting | None:
        """Whose turn it is; None where nobody is left who could start."""
        while self._best:
            used, _, experiment, _, shape, lines = heapq.heappop(self._best)
            if self._desk.usage.within[self._user, experiment] != used:
                self._push(shape, lines)
                continue
            line = lines[experiment]
            index = self._passed.get(id(line), 0)
            waiting = self._queue.get(line[index][1])
            assert waiting is not None
            if self._desk.hopeless(waiting):  # and so are the younger ones behind it
                self._passed[id(line)] = len(line)
                self._push(shape, lines)
                continue
            self._passed[id(line)] = index + 1
            self._push(shape, lines)
            return waiting
        return None

    def _push(self, shape: Shape, lines: _Lines) -> None:
        """The best of a shape, unless nothing of it is left or can start."""
        if self._desk.hopeless_shape(shape):
            return
        full, within = self._desk.full, self._desk.usage.within
        best: tuple[float, int, str] | None = None
        for experiment, line in lines.items():
            index = self._passed.get(id(line), 0)
            if index >= len(line) or experiment in full:
                continue
            key = (within[self._user, experiment], line[index][0], experiment)
            if best is None or key < best:
                best = key
        if best is not None:
            heapq.heappush(self._best, (*best, id(shape), shape, lines))
