"""Windows and tariffs in a controller whose clock the tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control import scheduling
from orchestrator.control.controller import Controller
from orchestrator.control.tariffs import TariffBook
from orchestrator.domain.planner import Desk
from orchestrator.domain.states import Reason, RunState
from orchestrator.errors import SetupError
from orchestrator.messages import SubmitRequest
from orchestrator.messages_agent import Order
from orchestrator.spec.tariff import TariffBand, TariffSpec
from orchestrator.spec.window import WindowRule
from tests.integration.control.test_sight import Setting
from tests.unit.records import node, spec

# The clock of the setting begins at 22:00 UTC.
HOUR = 3600.0
OPEN = WindowRule(hours="21:00-23:00", tz="UTC")
LATER = WindowRule(hours="23:30-23:59", tz="UTC")
TARIFF = TariffSpec(currency="EUR", tz="UTC", default=0.3, bands=[TariffBand(hours="21:00-23:00", price=0.1)])


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Setting]:
    setting = Setting(tmp_path)
    setting.pass_()
    yield setting
    setting.close()


def submit(it: Setting, key: str = "k", **values: Any) -> str:
    """A run, whether or not it starts."""
    request = SubmitRequest(spec=spec(pools=("laptop",), **values), key=key)
    run_id = it.controller.service.submit(request).run_id
    it.pass_()
    return run_id


def why(it: Setting, run_id: str) -> str:
    """What `orch why` says."""
    it.controller.scheduling.forget_shown()
    return it.controller.service.why(run_id).first


def test_the_end_of_a_window_travels_as_seconds_with_the_grace_before_it(it: Setting) -> None:
    run_id = submit(it, window=[OPEN], retries=0)
    it.launched(run_id, 1)
    job = it.gateway.jobs[f"run-{run_id}-a1"]
    assert (job.seconds_left, job.limit, job.window_grace_s) == (HOUR - 60, Reason.WINDOW, 60.0)
    assert job.first_limit == (Reason.WINDOW, "the hours in which it may run end")


def test_a_run_is_ordered_to_save_before_its_window_ends_and_starts_at_the_next_opening(it: Setting) -> None:
    run_id = submit(it, window=[OPEN, LATER], retries=0)
    it.launched(run_id, 1)
    assert it.beat(run_id).order is Order.CONTINUE
    it.pass_(HOUR - 61)
    assert it.beat(run_id).order is Order.CONTINUE
    it.pass_(1)
    reply = it.beat(run_id)
    assert (reply.order, reply.reason, reply.grace_s) == (Order.STOP, Reason.WINDOW, 60.0)
    it.pass_(5)
    it.end(run_id, 1, Reason.WINDOW)
    it.pass_()
    run = it.run(run_id)
    assert (run.state, run.reason, run.retries_used, run.not_before) == (
        RunState.QUEUED,
        Reason.WINDOW,
        0,
        None,
    )
    assert why(it, run_id) == (
        "the hours in which it may run end in 55 s, too soon to start; it opens in 31 min, at 23:30"
    )
    assert it.events(run_id).count("window") == 1
    it.pass_(56)
    assert "outside its window 21:00-23:00 (UTC) or 23:30-23:59 (UTC); it opens in 30 min" in why(it, run_id)
    assert it.controller.service.runs([], None, 9)[0].message == why(it, run_id)
    it.pass_(30 * 60 - 2)
    assert it.run(run_id).attempt == 1
    it.pass_(1)
    it.launched(run_id, 2)


def test_a_plan_says_what_would_be(it: Setting) -> None:
    plan = it.controller.service.plan(SubmitRequest(spec=spec(pools=("laptop",), window=[LATER]), key="p"))
    assert plan.lines[0].why == "outside its window 23:30-23:59 (UTC); it opens in 1 h 30 min, at 23:30"


def test_a_new_controller_knows_the_windows_of_all_runs(it: Setting) -> None:
    executing = submit(it, "a", window=[OPEN])
    waiting = submit(it, "b", window=[LATER], max_price=0.2)
    it.launched(executing, 1)
    it.beat(executing)
    before = it.controller.board.queue.get(waiting)
    it.controller = Controller(it.controller.config, it.gateway, it.clock)
    assert it.controller.board.queue.get(waiting) == before
    it.pass_(30 * 60)
    assert it.beat(executing).order is Order.CONTINUE
    it.pass_(29 * 60 - 1)
    it.beat(executing)
    it.pass_(1)
    assert it.beat(executing).reason is Reason.WINDOW
    assert it.run(waiting).attempt == 0


def test_a_run_that_was_planned_as_its_window_closed_does_not_start(
    it: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan and its record the tariff changes."""
    it.controller.set_tariff(TARIFF)
    request = SubmitRequest(spec=spec(pools=("laptop",), max_price=0.2), key="k")
    run_id = it.controller.service.submit(request).run_id
    planned = scheduling.plan

    def changing(*args: Any, **values: Any) -> Desk:
        desk = planned(*args, **values)
        it.controller.tariffs.set(None)
        return desk

    monkeypatch.setattr(scheduling, "plan", changing)
    it.pass_()
    assert it.run(run_id).state == RunState.QUEUED
    monkeypatch.undo()
    it.controller.set_tariff(TARIFF)
    it.pass_()
    assert it.run(run_id).state == RunState.STARTING


