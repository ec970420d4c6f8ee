import pytest

from orchestrator.domain.fleet import ActorInfo
from orchestrator.domain.liveness import ABANDONED_S, LAUNCH_S, verdict
from orchestrator.domain.states import Phase, Reason
from tests.unit.records import attempt


def actor(state: str = "alive", agent_alive: bool | None = True) -> ActorInfo:
    return ActorInfo("run-a-a1", state, agent_alive)


@pytest.mark.parametrize(
    ("silence", "node_alive", "known"),
    [
        (1.0, True, None),
        (1.0, False, None),  # the agent speaks: it saves and says so itself
        (1000.0, None, None),  # Ray is away, nobody can say: unreachable is not dead
        (1000.0, True, None),
        (1000.0, True, actor()),  # the agent's process is there, only its words do not arrive
        (ABANDONED_S - 1, True, actor("dead", None)),
    ],
)
def test_stays(silence: float, node_alive: bool | None, known: ActorInfo | None) -> None:
    assert verdict(attempt(), silence, node_alive, known) is None


@pytest.mark.parametrize(
    ("silence", "node_alive", "known", "reason"),
    [
        (5.0, False, None, Reason.NODE_LOST),
        (5.0, True, actor(agent_alive=False), Reason.AGENT_LOST),
        (ABANDONED_S + 1, True, actor("missing", None), Reason.AGENT_LOST),
    ],
)
def test_is_over(silence: float, node_alive: bool, known: ActorInfo | None, reason: Reason) -> None:
    found = verdict(attempt(), silence, node_alive, known)
    assert found is not None
    assert found.reason == reason


def test_a_launch_that_leads_nowhere_ends() -> None:
    launching = attempt(phase=Phase.LAUNCHING)
    assert verdict(launching, LAUNCH_S - 1, True, actor("missing", None)) is None
    found = verdict(launching, LAUNCH_S + 1, True, actor("missing", None))
    assert found is not None
    assert found.reason == Reason.NOT_STARTED
