"""The answer that `orch top` is drawn from. Agents are played by the tests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from orchestrator.control.curves import MOST, Curves
from orchestrator.control.today import Today
from orchestrator.control.top import Kept
from orchestrator.domain.energy import KWH_J, EnergySource
from orchestrator.domain.states import Reason, RunState
from orchestrator.messages import Health, SubmitRequest
from orchestrator.messages_agent import EnergyNote, Point
from orchestrator.messages_schedules import ScheduleRequest
from orchestrator.messages_sweeps import SweepRequest
from orchestrator.messages_top import TopView
from orchestrator.spec.models import Variant
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.window import WindowRule
from orchestrator.store.spool import Spool
from tests.clocks import TurnedClock
from tests.integration.control.test_sight import Setting
from tests.unit.records import NOW, spec

MIDNIGHT = NOW.replace(hour=0)


class Watched(Setting):
    """Somebody looks."""

    def look(self, pass_s: float = 3.0) -> TopView:
        self.pass_(pass_s)
        return self.controller.top.view(Health(version="1", cluster_id="c"), MIDNIGHT)

    def trains(self, run_id: str, step: int, joules: float | None = None, number: int = 1) -> None:
        note = None if joules is None else EnergyNote(joules=joules, source=EnergySource.ESTIMATED)
        point = Point(key="train/loss", step=step, time_ms=step, value=4.0 - step / 100)
        self.beat(run_id, number, step=step, points=[point], energy=note)


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.controller.loop.launching.stop()
    watched.controller.probes.close()


def _request(key: str, **values: Any) -> SubmitRequest:
    values = {"pools": ("laptop",), **values}
    return SubmitRequest(spec=spec(key, **values), key=key)


# ---- the whole


def test_what_executes_and_what_waits(it: Watched) -> None:
    on_laptop = [Variant(pool="laptop", cpus=2)]
    first = it.submit("one", migrate="never", placement=on_laptop)
    for second in range(12):
        it.trains(first, 10 * second, joules=30.0 * second)
        it.pass_(1)
    request = {"pools": ("laptop",), "migrate": "never", "placement": on_laptop}
    waits = it.controller.service.submit(_request("two", **request)).run_id
    held = it.controller.service.submit(_request("three", **request)).run_id
    it.controller.service.hold(held, held=True)
    view = it.look()
    (running,) = view.running
    assert (running.run.id, running.run.state, running.run.step) == (first, RunState.RUNNING, 110)
    assert running.watts == pytest.approx(30.0)
    assert running.step_s == pytest.approx(0.1)
    assert running.curves["train/loss"].values[0] == 4.0
    assert running.curves["train/loss"].steps[-1] == 110
    assert [(one.id, one.held) for one in view.waiting] == [(waits, False), (held, True)]
    assert "laptop: 0 of 2 CPUs free" in view.waiting[0].why
    assert "held back" in view.waiting[1].why
    assert (view.running_total, view.waiting_total) == (1, 2)
    assert {one.node.name: one.watts for one in view.nodes} == {"gpu": None, "laptop": pytest.approx(30.0)}
    assert view.energy.kwh == pytest.approx(330 / KWH_J)
    assert view.energy.watts == pytest.approx(30.0)


def test_what_has_just_begun_waits_no_longer(it: Watched) -> None:
    on_laptop = {"migrate": "never", "placement": [Variant(pool="laptop", cpus=2)]}
    first = it.submit("one", **on_laptop)
    it.trains(first, 1)
    second = it.controller.service.submit(_request("two", **on_laptop)).run_id
    assert [one.id for one in it.look().waiting] == [second]
    it.end(first, 1, Reason.COMPLETED)
    view = it.look(0)
    assert [one.run.id for one in view.running] == [second]
    assert (view.waiting, view.waiting_total) == ([], 0)


def test_when_hours_begin_and_when_there_is_room(it: Watched) -> None:
    night = [WindowRule(hours="23:00-24:00", tz="UTC")]
    it.controller.service.submit(_request("night", window=night, max_duration=600.0))
    first = it.submit("first", migrate="never", max_duration=900.0, placement=[Variant(pool="gpu", cpus=2)])
    it.trains(first, 1)
    it.controller.service.submit(_request("behind", placement=[Variant(pool="gpu", cpus=2)]))
    view = it.look()
    night_run, behind = view.waiting
    assert night_run.opens == NOW.replace(hour=23)
    assert night_run.free is None
    assert behind.opens is None
    assert behind.free is not None
    assert abs((behind.free - NOW).total_seconds() - 900) < 5


def test_what_does_not_speak_any_more_uses_nothing(it: Watched) -> None:
    run_id = it.submit(migrate="never")
    for second in range(12):
        it.trains(run_id, second, joules=30.0 * second)
        it.pass_(1)
    assert it.look().running[0].watts is not None
    view = it.look(60)
    assert view.running[0].watts is None
    assert view.energy.watts is None
    assert view.energy.kwh > 0


def test_sweeps_and_due_times(it: Watched) -> None:
    space = {"trainer.learning_rate": [1e-3, 2e-3, 3e-3]}
    base = {
        "trainer": {"max_steps": 10},
        "placement": [{"pool": "laptop", "cpus": 1}],
    }
    sweep = SweepSpec.model_validate(
        {"name": "lr", "base": base, "space": space, "sampler": {"kind": "grid"}, "budget": {"kwh": 2}}
    )
    it.controller.sweeps.submit(SweepRequest(spec=sweep, key="s"))
    it.controller.schedules.add(
        ScheduleRequest(key="k", name="nightly", spec=spec(), cron="0 23 * * *", tz="UTC")
    )
    view = it.look()
    (shown,) = view.sweeps
    assert (shown.name, shown.done, shown.best_value) == ("lr", 0, None)
    assert [(one.kind, one.used, one.most) for one in shown.budgets] == [("kwh", 0.0, 2.0)]
    assert [(one.name, one.at) for one in view.fires] == [("nightly", NOW.replace(hour=23))]
    later = it.look(3601)
    assert [one.at for one in later.fires] == [NOW.replace(hour=23) + timedelta(days=1)]
    it.controller.sweeps.cancel("lr")
    assert [one.state for one in it.look().sweeps] == ["cancelled"]
    assert it.look(3601).sweeps == []


def test_the_route(api: TestClient) -> None:
    answer = api.get("/v1/top", params={"since": "2026-03-01T00:00:00+01:00"})
    assert answer.status_code == 200
    view = TopView.model_validate_json(answer.content)
    assert (view.running, view.waiting, view.health.cluster_id) == ([], [], "cluster-1")
    assert api.get("/v1/top", params={"since": "2026-03-01T00:00:00"}).status_code == 422
    assert (
        api.get("/v1/top", params={"since": "x"}, headers={"authorization": "Bearer no"}).status_code == 401
    )


# ---- curves


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "points.db")
    yield made
    made.close()


def _points(first: int, last: int, key: str = "loss") -> list[Point]:
    return [Point(key=key, step=step, time_ms=step, value=float(step)) for step in range(first, last)]


def test_a_curve_is_made_of_means(spool: Spool) -> None:
    spool.add_points("a", 1, _points(0, 240))
    curve = Curves(spool, ["loss"]).of({"a": 239})["a"]["loss"]
    assert curve.steps == list(range(0, 240, 4))
    assert curve.values == [step + 1.5 for step in range(0, 240, 4)]


@pytest.mark.parametrize("lengths", [[1, 1, 1, 59, 200, 3, 5000], [5000, 1], [61, 61, 61], [60]])
def test_a_curve_that_grows_is_the_one_that_was_read_at_once(spool: Spool, lengths: list[int]) -> None:
    growing, step = Curves(spool, ["loss"]), 0
    for length in lengths:
        spool.add_points("a", 1, _points(step, step + length))
        step += length
        found = growing.of({"a": step - 1})["a"]["loss"]
        assert len(found.values) <= MOST
    assert found == Curves(spool, ["loss"]).of({"a": step - 1})["a"]["loss"]
    width = found.steps[1] - found.steps[0] if len(found.steps) > 1 else 1
    for at, value in zip(found.steps, found.values, strict=True):
        last = min(at + width, step) - 1
        assert value == pytest.approx((at + last) / 2, rel=1e-4)


def test_only_what_is_new_is_read(spool: Spool) -> None:
    spool.add_points("a", 1, _points(0, 100))
    curves = Curves(spool, ["loss"])
    before = curves.of({"a": 99})["a"]["loss"]
    assert curves.of({"a": 99})["a"]["loss"] is before
    asked = []
    stretches = spool.stretches
    spool.stretches = lambda some: asked.append(stretches(some)) or asked[-1]  # type: ignore[method-assign]
    spool.add_points("a", 1, _points(100, 101))
    curves.of({"a": 100})
    assert asked == [[[(50, 100.0, 1, 100)]]]


def test_runs_without_points_have_no_curve(spool: Spool) -> None:
    spool.add_points("a", 1, _points(0, 3, key="other"))
    assert Curves(spool, ["loss"]).of({"a": 2, "b": None}) == {}


# ---- energy of the day


def test_energy_of_a_day_is_counted_once(it: Watched) -> None:
    run_id = it.submit(migrate="never")
    it.trains(run_id, 1, joules=1000.0)
    assert it.look().energy.kwh == pytest.approx(1000 / KWH_J)
    it.trains(run_id, 2, joules=1500.0)
    it.end(run_id, 1, Reason.COMPLETED)
    view = it.look()
    assert view.running == []
    assert view.energy.kwh == pytest.approx(1500 / KWH_J)
    assert view.energy.source is EnergySource.ESTIMATED
    assert Today(it.controller.ledger, it.clock).since(MIDNIGHT).joules == pytest.approx(1500)


def test_of_an_attempt_that_began_yesterday_a_part_counts(it: Watched) -> None:
    run_id = it.submit(migrate="never")
    it.beat(run_id)
    it.pass_(1000)
    it.trains(run_id, 2, joules=3000.0)
    it.end(run_id, 1, Reason.COMPLETED)
    begun = it.attempt(run_id).started_at
    assert begun is not None
    today = Today(it.controller.ledger, it.clock)
    ended = it.attempt(run_id).energy_at
    assert ended is not None
    half = begun + (ended - begun) / 2
    assert today.since(half).joules == pytest.approx(1500)
    assert today.since(begun).joules == pytest.approx(3000)
    assert today.since(ended).joules == 0


def test_the_ledger_is_read_once_for_a_day(it: Watched) -> None:
    today, reads = Today(it.controller.ledger, it.clock), []
    event.listen(it.controller.ledger._engine, "begin", reads.append)
    run_id = it.submit(migrate="never")
    it.trains(run_id, 2, joules=3000.0)
    it.end(run_id, 1, Reason.COMPLETED)
    reads.clear()
    for minutes in range(5):
        assert today.since(MIDNIGHT + timedelta(minutes=minutes)).joules == pytest.approx(3000)
    assert len(reads) == 1
    today.since(MIDNIGHT - timedelta(hours=1))
    assert len(reads) == 2


# ---- what is kept


def test_what_took_long_is_kept_long(clock: TurnedClock) -> None:
    costs = iter([0.01, 1.0, 0.0])
    made: list[float] = []

    def make() -> int:
        made.append(clock.at)
        clock.sleep(next(costs))
        return len(made)

    kept = Kept(make, clock)
    assert [kept.get(), kept.get()] == [1, 1]
    clock.sleep(2.01)
    assert kept.get() == 2
    clock.sleep(49.0)
    assert kept.get() == 2
    clock.sleep(1.01)
    assert kept.get() == 3


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()
