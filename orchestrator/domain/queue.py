"""The runs that wait, kept so that the next one is found without looking at all of them."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.domain.admission import LEAST_S, Hours
from orchestrator.domain.demand import Shape

Order = tuple[int, int, int]
"""Minus priority, minus front, number of acceptance: what goes first is smaller."""
Line = list[tuple[int, str]]
"""(number of acceptance, run), oldest first: the runs of one shape, user, experiment and level."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits."""

    run_id: str
    name: str
    order: Order
    user: str
    experiment: str
    shape: Shape
    since: float
    """Unix time from which `start: best` counts its wait."""
    not_before: float | None = None
    """Unix time; nothing starts before it."""
    held: bool = False
    lasts: float | None = None
    """Seconds that it takes at most; None where nothing limits it."""
    hours: Hours | None = None
    """When it may execute; None: always."""

    def latest_end(self, now: float) -> float:
        """Unix time by which an attempt that begins now has ended; infinite where nothing limits it."""
        closes = self.hours.closes(now) if self.hours is not None else None
        limit = math.inf if self.lasts is None else now + self.lasts
        return limit if closes is None else min(limit, closes)

    @property
    def level(self) -> tuple[int, int]:
        """Runs of one level are served fairly; a smaller level goes first."""
        return self.order[:2]


class Bench:
    """The runs of one user in one level."""

    __slots__ = ("everything", "shapes")

    def __init__(self) -> None:
        self.everything: Line = []
        self.shapes: dict[Shape, dict[str, Line]] = {}
        """Lines by shape, and by experiment."""

    def add(self, waiting: Waiting) -> None:
        """Let a run stand in its line."""
        entry = (waiting.order[2], waiting.run_id)
        insort(self.everything, entry)
        insort(self.shapes.setdefault(waiting.shape, {}).setdefault(waiting.experiment, []), entry)

    def drop(self, waiting: Waiting) -> None:
        """Take a run out, and its line where it is empty then."""
        entry = (waiting.order[2], waiting.run_id)
        del self.everything[bisect_left(self.everything, entry)]
        experiments = self.shapes[waiting.shape]
        line = experiments[waiting.experiment]
        del line[bisect_left(line, entry)]
        if not line:
            del experiments[waiting.experiment]
        if not experiments:
            del self.shapes[waiting.shape]


Level = dict[str, Bench]
"""By user."""


class Queue:
    """Holds waiting runs. Adding one that is there replaces it.

    A run outside its hours is in no line, and costs nothing until they begin.
    """

    def __init__(self, least_s: float = LEAST_S) -> None:
        """`least_s`: what has to be left of a run's hours for it to start."""
        self.least_s = least_s
        self._runs: dict[str, Waiting] = {}
        self._levels: dict[tuple[int, int], Level] = {}
        self._later: list[tuple[float, str]] = []
        """When to look at a run again: to line it up, or because its hours end. Old entries are skipped."""
        self._turn: dict[str, float] = {}
        """Which entry of a run counts."""
        self._ready: set[str] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._runs.values())

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def get(self, run_id: str) -> Waiting | None:
        """One run; None where it does not wait."""
        return self._runs.get(run_id)

    def ready(self, run_id: str) -> Waiting | None:
        """One run that may start now; None where it is held, paused, or does not wait."""
        return self._runs.get(run_id) if run_id in self._ready else None

    def add(self, waiting: Waiting) -> None:
        """Let a run wait."""
        self.remove(waiting.run_id)
        self._runs[waiting.run_id] = waiting
        if waiting.held:
            return
        if waiting.hours is not None:
            self._look_at(waiting, waiting.not_before or 0.0)
        elif waiting.not_before is not None:
            self._look_at(waiting, waiting.not_before)
        else:
            self._line_up(waiting)

    def remove(self, run_id: str) -> None:
        """It does not wait any more; nothing happens where it did not."""
        waiting = self._runs.pop(run_id, None)
        self._turn.pop(run_id, None)
        if waiting is not None and run_id in self._ready:
            self._leave_line(waiting)

    def due(self, now: float) -> None:
        """Line up what was to wait until now, and take out what is outside its hours now."""
        enter: list[Waiting] = []
        leave: list[Waiting] = []
        while self._later and self._later[0][0] <= now:
            instant, run_id = heapq.heappop(self._later)
            if self._turn.get(run_id) != instant:
                continue
            del self._turn[run_id]
            waiting = self._runs[run_id]
            admitted = waiting.hours is None or self._admitted(waiting, waiting.hours, now)
            if admitted != (run_id in self._ready):
                (enter if admitted else leave).append(waiting)
        # In the order of the lines: whole nights begin and end at once, and ends of lists are cheap.
        for waiting in sorted(enter, key=lambda one: one.order):
            self._line_up(waiting)
        for waiting in sorted(leave, key=lambda one: one.order, reverse=True):
            self._leave_line(waiting)

    def _admitted(self, waiting: Waiting, hours: Hours, now: float) -> bool:
        """Whether a run is within its hours; says when to look again."""
        if hours.admits(now, self.least_s):
            closes = hours.closes(now)
            if closes is not None:
                self._look_at(waiting, math.nextafter(closes - self.least_s, math.inf))
            return True
        start = hours.next_start(now, self.least_s)
        if start is not None:
            self._look_at(waiting, start)
        return False

    def _look_at(self, waiting: Waiting, at: float) -> None:
        self._turn[waiting.run_id] = at
        heapq.heappush(self._later, (at, waiting.run_id))

    def _leave_line(self, waiting: Waiting) -> None:
        run_id = waiting.run_id
        self._ready.discard(run_id)
        level = self._levels[waiting.level]
        bench = level[waiting.user]
        bench.drop(waiting)
        if not bench.everything:
            del level[waiting.user]
        if not level:
            del self._levels[waiting.level]

    def next_due(self) -> float | None:
        """Unix time of the next call of :meth:`due` that does something, perhaps."""
        return self._later[0][0] if self._later else None

    def levels(self) -> list[tuple[tuple[int, int], Level]]:
        """Those with runs that may start, first first, each with what orders it."""
        return [(key, self._levels[key]) for key in sorted(self._levels)]

    def _line_up(self, waiting: Waiting) -> None:
        level = self._levels.setdefault(waiting.level, {})
        if waiting.user not in level:
            level[waiting.user] = Bench()
        level[waiting.user].add(waiting)
        self._ready.add(waiting.run_id)
