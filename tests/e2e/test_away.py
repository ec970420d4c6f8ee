"""A node falls asleep: everything on it is stopped, and continued later."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.nodes import asleep
from tests.stack import Stack, tiny_gpt
from tests.support import wait_until

LONG = pytest.mark.skipif("ORCH_SOAK" not in os.environ, reason="sleeps for as long as it says: make soak")


def assert_one_of_each(stack: Stack, run_id: str, steps: int) -> None:
    """One point for each step, and one checkpoint that counts."""
    points = stack.get(f"/v1/runs/{run_id}/points", key="train/loss")
    assert [p["step"] for p in points] == list(range(0, steps + 1, 5))
    kept = [c["step"] for c in stack.json("checkpoints", run_id)]
    assert len(kept) == len(set(kept))
    assert max(kept) == steps


def kinds(stack: Stack, run_id: str) -> list[str]:
    return [event["kind"] for event in stack.show(run_id)["events"]]


@pytest.mark.parametrize("seconds", [8, pytest.param(90, marks=LONG)])
def test_a_node_that_sleeps_for_less_than_its_grace_goes_on(stack: Stack, text: Path, seconds: int) -> None:
    """Its run is unreachable after 8 s, Ray gives it up and starts there again, and its attempt goes on."""
    steps = 400
    run_id = stack.submit(tiny_gpt("dozes", text, steps, migrate="never", away=300, retries=0))
    stack.wait_step(run_id, 100)
    with asleep(stack, "laptop"):
        reached, until = stack.show(run_id)["run"]["step"], time.monotonic() + seconds
        detail = stack.wait_state(run_id, "unreachable", timeout=60)
        assert "laptop cannot be reached" in detail["run"]["message"]
        wait_until(lambda: shown_as(stack, "laptop") in ("away", "lost"), 20, stack.evidence)
        time.sleep(max(0.0, until - time.monotonic()))  # the sleep itself
    stack.wait_state(run_id, "running", timeout=60)
    detail = stack.wait_state(run_id, "succeeded", timeout=240)
    (attempt,) = detail["attempts"]
    assert (attempt["reason"], attempt["node"]) == ("completed", "laptop")
    assert attempt["last_step"] == steps > reached
    assert {"unreachable", "back"} <= set(kinds(stack, run_id))
    assert "left" not in kinds(stack, run_id)
    assert_one_of_each(stack, run_id, steps)


def test_a_node_that_sleeps_for_too_long_is_fenced_when_it_wakes(stack: Stack, text: Path) -> None:
    wait_until(lambda: node_state(stack, "laptop") == "ready", 60, stack.evidence)
    steps = 400
    run_id = stack.submit(tiny_gpt("oversleeps", text, steps, migrate="never", away=15, retries=0))
    stack.wait_step(run_id, 100)
    with asleep(stack, "laptop"):
        detail = wait_until(lambda: second_attempt_at(stack, run_id, 150), 120, stack.evidence)
        assert [a["node"] for a in detail["attempts"]] == ["laptop", "gpu"]
    ended = wait_until(lambda: stack.show(run_id)["attempts"][0]["phase"] == "ended", 60, stack.evidence)
    assert ended
    detail = stack.wait_state(run_id, "succeeded", timeout=240)
    zombie, successor = detail["attempts"]
    assert (zombie["reason"], successor["reason"]) == ("fenced", "completed")
    assert successor["first_step"] >= 50
    wait_until(lambda: stack.agents() == {}, 30, stack.evidence)
    assert_one_of_each(stack, run_id, steps)
    wait_until(lambda: node_state(stack, "laptop") == "ready", 60, stack.evidence)


def second_attempt_at(stack: Stack, run_id: str, step: int) -> dict[str, object] | None:
    detail = stack.show(run_id)
    there = len(detail["attempts"]) == 2 and (detail["attempts"][1]["last_step"] or 0) >= step
    return detail if there else None


def shown_as(stack: Stack, name: str) -> str:
    """The word for a node that people see."""
    line = next(line for line in stack.orch("nodes").splitlines() if line.startswith(name))
    return line.split()[2]


def node_state(stack: Stack, name: str) -> str:
    return str({n["name"]: n["state"] for n in stack.json("nodes")}[name])
