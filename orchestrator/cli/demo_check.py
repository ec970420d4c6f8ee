"""Whether a demonstration showed what it claims. Pure functions on what the API and MLflow answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from orchestrator.cli.screen import state_line
from orchestrator.domain.states import RunState
from orchestrator.messages import PointView, RunDetail

LOSS = "train/loss"
JUMP_POINTS = 10
"""Points on each side of the handover whose means are compared."""
LARGEST_JUMP = 0.25
"""Nats between these means. A model that began anew would be more than 1 away; noise is below 0.1."""


@dataclass(frozen=True)
class Check:
    """One claim."""

    claim: str
    holds: bool
    found: str


def check_demo(
    detail: RunDetail,
    points: Sequence[PointView],
    in_mlflow: Mapping[str, Sequence[tuple[int, float]]] | None,
    log_interval: int,
) -> list[Check]:
    """Every claim of the demonstration about a run that went from one node to another.

    `points` are all points of the run, `in_mlflow` is (step, value) by metric as MLflow has them, None where
    there is no MLflow; `log_interval` is the number of steps between two points of the training loss.
    """
    losses = sorted((point for point in points if point.key == LOSS), key=lambda point: point.step)
    checks = [
        _succeeded(detail),
        _two_nodes(detail),
        _once(points),
        _unbroken(losses, log_interval),
        _smooth(losses),
    ]
    return checks if in_mlflow is None else [*checks, _same_in_mlflow(points, in_mlflow)]


def _succeeded(detail: RunDetail) -> Check:
    run = detail.run
    return Check("the run succeeded", run.state == RunState.SUCCEEDED, state_line(detail))


def _two_nodes(detail: RunDetail) -> Check:
    nodes = [attempt.node for attempt in detail.attempts]
    return Check(
        "two attempts, on two nodes",
        len(nodes) == 2 and nodes[0] != nodes[1],
        ", then ".join(nodes) or "none",
    )


def _once(points: Sequence[PointView]) -> Check:
    counts = Counter((point.key, point.step) for point in points)
    twice = sorted(place for place, count in counts.items() if count > 1)
    found = f"{len(points)} points" + (f", {len(twice)} more than once, first {twice[0]}" if twice else "")
    return Check("one point for each metric and step", bool(points) and not twice, found)


def _unbroken(losses: Sequence[PointView], log_interval: int) -> Check:
    gaps = [
        f"{before.step}-{after.step}"
        for before, after in pairwise(losses)
        if after.step - before.step > log_interval
    ]
    found = f"{len(losses)} points of {LOSS}" + (f", none in {', '.join(gaps)}" if gaps else "")
    return Check("the curve has no gap", len(losses) > 1 and not gaps, found)


def _smooth(losses: Sequence[PointView]) -> Check:
    claim = "the loss goes on where it was"
    at = next((i for i, (one, two) in enumerate(pairwise(losses), 1) if two.attempt > one.attempt), None)
    if at is None:
        return Check(claim, False, "no point of a second attempt")
    before = fmean(point.value for point in losses[max(0, at - JUMP_POINTS) : at])
    after = fmean(point.value for point in losses[at : at + JUMP_POINTS])
    found = f"{before:.3f} before step {losses[at].step}, {after:.3f} after"
    return Check(claim, abs(after - before) <= LARGEST_JUMP, found)


def _same_in_mlflow(
    points: Sequence[PointView], in_mlflow: Mapping[str, Sequence[tuple[int, float]]]
) -> Check:
    ours = Counter((point.key, point.step, point.value) for point in points)
    theirs = Counter((key, step, value) for key, history in in_mlflow.items() for step, value in history)
    found = f"{sum(theirs.values())} points in MLflow, {sum(ours.values())} here"
    if ours != theirs:
        missing, more = sum((ours - theirs).values()), sum((theirs - ours).values())
        found += f": {missing} missing there, {more} too many"
    return Check("MLflow has the same points, each once", bool(ours) and ours == theirs, found)
