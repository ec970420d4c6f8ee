"""Whether a quiet attempt is over, unreachable or alive, and whether its run waits for it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.fleet import ActorInfo
from orchestrator.domain.liveness import (
    ABANDONED_S,
    LAUNCH_S,
    LEAVE_S,
    QUIET_S,
    RETURNED_S,
    UNREACHABLE_S,
    Facts,
    Lost,
    Silent,
    may_leave,
    verdict,
)
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import Phase, Reason, RunState
from tests.unit.records import attempt, run, spec


def actor(state: str = "alive", agent_alive: bool | None = True) -> ActorInfo:
    return ActorInfo("run-a-a1", state, agent_alive)


@pytest.mark.parametrize("alive", [True, False, None])
def test_an_agent_that_speaks_is_there_whatever_ray_says(alive: bool | None) -> None:
    assert verdict(attempt(), Facts(1.0, alive, returned_s=100.0)) is None


@pytest.mark.parametrize(
    "facts",
    [
        Facts(1000.0, None),  # Ray is away, nobody can say
        Facts(1000.0, True),
        Facts(5.0, False),  # a node that sleeps is dead to Ray
        Facts(1e6, False),
        Facts(1000.0, True, actor()),  # the agent's process is there, only its words do not arrive
        Facts(ABANDONED_S - 1, True, actor("dead", None)),
        Facts(1000.0, False, returned_s=RETURNED_S - 1),  # it wakes up
        Facts(RETURNED_S - 1, False, returned_s=1000.0),
        Facts(60.0, True, missed=True),  # its actor knows why it is gone
        Facts(60.0, None, missed=True),
    ],
)
def test_without_evidence_it_is_unreachable_and_not_over(facts: Facts) -> None:
    assert isinstance(verdict(attempt(), facts), Silent)


def test_a_short_silence_is_nothing() -> None:
    assert verdict(attempt(), Facts(UNREACHABLE_S - 1, True)) is None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(5.0, True, actor(agent_alive=False)), Reason.AGENT_LOST),
        (Facts(ABANDONED_S + 1, True, actor("missing", None)), Reason.AGENT_LOST),
        (Facts(RETURNED_S + 9, False, returned_s=RETURNED_S + 1), Reason.NODE_LOST),
        (Facts(1.0, False, returned_s=0.0, rebooted=True), Reason.NODE_LOST),
        (Facts(7.0, False, missed=True), Reason.NODE_LOST),
    ],
)
def test_evidence_ends_it(facts: Facts, reason: Reason) -> None:
    found = verdict(attempt(), facts)
    assert isinstance(found, Lost)
    assert found.reason == reason


def test_a_launch_that_leads_nowhere_ends() -> None:
    launching = attempt(phase=Phase.LAUNCHING)
    assert verdict(launching, Facts(LAUNCH_S - 1, True, actor("missing", None))) is None
    found = verdict(launching, Facts(LAUNCH_S + 1, True, actor("missing", None)))
    assert isinstance(found, Lost)
    assert found.reason == Reason.NOT_STARTED
    lost = verdict(launching, Facts(5.0, False))
    assert isinstance(lost, Lost)
    assert lost.reason == Reason.NODE_LOST


def away(**values: object) -> RunRecord:
    settings = {"away": 600.0, **{k: values.pop(k) for k in ("away", "migrate") if k in values}}
    return run(**{"state": RunState.UNREACHABLE, "attempt": 1, "spec": spec(**settings), **values})


GONE, QUIET = Facts(30.0, False), Facts(LEAVE_S + 1, True)


@pytest.mark.parametrize(
    ("waiting", "facts", "room", "leaves"),
    [
        (away(), Facts(600.0, False), False, True),
        (away(), Facts(600.0, True, actor()), False, True),
        (away(migrate="never"), Facts(600.0, False), False, True),
        (away(), GONE, True, True),
        (away(), GONE, False, False),
        (away(), QUIET, True, True),
        (away(), Facts(LEAVE_S - 1, True), True, False),
        (away(), Facts(100.0, True, actor()), True, False),
        (away(), Facts(100.0, None), True, False),  # nothing can be started anyway
        (away(migrate="never"), GONE, True, False),
        (away(migrate="never", stop=Reason.MOVED), GONE, True, True),
        (away(stop=Reason.SHUTDOWN), GONE, True, False),
        (away(stop=Reason.CANCELLED), GONE, False, True),
        (away(away=5.0), Facts(5.0, True), False, True),
        (away(state=RunState.RUNNING), Facts(600.0, False), True, False),
        (away(state=RunState.QUEUED), Facts(600.0, False), True, False),
    ],
)
def test_when_a_run_goes_on_elsewhere(waiting: RunRecord, facts: Facts, room: bool, leaves: bool) -> None:
    assert bool(may_leave(waiting, facts, lambda: room)) is leaves


@given(silence=st.floats(0, 1e6), more=st.floats(0, 1e6))
def test_no_state_of_ray_alone_ends_an_attempt_that_runs_and_silence_only_grows_worse(
    silence: float, more: float
) -> None:
    order = {type(None): 0, Silent: 1, Lost: 2}
    for alive, seen in itertools.product((True, False, None), (None, actor(), actor("pending", None))):
        first = verdict(attempt(), Facts(silence, alive, seen))
        later = verdict(attempt(), Facts(silence + more, alive, seen))
        assert not isinstance(first, Lost)
        assert order[type(later)] >= order[type(first)]
        assert isinstance(first, Silent) or silence <= max(QUIET_S, UNREACHABLE_S)
