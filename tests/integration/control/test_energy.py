"""Energy from beats to the ledger, what is shown, and MLflow. Agents are played by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from orchestrator.control.energy import COST_KEY, KWH_KEY
from orchestrator.domain.energy import KWH_J, EnergySource
from orchestrator.domain.records import Member
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.messages import AttemptView, RunView
from orchestrator.messages_agent import EnergyNote, Order
from orchestrator.store.outbox import SetDescription, SetTags
from tests.integration.control.conftest import build
from tests.integration.control.test_sight import Setting

MEASURED, ESTIMATED, MIXED = EnergySource


@dataclass(frozen=True)
class Flat:
    price: float = 0.5
    currency: str = "EUR"

    def cost(self, kwh: float, begin: datetime, end: datetime) -> float:
        return kwh * self.price


class Played(Setting):
    """With prices."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.prices: Flat | None = Flat()
        self.commits = 0
        self.use()

    def use(self) -> None:
        self.controller.energy._prices = lambda: self.prices
        event.listen(self.controller.ledger._engine, "commit", self._committed)

    def restart(self) -> None:
        self.controller.loop.launching.stop()
        self.controller.ledger.close()
        self.controller.spool.close()
        self.controller = build(self.folder, self.gateway, self.clock)
        self.use()

    def _committed(self, connection: Any) -> None:
        self.commits += 1

    def says(
        self, run_id: str, kwh: float, number: int = 1, source: EnergySource = MEASURED, **more: Any
    ) -> Order:
        note = EnergyNote(joules=kwh * KWH_J, source=source)
        return self.beat(run_id, number, energy=note, **more).order

    def shown(self, run_id: str) -> RunView:
        return self.controller.service.detail(run_id).run

    def shown_attempts(self, run_id: str) -> list[AttemptView]:
        return self.controller.service.detail(run_id).attempts

    def points(self, run_id: str, key: str = KWH_KEY) -> list[tuple[int, float]]:
        return [(p.step, pytest.approx(p.value)) for p in self.controller.spool.points(run_id, [key])]


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Played]:
    played = Played(tmp_path)
    yield played
    played.controller.loop.launching.stop()
    played.controller.probes.close()


def test_what_is_heard_is_shown_at_once_and_written_once_a_minute(it: Played) -> None:
    run_id = it.submit(migrate="never")
    it.beat(run_id, first_step=0)
    written = it.attempt(run_id)
    before = it.commits
    for second in range(1, 60):
        it.clock.at += 1
        it.says(run_id, second / 1000, first_step=0, step=second)
    assert it.commits == before
    assert it.attempt(run_id) == written
    shown = it.shown(run_id)
    assert (shown.energy_kwh, shown.energy_source) == (pytest.approx(0.059), MEASURED)
    assert (shown.cost, shown.currency) == (pytest.approx(0.0295), "EUR")
    for second in range(60, 120):
        it.clock.at += 1
        it.says(run_id, second / 1000, first_step=0, step=second)
    assert it.commits == before + 1
    kept = it.attempt(run_id)
    assert (kept.joules, kept.cost) == (pytest.approx(0.060 * KWH_J), pytest.approx(0.030))
    assert it.run(run_id).joules_used == kept.joules
    assert it.shown(run_id).energy_kwh == pytest.approx(0.119)


def test_it_is_written_with_whatever_else_is(it: Played) -> None:
    run_id = it.submit(migrate="never")
    it.says(run_id, 0.001)
    before = it.commits
    it.says(run_id, 0.002, events=["something"])
    assert it.commits == before + 1
    assert it.attempt(run_id).joules == it.run(run_id).joules_used == pytest.approx(0.002 * KWH_J)


def test_a_controller_that_starts_anew_loses_nothing(it: Played) -> None:
    run_id = it.submit(migrate="never")
    it.says(run_id, 1.0)
    it.clock.at += 61
    it.says(run_id, 2.0)
    it.says(run_id, 2.5)
    it.restart()
    assert it.shown(run_id).energy_kwh == pytest.approx(2.0)
    it.says(run_id, 3.0)
    assert it.shown(run_id).energy_kwh == pytest.approx(3.0)
    it.end(run_id, 1, Reason.COMPLETED)
    assert it.run(run_id).joules_used == pytest.approx(3 * KWH_J)
    assert it.run(run_id).cost == pytest.approx(1.5)


def test_attempts_add_up_and_mlflow_gets_a_point_for_each(it: Played) -> None:
    run_id = it.submit()
    it.says(run_id, 1.0, step=100)
    it.end(run_id, 1, Reason.MOVED)
    it.pass_()
    it.launched(run_id, 2)
    it.says(run_id, 0.5, number=2, source=ESTIMATED, first_step=100)
    it.end(run_id, 2, Reason.MOVED)  # it has made no step
    it.pass_()
    it.launched(run_id, 3)
    it.prices = None
    it.says(run_id, 0.25, number=3, step=300)
    it.end(run_id, 3, Reason.COMPLETED)
    it.end(run_id, 3, Reason.COMPLETED)
    assert it.points(run_id) == [(100, 1.0), (101, 1.5), (300, 1.75)]
    assert it.points(run_id, COST_KEY) == [(100, 0.5), (101, 0.75), (300, 0.75)]
    shown = it.shown(run_id)
    assert (shown.state, shown.energy_kwh, shown.energy_source) == (RunState.SUCCEEDED, 1.75, MIXED)
    assert (shown.cost, shown.currency) == (0.75, None)
    attempts = [(a.energy_kwh, a.energy_source, a.cost) for a in it.shown_attempts(run_id)]
    assert attempts == [(1.0, MEASURED, 0.5), (0.5, ESTIMATED, 0.25), (0.25, MEASURED, None)]


