"""Notices when a run becomes the best of its experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from orchestrator.clock import Clock
from orchestrator.control.board import Board
from orchestrator.control.wording import ENDED, OTHERS
from orchestrator.domain.notice import NoticeKind, beats
from orchestrator.domain.records import RunRecord
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool

LOOK_S: Final = 10.0
_IDLE_S: Final = 60.0
PAUSE_S: Final = 600.0
"""Least time between two notices about one experiment."""

Race = tuple[str, str, Literal["min", "max"]]
"""Runs that are compared: experiment, metric, mode."""
Tell = Callable[[RunRecord, "Mark", "Mark"], None]
"""Tell of a run's new best value, and which was the best before."""


@dataclass(frozen=True)
class Mark:
    """A value that a run has reached."""

    run_id: str
    name: str
    step: int
    value: float


@dataclass
class _Standing:
    """How a race stands."""

    bar: Mark | None
    """The best that is known to people; None while no run has ended."""
    told: datetime | None
    """When people were told last."""
    running: dict[str, Mark] = field(default_factory=dict)
    """The best of each run that executes, or has since the last look."""
    read: dict[str, int] = field(default_factory=dict)
    """Step up to which each run's values have been looked at."""
    candidate: tuple[RunRecord, Mark] | None = None
    """Better than the bar, and not told yet."""


class Best:
    """Called now and then. What was best is known again after a restart; what was to be told of runs that
    ended just before it is not."""

    def __init__(self, ledger: Ledger, spool: Spool, board: Board, clock: Clock, tell: Tell) -> None:
        self._ledger = ledger
        self._spool = spool
        self._board = board
        self._clock = clock
        self._tell = tell
        self._standings: dict[Race, _Standing] = {}
        self._watched: dict[str, RunRecord] = {}
        """Runs that executed at the last look, or wait since then."""

    def look(self) -> float:
        """Tell of new bests; seconds until it is worth another look."""
        with self._board.lock:
            executing = {run.id: run for run in self._board.executing()}
        over = [run for run_id, run in self._watched.items() if run_id not in executing]
        for run in [*executing.values(), *over]:
            self._measure(run)
        waiting = [run for run in over if not self._ended(run.id)]
        self._watched = executing | {run.id: run for run in waiting}
        for race, standing in self._standings.items():
            self._announce(race, standing)
        pending = any(standing.candidate for standing in self._standings.values())
        return LOOK_S if executing or pending else _IDLE_S

    def _measure(self, run: RunRecord) -> None:
        """Look at what the run has measured since the last time."""
        race = race_of(run)
        if race not in self._standings:
            self._standings[race] = self._standing(race)
        standing, policy = self._standings[race], run.spec.checkpoint
        points = self._spool.points(run.id, [policy.metric], standing.read.get(run.id))
        for point in points:
            standing.read[run.id] = point.step
            known = standing.running.get(run.id)
            if known is None or beats(point.value, known.value, policy.mode):
                standing.running[run.id] = Mark(run.id, run.spec.name, point.step, point.value)
        mark = standing.running.get(run.id)
        if mark is not None and self._leads(standing, mark, policy.mode):
            standing.candidate = (run, mark)

    def _leads(self, standing: _Standing, mark: Mark, mode: Literal["min", "max"]) -> bool:
        rivals = [standing.bar, standing.candidate[1] if standing.candidate else None]
        return all(beats(mark.value, rival.value, mode) for rival in rivals if rival is not None)

    def _ended(self, run_id: str) -> bool:
        """A run executes no more; whether that is its end. If it is the first, others are measured by it from
        now on."""
        with self._ledger.read() as ledger:
            run = ledger.run(run_id)
        standing = self._standings[race_of(run)]
        if not run.state.final:
            return False
        mark = standing.running.pop(run_id, None)
        standing.read.pop(run_id, None)
        if mark is not None and standing.bar is None:
            standing.bar = mark
            if standing.candidate is not None and standing.candidate[1].run_id == run_id:
                standing.candidate = None
        return True

    def _announce(self, race: Race, standing: _Standing) -> None:
        if standing.candidate is None or standing.bar is None:
            return
        now = self._clock.now()
        if standing.told is not None and (now - standing.told).total_seconds() < PAUSE_S:
            return
        run, mark = standing.candidate
        if beats(mark.value, standing.bar.value, race[2]):
            self._tell(run, mark, standing.bar)
            standing.bar, standing.told = mark, now
        standing.candidate = None

    def _standing(self, race: Race) -> _Standing:
        """How the race stands by what is on disk: the best of the runs that have ended, or what was told."""
        experiment, metric, mode = race
        with self._ledger.read() as ledger:
            ended = ledger.runs(states=ENDED, experiment=experiment, limit=OTHERS)
            last = ledger.notices.last(NoticeKind.BEST, subject(race))
        names = {one.id: one.spec.name for one in ended if race_of(one) == race}
        found = self._spool.best(list(names), metric, mode)
        marks = [Mark(run_id, names[run_id], step, value) for run_id, (step, value) in found.items()]
        if last is not None:
            marks.append(_told(last.key, last.name))
        bar = min(marks, key=lambda mark: mark.value if mode == "min" else -mark.value, default=None)
        return _Standing(bar, last.at if last is not None else None)


def race_of(run: RunRecord) -> Race:
    """Whom a run is compared with."""
    policy = run.spec.checkpoint
    return run.spec.experiment, policy.metric, policy.mode


def subject(race: Race) -> str:
    """What notices about it are about."""
    return f"{race[0]} {race[2]} {race[1]}"[:200]


def key(mark: Mark) -> str:
    """Which occurrence it is: the value itself, so that it is known again after a restart."""
    return f"{mark.run_id} {mark.step} {mark.value!r}"


def _told(text: str, name: str) -> Mark:
    run_id, step, value = text.split(" ")
    return Mark(run_id, name, int(step), float(value))
