"""When a node that runs here counts as lost there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import membership
from orchestrator.cluster.membership import Membership
from orchestrator.errors import UnavailableError
from orchestrator.settings import Home
from tests.clocks import TurnedClock
from tests.support import wait_until
from tests.unit.cluster.test_config import config


class Answers:
    """What the controller says; None: nothing."""

    def __init__(self) -> None:
        self.connected: bool | None = True
        self.nodes: list[dict[str, str]] = []
        self.asked = 0

    def __call__(self, url: str, token: str) -> Any:
        if self.connected is None:
            raise UnavailableError("nothing answers")
        if url.endswith("/health"):
            return {"ray_connected": self.connected}
        self.asked += 1
        return self.nodes


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    monkeypatch.setattr(membership, "PERIOD_S", 0.01)
    answers = Answers()
    monkeypatch.setattr(membership, "get_json", answers)
    return answers


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def watch(tmp_path: Path, answers: Answers, clock: TurnedClock) -> Any:
    home = Home(tmp_path)
    home.token_file.write_text("t")
    watch = Membership(config(), home, clock)
    watch.start()
    yield watch
    watch.stop()


def look(answers: Answers) -> None:
    seen = answers.asked
    wait_until(lambda: answers.asked > seen + 1, 5.0)


def test_a_node_that_counts_is_not_lost(watch: Membership, answers: Answers, clock: TurnedClock) -> None:
    answers.nodes = [{"name": "a", "state": "ready"}]
    look(answers)
    clock.sleep(100.0)
    look(answers)
    assert watch.lost_for_s("a") == 0.0


@pytest.mark.parametrize("nodes", [[], [{"name": "a", "state": "lost"}], [{"name": "b", "state": "ready"}]])
def test_time_is_counted_while_it_is_missing(
    watch: Membership, answers: Answers, clock: TurnedClock, nodes: list[dict[str, str]]
) -> None:
    answers.nodes = [{"name": "a", "state": "ready"}]
    look(answers)
    answers.nodes = nodes
    look(answers)
    clock.sleep(40.0)
    look(answers)
    assert watch.lost_for_s("a") == pytest.approx(40.0)
    watch.forget("a")
    look(answers)
    assert watch.lost_for_s("a") == 0.0


@pytest.mark.parametrize("connected", [False, None])
def test_nothing_is_concluded_while_nobody_knows(
    watch: Membership, answers: Answers, clock: TurnedClock, connected: bool | None
) -> None:
    look(answers)
    clock.sleep(40.0)
    assert watch.lost_for_s("a") > 0.0
    answers.connected = connected
    wait_until(lambda: watch.lost_for_s("a") == 0.0, 5.0)
