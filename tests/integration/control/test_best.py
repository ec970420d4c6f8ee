"""When a run becomes the best of its experiment: real ledger and spool, a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control import best
from orchestrator.control.best import PAUSE_S, Best, Mark
from orchestrator.control.board import Board
from orchestrator.control.live import LiveBoard
from orchestrator.domain.notice import NoticeKind
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.messages_agent import Point
from orchestrator.spec import CheckpointPolicy
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool
from tests.clocks import TurnedClock
from tests.unit.records import NOW, run, spec


class Race:
    """Runs of an experiment, and what is told of them."""

    def __init__(self, folder: Path) -> None:
        self.clock = TurnedClock(wall=NOW)
        self.ledger = Ledger(folder / "ledger.db")
        self.spool = Spool(folder / "points.db")
        self.told: list[tuple[str, float, str, float]] = []
        self.restart()

    def restart(self) -> None:
        """A new controller."""
        self.board = Board(self.ledger, LiveBoard(self.clock), self.clock, lambda *_: None)
        self.best = Best(self.ledger, self.spool, self.board, self.clock, self._tell)

    def _tell(self, run: RunRecord, mark: Mark, before: Mark) -> None:
        self.told.append((mark.name, mark.value, before.name, before.value))
        subject = best.subject(best.race_of(run))
        with self.ledger.begin() as tx:
            added = tx.notices.add(
                NoticeKind.BEST, subject, self.clock.now(), key=best.key(mark), name=mark.name
            )
        assert added

    def begin(self, run_id: str, **values: Any) -> None:
        given = {"experiment": "shakespeare", **values}
        record = run(run_id, key=run_id, spec=spec(run_id, **given), state=RunState.RUNNING, attempt=1)
        with self.ledger.begin() as tx:
            tx.add_run(record)

    def measure(self, run_id: str, values: dict[int, float], key: str = "val/loss") -> None:
        self.spool.add_points(
            run_id,
            1,
            [Point(key=key, step=step, time_ms=step, value=value) for step, value in values.items()],
        )
        self.look()

    def end(self, run_id: str, state: RunState = RunState.SUCCEEDED) -> None:
        with self.ledger.begin() as tx:
            tx.save_run(replace(tx.run(run_id), state=state))
        self.look()

    def look(self) -> None:
        self.clock.at += 10
        self.best.look()


@pytest.fixture
def race(tmp_path: Path) -> Iterator[Race]:
    race = Race(tmp_path)
    yield race
    race.spool.close()
    race.ledger.close()


def test_nothing_is_told_before_the_first_run_has_ended(race: Race) -> None:
    race.begin("a")
    race.measure("a", {10: 2.0, 20: 1.8})
    race.measure("a", {30: 1.6})
    race.end("a")
    assert race.told == []
    race.begin("b")
    race.measure("b", {10: 1.9})
    race.measure("b", {20: 1.6})
    assert race.told == [], "as good is not better"
    race.measure("b", {30: 1.5})
    assert race.told == [("b", 1.5, "a", 1.6)]


def test_at_most_once_in_ten_minutes_and_the_newest_then(race: Race) -> None:
    race.begin("a")
    race.measure("a", {10: 2.0})
    race.end("a")
    race.begin("b")
    race.measure("b", {10: 1.9})
    race.measure("b", {20: 1.8})
    race.measure("b", {30: 1.7, 40: 1.75})
    assert race.told == [("b", 1.9, "a", 2.0)]
    race.end("b")
    race.clock.at += PAUSE_S
    race.look()
    assert race.told[1:] == [("b", 1.7, "b", 1.9)]
    race.clock.at += PAUSE_S
    race.look()
    assert len(race.told) == 2


def test_a_better_one_that_ran_beside_the_first(race: Race) -> None:
    for name in "ab":
        race.begin(name)
    race.measure("b", {10: 1.5})
    race.measure("a", {10: 1.7})
    assert race.told == []
    race.end("a")
    assert race.told == [("b", 1.5, "a", 1.7)]


def test_the_last_values_of_a_run_count(race: Race) -> None:
    race.begin("a")
    race.measure("a", {10: 2.0})
    race.end("a")
    race.begin("b")
    race.measure("b", {10: 2.1})
    points = [Point(key="val/loss", step=20, time_ms=1, value=1.4)]
    race.spool.add_points("b", 1, points)
    race.end("b")
    assert race.told == [("b", 1.4, "a", 2.0)]


def test_a_run_that_waits_in_between(race: Race) -> None:
    race.begin("a")
    race.measure("a", {10: 2.0})
    race.end("a", RunState.QUEUED)
    race.begin("b")
    race.measure("b", {10: 1.9})
    assert race.told == []
    race.end("a", RunState.CANCELLED)
    assert race.told == [("b", 1.9, "a", 2.0)]


def test_experiments_and_metrics_are_races_of_their_own(race: Race) -> None:
    more = CheckpointPolicy(metric="accuracy", mode="max")
    for name, values in (("a", {}), ("b", {"experiment": "bible"}), ("c", {"checkpoint": more})):
        race.begin(name, **values)
        race.measure(name, {10: 0.5}, "accuracy" if name == "c" else "val/loss")
        race.end(name)
    race.begin("d", experiment="bible")
    race.begin("e", checkpoint=more)
    race.measure("d", {10: 0.6})
    race.measure("e", {10: 0.4, 20: 0.6}, "accuracy")
    assert race.told == [("e", 0.6, "c", 0.5)]


def test_a_new_controller_knows_what_was_best_and_told(race: Race) -> None:
    race.begin("a")
    race.measure("a", {10: 2.0})
    race.end("a")
    race.begin("b")
    race.measure("b", {10: 1.9})
    assert len(race.told) == 1
    race.restart()
    race.look()
    race.measure("b", {20: 1.95})
    race.measure("b", {30: 1.8})
    assert len(race.told) == 1, "the ten minutes are not over"
    race.clock.at += PAUSE_S
    race.look()
    assert race.told[1:] == [("b", 1.8, "b", 1.9)]