def test_what_nobody_told_is_not_zero(it: Played) -> None:
    run_id = it.submit()
    it.beat(run_id)
    it.end(run_id, 1, Reason.COMPLETED)
    shown = it.shown(run_id)
    assert (shown.energy_kwh, shown.energy_source, shown.cost) == (None, None, None)
    assert it.points(run_id) == []


def test_an_attempt_that_was_left_is_heard_to_its_end(it: Played) -> None:
    run_id = it.submit(away=60.0)
    it.says(run_id, 1.0)
    it.sleeps()
    it.pass_(7)
    it.pass_(60)
    it.launched(run_id, 2)
    it.says(run_id, 5.0, number=2)
    it.says(run_id, 1.5)
    it.says(run_id, 2.0, phase=Phase.ENDED, outcome={"reason": Reason.FENCED})
    it.end(run_id, 2, Reason.COMPLETED)
    assert it.attempt(run_id, 1).joules == pytest.approx(2 * KWH_J)
    assert it.run(run_id).joules_used == pytest.approx(7 * KWH_J)
    # and where it was taken for ended before
    assert it.says(run_id, 2.25) is Order.STOP
    it.says(run_id, 2.5, phase=Phase.ENDED, outcome={"reason": Reason.FENCED})
    it.says(run_id, 2.5, phase=Phase.ENDED, outcome={"reason": Reason.FENCED})
    assert it.run(run_id).joules_used == pytest.approx(7.5 * KWH_J)
    assert it.run(run_id).state == RunState.SUCCEEDED


def test_a_gang_that_has_used_too_much_together_is_ended(it: Played) -> None:
    run_id = it.submit(kwh=1.0, migrate="never")
    job = it.gateway.jobs[f"run-{run_id}-a1"]
    assert job.joules_left == KWH_J
    with it.controller.ledger.begin() as ledger:
        ledger.save_attempt(replace(it.attempt(run_id), members=(Member("ray-gpu", "gpu"),)))
    assert it.says(run_id, 0.7) is Order.CONTINUE
    note = EnergyNote(joules=0.4 * KWH_J, source=ESTIMATED)
    reply = it.beat(run_id, rank=1, energy=note)
    assert (reply.order, reply.reason) == (Order.STOP, Reason.ENERGY)
    assert it.says(run_id, 0.7) is Order.STOP
    it.beat(run_id, rank=1, energy=note, phase=Phase.ENDED, outcome={"reason": Reason.ENERGY})
    it.end(run_id, 1, Reason.ENERGY)
    run, attempt = it.run(run_id), it.attempt(run_id)
    assert (run.state, run.reason) == (RunState.FAILED, Reason.ENERGY)
    assert run.joules_used == attempt.joules == pytest.approx(1.1 * KWH_J)
    assert attempt.members[0].joules == pytest.approx(0.4 * KWH_J)
    assert attempt.energy_source is MIXED


def test_a_run_that_waits_with_its_energy_used_up_ends(it: Played) -> None:
    run_id = it.submit(kwh=1.0, migrate="never")
    it.says(run_id, 0.6)
    it.end(run_id, 1, Reason.MOVED)
    it.pass_()
    it.launched(run_id, 2)
    assert it.gateway.jobs[f"run-{run_id}-a2"].joules_left == pytest.approx(0.4 * KWH_J)
    it.says(run_id, 0.45, number=2)
    with it.controller.ledger.begin() as ledger:  # its machine is lost before it has heard the order
        assert ledger.queued_with_limits() == []
    it.end(run_id, 2, Reason.NODE_LOST)
    with it.controller.ledger.read() as reading:
        assert reading.queued_with_limits() == [(run_id, None)]
    it.pass_()
    run = it.run(run_id)
    assert (run.state, run.reason) == (RunState.FAILED, Reason.ENERGY)
    assert run.message == "it has used up its 1 kWh (kwh)"


def test_mlflow_shows_it(it: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(it.controller.outcomes._tracking, "_enabled", True)
    run_id = it.submit(migrate="never")
    it.says(run_id, 0.25, source=ESTIMATED)
    it.end(run_id, 1, Reason.COMPLETED)
    tasks = [stored.task for stored in it.controller.spool.tasks(run_id)]
    tags = next(task.tags for task in reversed(tasks) if isinstance(task, SetTags))
    assert tags["orch.energy_kwh"] == "0.25"
    assert (tags["orch.energy_source"], tags["orch.cost"]) == ("estimated", "0.125")
    text = next(task.text for task in tasks if isinstance(task, SetDescription))
    assert "| 250.0 Wh (estimated) |" in text


@pytest.mark.parametrize("joules", [-1.0, float("nan"), float("inf")])
def test_what_cannot_be_energy_is_refused(joules: float) -> None:
    with pytest.raises(ValueError, match="joules"):
        EnergyNote(joules=joules, source=MEASURED)
