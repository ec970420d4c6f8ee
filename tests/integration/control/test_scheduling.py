"""Between planning and recording, users act and attempts end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.control import scheduling
from orchestrator.control.controller import Controller
from orchestrator.control.fleet import Fleet
from orchestrator.domain.records import RunRecord
from orchestrator.domain.rivalry import Eviction
from orchestrator.domain.states import Reason, RunState
from orchestrator.messages import SubmitRequest
from orchestrator.messages_agent import Outcome
from orchestrator.spec.models import RunSpec, Variant
from tests.unit.records import NOW, node, spec

FLEET = Fleet((node("laptop", cpus=1),), connected=True)


def submit(controller: Controller, name: str, **values: Any) -> str:
    request = SubmitRequest(spec=spec(name, pools=("laptop", "gpu"), **values), key=name)
    return controller.service.submit(request).run_id


def of(controller: Controller, run_id: str) -> RunRecord:
    with controller.ledger.read() as ledger:
        return ledger.run(run_id)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen when the plan has been made."""
    evictions = scheduling.evictions

    def later(desk: Any) -> list[Eviction]:
        found = evictions(desk)
        act()
        return found

    monkeypatch.setattr(scheduling, "evictions", later)


@pytest.mark.parametrize(
    "act",
    [
        lambda controller, run_id: controller.service.hold(run_id, held=True),
        lambda controller, run_id: controller.service.move(run_id, "gpu"),
        lambda controller, run_id: controller.service.cancel(run_id),
    ],
)
def test_a_run_that_its_user_changed_does_not_start_as_it_was_planned(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, act: Callable[[Controller, str], object]
) -> None:
    run_id = submit(controller, "changed")
    meanwhile(monkeypatch, lambda: act(controller, run_id))
    assert controller.scheduling.round(FLEET)[0] == []
    assert of(controller, run_id).attempt == 0


