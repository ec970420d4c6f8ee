"""A night's work, from its fire over the end of its window to the next night: the real controller on a turned
clock and a cluster on paper. It dies between any two steps."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.control.fleet import Fleet
from orchestrator.messages_schedules import ScheduleRequest
from tests.clocks import TurnedClock
from tests.integration.control.conftest import TOKEN, PaperGateway, build
from tests.support import wait_until
from tests.unit.records import spec


class Machine:
    """One state folder, and the controllers that lived on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.gateway = PaperGateway()
        self.clock = TurnedClock(wall=datetime(2026, 3, 27, 12, 0, tzinfo=UTC))
        self.controller = build(home, self.gateway, self.clock)

    def dies(self) -> None:
        """What the next controller knows is what is on disk."""
        self.controller.loop.launching.stop()
        self.controller.spool.close()
        self.controller.ledger.close()
        self.controller = build(self.home, self.gateway, self.clock)

    def comes(self, local: str) -> None:
        """The controller dies; at this time in Paris the next one looks at its schedules and its queue."""
        instant = datetime.fromisoformat(local).astimezone(UTC)
        self.clock.at += (instant - self.clock.now()).total_seconds()
        self.dies()
        self.controller.firing.look()
        self.controller.watcher._ray = Fleet(tuple(self.gateway.nodes()), connected=True)
        self.controller.watcher.refresh()
        self.controller.loop.tick()

    def beat(self, run_id: str, number: int, **values: Any) -> dict[str, Any]:
        """What an attempt's agent says, and is answered."""
        api = TestClient(
            create_app(self.controller, TOKEN, "c"), headers={"Authorization": f"Bearer {TOKEN}"}
        )
        path = f"/v1/agent/runs/{run_id}/attempts/{number}/beat"
        answer = api.post(path, json={"phase": "running", "pid": 1, **values})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def launched(self, run_id: str, number: int) -> bool:
        """Whether this attempt was begun, a moment from now at the latest."""
        name = f"run-{run_id}-a{number}"
        return bool(wait_until(lambda: name in self.gateway.jobs, 5, lambda: str(list(self.gateway.jobs))))

    def night(self, run_id: str, number: int, evening: str, morning: str) -> None:
        """An attempt begins with the window and is told to save at its end."""
        self.comes(evening)
        assert self.launched(run_id, number)
        assert self.beat(run_id, number)["order"] == "continue"
        self.comes(morning)
        answer = self.beat(run_id, number)
        assert (answer["order"], answer["reason"]) == ("stop", "window")


def test_what_has_not_ended_at_seven_goes_on_the_next_evening(tmp_path: Path) -> None:
    """Over the night in which clocks go forward; its own next fires are skipped."""
    machine = Machine(tmp_path)
    request = ScheduleRequest(
        key="k", name="nightly", spec=spec(), cron="0 22 * * *", until="07:00", tz="Europe/Paris"
    )
    schedule = machine.controller.schedules.add(request)
    machine.comes("2026-03-27T22:00:01+01:00")
    (fire,) = machine.controller.schedules.fires("nightly", 10)
    run_id = str(fire.run_id)
    machine.night(run_id, 1, "2026-03-27T22:00:02+01:00", "2026-03-28T06:59:30+01:00")
    machine.beat(run_id, 1, phase="ended", outcome={"reason": "window", "exit_code": 75, "last_step": 40})
    machine.comes("2026-03-28T07:00:01+01:00")
    assert machine.controller.service.detail(run_id).run.state == "queued"
    machine.night(run_id, 2, "2026-03-28T22:00:01+01:00", "2026-03-29T06:59:30+02:00")
    machine.beat(run_id, 2, phase="ended", outcome={"reason": "completed", "exit_code": 0, "last_step": 80})
    machine.comes("2026-03-29T22:00:01+02:00")
    fires = machine.controller.schedules.fires("nightly", 10)
    assert [(one.local, one.state, one.schedule) for one in reversed(fires)] == [
        ("2026-03-27T22:00+01:00", "created", schedule.id),
        ("2026-03-28T22:00+01:00", "skipped", schedule.id),
        ("2026-03-29T22:00+02:00", "created", schedule.id),
    ]
    assert fires[-1].work_state == "succeeded"
    assert [attempt.reason for attempt in machine.controller.service.detail(run_id).attempts] == [
        "window",
        "completed",
    ]
    machine.dies()
