"""Between planning and recording, users act and attempts end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.control import scheduling
from orchestrator.control.controller import Controller
from orchestrator.control.fleet import Fleet
from orchestrator.domain.records import RunRecord
from orchestrator.domain.rivalry import Eviction
from orchestrator.domain.states import Reason, RunState
from orchestrator.messages import Outcome, SubmitRequest
from tests.unit.records import node, spec

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
