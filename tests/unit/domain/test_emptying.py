"""Who has to leave a machine that is to be empty."""

from dataclasses import replace

import pytest

from orchestrator.domain.emptying import leaving
from orchestrator.domain.fleet import NodeInfo, NodeReport
from orchestrator.domain.records import Member
from orchestrator.domain.states import CONSEQUENCES, Phase, Reason, RunState, Then
from orchestrator.domain.transitions import after_attempt, make_room
from tests.unit.records import NOW, attempt, node, run

BUSY = NodeReport(busy="cs2 is running")
TAKEN = replace(BUSY, yields=True)


@pytest.mark.parametrize(
    ("laptop", "expected"),
    [
        (node(), []),
        (node(draining=True), [Reason.DRAINED]),
        (node(report=BUSY), []),
        (node(report=TAKEN), [Reason.OWNER]),
        (node(report=NodeReport(yields=True)), []),
        (node(report=TAKEN, draining=True), [Reason.DRAINED]),
        (node(excluded="three runs failed there"), []),
        (node(draining=True, alive=False), [Reason.DRAINED]),
    ],
)
def test_who_has_to_leave_and_why(laptop: NodeInfo, expected: list[Reason]) -> None:
    there = attempt()
    elsewhere = attempt("bbbb2222", node="gpu", ray_id="ray-gpu")
    found = leaving([laptop, node("gpu")], [there, elsewhere])
    assert [order.reason for order in found] == expected
    assert [(order.run_id, order.attempt) for order in found] == [("aaaa1111", 1)] * len(expected)
    assert all("laptop" in order.text for order in found)


def test_an_attempt_that_has_ended_is_left_alone() -> None:
    assert leaving([node(draining=True)], [attempt(phase=Phase.ENDED)]) == []


def test_a_node_whose_ray_was_started_again_is_the_same_node() -> None:
    assert leaving([node(draining=True, ray_id="another")], [attempt()])


def test_a_gang_leaves_as_a_whole() -> None:
    gang = attempt(node="gpu", ray_id="ray-gpu", members=(Member("ray-laptop", "laptop"),))
    (order,) = leaving([node(draining=True), node("gpu")], [gang])
    assert order.reason is Reason.DRAINED


@pytest.mark.parametrize("why", [Reason.DRAINED, Reason.OWNER])
def test_leaving_costs_no_retry_and_no_pause(why: Reason) -> None:
    assert CONSEQUENCES[why].then is Then.QUEUE
    told = make_room(run(state=RunState.RUNNING, attempt=1, retries_used=2), why)
    assert (told.state, told.stop) == (RunState.STOPPING, why)
    after = after_attempt(told, attempt(), why, "", NOW)
    assert (after.state, after.stop, after.retries_used, after.not_before) == (RunState.QUEUED, None, 2, None)