def test_a_tariff_decides_when_a_run_with_a_highest_price_executes(it: Setting) -> None:
    run_id = submit(it, max_price=0.2)
    assert "no tariff is set (`orch tariff set FILE`)" in why(it, run_id)
    view = it.controller.set_tariff(TARIFF)
    assert (view.price, view.until) == (0.1, it.clock.now().replace(hour=23))
    it.pass_()
    it.launched(run_id, 1)
    job = it.gateway.jobs[f"run-{run_id}-a1"]
    assert (job.seconds_left, job.limit) == (HOUR - 60, Reason.WINDOW)
    it.beat(run_id)
    it.pass_()
    assert it.beat(run_id).order is Order.CONTINUE
    it.controller.set_tariff(TARIFF.model_copy(update={"bands": []}))
    it.pass_()
    assert it.beat(run_id).reason is Reason.WINDOW, "it is too dear from now on"
    it.end(run_id, 1, Reason.WINDOW)
    it.pass_()
    assert why(it, run_id).startswith("electricity costs more than 0.2 EUR per kWh (`max_price`)")
    it.controller.set_tariff(TARIFF)
    it.pass_()
    it.launched(run_id, 2)


def test_a_tariff_is_kept(tmp_path: Path) -> None:
    book = TariffBook(tmp_path / "tariff.json")
    assert book.tariff() is None
    book.set(TARIFF)
    again = TariffBook(tmp_path / "tariff.json")
    assert (again.spec, again.tariff()) == (TARIFF, book.tariff())
    again.set(None)
    again.set(None)
    assert TariffBook(tmp_path / "tariff.json").spec is None
    (tmp_path / "tariff.json").write_text("{}")
    with pytest.raises(SetupError, match="cannot be understood"):
        TariffBook(tmp_path / "tariff.json")


def test_a_gang_ends_with_its_window(it: Setting) -> None:
    it.fleet = [node("laptop", cpus=4)]
    placement = [{"pool": "laptop", "cpus": 1, "ranks": 2}]
    run_id = submit(it, window=[OPEN], placement=placement)
    it.launched(run_id, 1)
    for rank in (0, 1):
        it.beat(run_id, rank=rank)
    it.pass_(HOUR - 61)
    for rank in (0, 1):
        it.beat(run_id, rank=rank)
    it.pass_(1)
    for rank in (0, 1):
        assert it.beat(run_id, rank=rank).reason is Reason.WINDOW
    it.beat(run_id, rank=1, phase="ended", outcome={"reason": "window"})
    it.end(run_id, 1, Reason.WINDOW)
    assert (it.run(run_id).state, it.run(run_id).reason) == (RunState.QUEUED, Reason.WINDOW)