def test_a_victim_whose_attempt_has_just_ended_is_not_ordered_to_go(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, and nobody would ever answer the order."""
    low = submit(controller, "low")
    ((_, attempt),) = controller.scheduling.round(FLEET)[0]
    submit(controller, "high", priority=5)
    lost = Outcome(reason=Reason.NODE_LOST)
    meanwhile(monkeypatch, lambda: controller.outcomes.end(low, attempt.number, lost))
    controller.scheduling.round(FLEET)
    assert (of(controller, low).state, of(controller, low).stop) == (RunState.QUEUED, None)


def test_a_victim_is_ordered_to_go_once(controller: Controller) -> None:
    low = submit(controller, "low")
    controller.scheduling.round(FLEET)
    submit(controller, "high", priority=5)
    for _ in range(2):
        controller.scheduling.round(FLEET)
    assert (of(controller, low).state, of(controller, low).stop) == (RunState.STOPPING, Reason.PREEMPTED)
    with controller.ledger.read() as ledger:
        kinds = [event.kind for event in ledger.events(low)]
    assert kinds.count("preempted") == 1


def test_limits_hold_at_once_and_after_a_restart(controller: Controller) -> None:
    controller.scheduling.set_limit("pool", "laptop", 0)
    run_id = submit(controller, "limited")
    assert controller.scheduling.round(FLEET)[0] == []
    verdict = controller.scheduling.why(run_id, FLEET)
    assert verdict is not None
    assert "pool laptop is at its limit of 0" in verdict.why
    again = scheduling.Scheduling(controller.board, controller.ledger, controller.estimates, SYSTEM)
    assert again.limits().pools == {"laptop": 0}
    controller.scheduling.set_limit("pool", "laptop", None)
    assert len(controller.scheduling.round(FLEET)[0]) == 1


def test_where_its_memory_ran_out_it_does_not_go_again_also_after_a_restart(controller: Controller) -> None:
    small, large = node("a", pool="laptop", cpus=1), node("b", pool="laptop", cpus=2)
    hungry, both = submit(controller, "hungry", retries=2), Fleet((small, large), connected=True)
    ((_, attempt),) = controller.scheduling.round(Fleet((small,), connected=True))[0]
    assert attempt.node == "a"
    blocking = spec("blocking", placement=[Variant(pool="laptop", cpus=2)])
    other = controller.service.submit(SubmitRequest(spec=blocking, key="blocking")).run_id
    assert len(controller.scheduling.round(both)[0]) == 1
    controller.outcomes.end(hungry, 1, Outcome(reason=Reason.HOST_MEMORY))
    with controller.ledger.begin() as ledger:
        ledger.save_run(replace(ledger.run(hungry), not_before=None))
    assert controller.scheduling.round(both)[0] == []
    verdict = controller.scheduling.why(hungry, both)
    assert verdict is not None
    assert "a: its memory ran out there, and another node is large enough" in verdict.why
    controller.outcomes.end(other, 1, Outcome(reason=Reason.COMPLETED))
    again = Controller(controller.config, controller.gateway)
    assert [(run.id, where.node) for run, where in again.scheduling.round(both)[0]] == [(hungry, "b")]


def test_a_restarted_controller_has_the_same_queue_without_reading_whole_specs(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    override = {"trainer": {"batch_size": 4}}
    placement = [
        {"pool": "gpu", "gpus": 1, "gpu_memory": "2GiB", **override},
        {"pool": "laptop", "memory": "1GiB"},
    ]
    trained = {"name": "trained", "trainer": {"max_steps": 9}, "placement": placement, "priority": 3}
    specs = [
        RunSpec.model_validate({**trained, "start": "best", "wait": "5m", "max_duration": "2h"}),
        spec("plain"),
        spec("wide", placement=[Variant(pool="laptop", cpus=2, ranks=3)], experiment="other"),
        RunSpec.model_validate(
            {**trained, "name": "night", "window": ["22:00-07:00", "1:00-2:00"], "max_price": 0.2}
        ),
    ]
    ids = [
        controller.service.submit(SubmitRequest(spec=one, key=one.name, user="bob")).run_id for one in specs
    ]
    controller.service.hold(ids[1], held=True)
    controller.service.top(ids[2])
    controller.service.move(ids[0], "gpu")
    with controller.ledger.begin() as ledger:
        run = replace(
            ledger.run(ids[2]), avoid=(("a", Reason.HOST_MEMORY),), seconds_used=7.5, not_before=NOW
        )
        ledger.save_run(run)
    before = {one.run_id: one for one in controller.board.queue}
    monkeypatch.setattr(RunSpec, "model_validate", None)
    again = Controller(controller.config, controller.gateway)
    assert {one.run_id: one for one in again.board.queue} == before
    assert len(before) == 4
    assert all(again.board.queue.get(one).shape is before[one].shape for one in ids)


def test_what_an_older_spec_does_not_say_is_as_in_a_spec_of_today(controller: Controller) -> None:
    run_id = submit(controller, "old")
    before = controller.board.queue.get(run_id)
    with controller.ledger.begin() as ledger:
        short = (
            "json_remove(spec, '$.wait', '$.start', '$.priority', '$.max_duration', '$.placement[0].cpus')"
        )
        ledger._connection.exec_driver_sql(f"UPDATE runs SET spec = {short}")
    again = Controller(controller.config, controller.gateway)
    assert again.board.queue.get(run_id) == before
    assert again.scheduling.round(FLEET)[0], "and so sees the ledger when it starts"


def test_limits_of_waiting_runs_hold_after_a_restart(controller: Controller) -> None:
    soon = SYSTEM.now() + timedelta(hours=1)
    ids = [
        submit(controller, name, **values)
        for name, values in (
            ("deadline", {"deadline": soon}),
            ("spent", {"max_duration": 60}),
            ("fresh", {"max_duration": 60, "gpu_hours": 1}),
            ("free", {}),
        )
    ]
    with controller.ledger.begin() as ledger:
        ledger.save_run(replace(ledger.run(ids[1]), seconds_used=60.0))
    with controller.ledger.read() as ledger:
        assert dict(ledger.queued_with_limits()) == {ids[0]: soon, ids[1]: None}
    again = Controller(controller.config, controller.gateway)
    again.loop.tick()
    assert of(controller, ids[1]).state == RunState.FAILED
    assert {of(controller, one).state for one in (ids[0], *ids[2:])} == {RunState.QUEUED}
