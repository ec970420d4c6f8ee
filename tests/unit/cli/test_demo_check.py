"""The demonstration must not claim what did not happen."""

from __future__ import annotations

import pytest

from orchestrator.cli.demo_check import Check, check_demo
from orchestrator.domain.states import RunState
from orchestrator.messages import PointView, RunDetail
from tests.unit.cli.fake import attempt, handed_over


def good() -> list[PointView]:
    points = [
        PointView(key="train/loss", step=s, time_ms=s, value=4 - s / 1000, attempt=1 if s <= 1000 else 2)
        for s in range(0, 2001, 10)
    ]
    return points + [PointView(key="val/loss", step=s, time_ms=s, value=2.0) for s in range(0, 2001, 200)]


def mlflow(points: list[PointView]) -> dict[str, list[tuple[int, float]]]:
    history: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        history.setdefault(point.key, []).append((point.step, point.value))
    return history


def failed(
    detail: RunDetail | None = None,
    points: list[PointView] | None = None,
    stored: dict[str, list[tuple[int, float]]] | None = None,
) -> list[Check]:
    ours = good() if points is None else points
    theirs = mlflow(ours) if stored is None else stored
    return [check for check in check_demo(detail or handed_over(), ours, theirs, 10) if not check.holds]


def test_all_claims_hold_for_a_run_that_moved_well() -> None:
    assert failed() == []
    assert len(check_demo(handed_over(), good(), mlflow(good()), 10)) == 6
    assert len(check_demo(handed_over(), good(), None, 10)) == 5


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED, RunState.RUNNING])
def test_it_has_to_succeed(state: RunState) -> None:
    assert [check.claim for check in failed(handed_over(state=state))] == ["the run succeeded"]


@pytest.mark.parametrize("nodes", [[], ["laptop"], ["laptop", "laptop"], ["laptop", "gpu", "laptop"]])
def test_it_takes_two_attempts_on_two_nodes(nodes: list[str]) -> None:
    attempts = [attempt(i + 1, node) for i, node in enumerate(nodes)]
    moved = handed_over().model_copy(update={"attempts": attempts})
    assert [check.claim for check in failed(moved)] == ["two attempts, on two nodes"]


def test_a_doubled_point_is_found() -> None:
    points = [*good(), good()[50]]
    assert [check.claim for check in failed(points=points)] == ["one point for each metric and step"]


def test_a_gap_is_found() -> None:
    points = [point for point in good() if point.step != 1010]
    (check,) = failed(points=points)
    assert check.claim == "the curve has no gap"
    assert "1000-1020" in check.found


def test_a_jump_is_found() -> None:
    points = [p.model_copy(update={"value": p.value + 0.4}) if p.attempt == 2 else p for p in good()]
    (check,) = failed(points=points)
    assert check.claim == "the loss goes on where it was"


def test_points_of_one_attempt_only_show_no_handover() -> None:
    points = [p.model_copy(update={"attempt": 1}) for p in good()]
    assert [check.claim for check in failed(points=points)] == ["the loss goes on where it was"]


def test_mlflow_must_have_the_same() -> None:
    for stored in ({}, mlflow(good()[1:]), mlflow([*good(), good()[0]])):
        assert [check.claim for check in failed(stored=stored)] == ["MLflow has the same points, each once"]


def test_nothing_shows_nothing() -> None:
    claims = [check.claim for check in check_demo(handed_over(), [], {}, 10) if not check.holds]
    assert len(claims) == 4
