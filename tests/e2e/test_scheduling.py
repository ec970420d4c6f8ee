"""Runs wait, make room, move up and come back by themselves, on two Ray nodes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stack import Stack, running_stack, tiny_gpt
from tests.support import wait_until

FOREVER = 200_000
"""Steps that nobody waits for."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nodes `laptop` and `gpu`; runs may move up after three seconds."""
    home = tmp_path_factory.mktemp("orch") / "home"
    with running_stack(home, "laptop:cpus=1", "gpu:cpus=1", env={"ORCH_UPGRADE_REST": "3"}) as running:
        yield running
    assert running.leftovers() == []


@pytest.fixture(autouse=True)
def nothing_left(stack: Stack) -> Iterator[None]:
    """The next test finds the nodes free."""
    yield
    for run in stack.get("/v1/runs"):
        if run["state"] not in ("succeeded", "failed", "cancelled"):
            stack.orch("cancel", run["id"])
    wait_until(lambda: not any(node["runs"] for node in stack.get("/v1/nodes")), 60, stack.evidence)


def command(name: str, seconds: float, pool: str, **values: Any) -> dict[str, Any]:
    """A spec that only takes time."""
    argv = ["{python}", "-c", f"import time; time.sleep({seconds})"]
    placement = [{"pool": pool, "cpus": 1}]
    return {"name": name, "command": {"argv": argv}, "placement": placement, **values}


def gpt(name: str, text: Path, *pools: str, **values: Any) -> dict[str, Any]:
    """A run of the trainer that may execute in these pools, best first."""
    placement = [{"pool": pool, "cpus": 1} for pool in pools]
    values = {"checkpoint": {"every_steps": 500}, "migrate": "auto", **values}
    return tiny_gpt(name, text, FOREVER, placement=placement, **values)


def test_a_run_moves_up_when_the_better_node_is_free(stack: Stack, text: Path) -> None:
    blocking = stack.submit(command("blocking", 25, "gpu"))
    stack.wait_state(blocking, "running")
    run_id = stack.submit(gpt("moves-up", text, "gpu", "laptop"))
    stack.wait_step(run_id, 50)
    assert stack.show(run_id)["run"]["node"] == "laptop"
    stack.wait_state(blocking, "succeeded", timeout=60)
    wait_until(lambda: stack.show(run_id)["run"]["node"] == "gpu", 60, stack.evidence)
    first, second = stack.show(run_id)["attempts"]
    reached = stack.wait_step(run_id, first["last_step"] + 50)
    second = stack.show(run_id)["attempts"][1]
    assert first["reason"] == "upgraded"
    assert second["first_step"] == first["last_step"], "no step is lost"
    assert reached > first["last_step"]
    steps = [point["step"] for point in stack.get(f"/v1/runs/{run_id}/points", key="train/loss")]
    assert steps == sorted(set(steps))
    assert stack.json("why", run_id)["variants"] == []


def test_a_higher_priority_takes_the_place_and_gives_it_back(stack: Stack, text: Path) -> None:
    low = stack.submit(gpt("low", text, "laptop"))
    stack.wait_step(low, 50)
    high = stack.submit(command("high", 4, "laptop", priority=5))
    stack.wait_state(high, "running", timeout=60)
    detail = stack.wait_state(low, "queued")
    assert detail["attempts"][0]["reason"] == "preempted"
    why = stack.json("why", low)
    assert "in use by high" in why["variants"][0]["nodes"][0]["why"]
    assert "in use by high" in stack.orch("why", low)
    stack.wait_state(high, "succeeded")
    stack.wait_state(low, "running")
    first = stack.show(low)["attempts"][0]
    stack.wait_step(low, first["last_step"] + 20)
    second = stack.show(low)["attempts"][1]
    assert second["first_step"] == first["last_step"], "no step is lost"
    assert second["node"] == "laptop"
    events = [event["text"] for event in stack.show(low)["events"]]
    assert any("makes room for high" in text for text in events)


def test_equals_wait_in_order_and_can_be_held_and_put_first(stack: Stack) -> None:
    running = stack.submit(command("running", 8, "laptop"))
    stack.wait_state(running, "running")
    ids = [stack.submit(command(f"waits-{number}", 0.1, "laptop")) for number in range(3)]
    assert [run["id"] for run in stack.json("queue")] == ids
    stack.orch("queue", "hold", ids[0])
    stack.orch("queue", "top", ids[2])
    assert "held back by its user" in stack.orch("why", ids[0])
    for run_id in ids[1:]:
        stack.wait_state(run_id, "succeeded")
    assert stack.show(ids[0])["run"]["state"] == "queued"
    stack.orch("queue", "release", ids[0])
    stack.wait_state(ids[0], "succeeded")
    begun = {run_id: stack.show(run_id)["run"]["started_at"] for run_id in ids}
    assert begun[ids[2]] < begun[ids[1]] < begun[ids[0]]


def test_limits(stack: Stack) -> None:
    stack.orch("limit", "pool", "laptop", "0")
    try:
        run_id = stack.submit(command("limited", 0.1, "laptop"))
        assert "pool laptop is at its limit of 0" in stack.orch("why", run_id)
        assert "pool laptop is at its limit of 0" in stack.orch("ls")
    finally:
        stack.orch("limit", "pool", "laptop", "none")
    assert "no limits" in stack.orch("limit")
    stack.wait_state(run_id, "succeeded")
