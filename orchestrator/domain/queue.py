"""The runs that wait, kept so that the next one is found without looking at all of them."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

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
    """Holds waiting runs. Adding one that is there replaces it."""

    def __init__(self) -> None:
        self._runs: dict[str, Waiting] = {}
        self._levels: dict[tuple[int, int], Level] = {}
        self._later: list[tuple[float, str]] = []
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
        if waiting.not_before is not None:
            heapq.heappush(self._later, (waiting.not_before, waiting.run_id))
        else:
            self._line_up(waiting)

    def remove(self, run_id: str) -> None:
        """It does not wait any more; nothing happens where it did not."""
        waiting = self._runs.pop(run_id, None)
        if waiting is None or run_id not in self._ready:
            return
        self._ready.discard(run_id)
        level = self._levels[waiting.level]
        bench = level[waiting.user]
        bench.drop(waiting)
        if not bench.everything:
            del level[waiting.user]
        if not level:
            del self._levels[waiting.level]

    def due(self, now: float) -> None:
        """Line up what was to wait until now."""
        while self._later and self._later[0][0] <= now:
            instant, run_id = heapq.heappop(self._later)
            waiting = self._runs.get(run_id)
            if waiting is None or waiting.held or run_id in self._ready:
                continue
            if waiting.not_before == instant:
                self._line_up(waiting)

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
