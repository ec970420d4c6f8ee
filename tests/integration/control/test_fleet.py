"""How often the controller asks Ray for its nodes."""

from __future__ import annotations

import threading

import pytest

from orchestrator.control import fleet
from orchestrator.control.fleet import FleetWatcher
from tests.integration.control.conftest import PaperGateway


class Waits(threading.Event):
    """Notes for how long the watcher wants to sleep; moves the time on instead of sleeping."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.now, self.asked = 0.0, list[float]()
        self._rounds = rounds

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.asked.append(timeout)
        self.now += timeout
        if len(self.asked) == self._rounds:
            self.set()
        return self.is_set()


@pytest.mark.parametrize("idle", [True, False])
def test_ray_is_asked_less_often_where_nobody_waits(idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = FleetWatcher(PaperGateway(), lambda: None, idle=lambda: idle)
    waits = Waits(60)
    monkeypatch.setattr(watcher, "_stop", waits)
    monkeypatch.setattr(fleet.time, "monotonic", lambda: waits.now)
    watcher._watch()
    assert set(waits.asked[:30]) == {fleet.PERIOD_S}
    assert set(waits.asked[40:]) == {fleet.IDLE_PERIOD_S if idle else fleet.PERIOD_S}
