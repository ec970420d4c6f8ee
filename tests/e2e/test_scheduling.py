"""Runs wait, make room, move up and come back by themselves, on two Ray nodes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import kill
from tests.stack import Stack, running_stack, tiny_gpt
from tests.support import wait_until

FOREVER = 200_000
"""Steps that nobody waits for."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nodes `laptop` and `gpu`, not known yet to be as fast; runs may move up after three seconds."""
    home = tmp_path_factory.mktemp("orch") / "home"
    with running_stack(home, "laptop:cpus=1", "gpu:cpus=1", env={"ORCH_UPGRADE_REST": "3"}) as running:
        yield running
    assert running.leftovers() == []


@pytest.fixture
def nothing_left(stack: Stack) -> Iterator[None]:
    """The next test finds the nodes free."""
    yield
    for run in stack.get("/v1/runs"):
        if run["state"] not in ("succeeded", "failed", "cancelled"):
            stack.orch("cancel", run["id"])
    stack.wait_free(60)


def command(name: str, pool: str, until: Path | None = None, **values: Any) -> dict[str, Any]:
    """A spec that does nothing, until this file is there."""
    code = f"import os, time\nwhile not os.path.exists({str(until)!r}): time.sleep(0.05)" if until else "pass"
    argv = ["{python}", "-c", code]
    placement = [{"pool": pool, "cpus": 1}]
    return {"name": name, "command": {"argv": argv}, "placement": placement, **values}


def check_top(stack: Stack, running: str, waiting: list[str]) -> None:
    """What executes and what waits is in the live picture, as JSON and as text."""
    view = wait_until(lambda: _waits(stack.json("top"), len(waiting)), 20, stack.evidence)
    assert [one["run"]["id"] for one in view["running"]] == [running]
    assert {one["id"] for one in view["waiting"]} == set(waiting)
    assert view["waiting"][0]["id"] == waiting[0]
    assert {one["node"]["name"]: one["node"]["runs"] for one in view["nodes"]} == {
        "laptop": ["running"],
        "gpu": [],
    }
    assert view["health"]["ray_connected"]
    shown = stack.orch("top", "--once")
    assert "RUNNING 1" in shown
    assert f"QUEUED {len(waiting)}" in shown
    assert "held back by its user" in shown
    assert max(map(len, shown.splitlines())) <= 120


def _waits(view: dict[str, Any], count: int) -> dict[str, Any] | None:
    return view if view["waiting_total"] == len(view["waiting"]) == count else None


@pytest.mark.usefixtures("nothing_left")
def test_equals_wait_in_order_and_can_be_held_and_put_first(stack: Stack, tmp_path: Path) -> None:
    running = stack.submit(command("running", "laptop", tmp_path / "end"))
    ids = [stack.submit(command(f"waits-{number}", "laptop")) for number in range(3)]
    assert [run["id"] for run in stack.json("queue")] == ids
    stack.orch("queue", "hold", ids[0])
    stack.orch("queue", "top", ids[2])
    assert "held back by its user" in stack.orch("why", ids[0])
    stack.orch("limit", "pool", "gpu", "0")
    limited = stack.submit(command("limited", "gpu"))
    assert "pool gpu is at its limit of 0" in stack.orch("why", limited)
    assert "pool gpu is at its limit of 0" in stack.orch("ls")
    check_top(stack, running, [ids[2], ids[0], ids[1], limited])
    assert "no limits" in stack.orch("limit", "pool", "gpu", "none")
    assert stack.show(running)["run"]["state"] == "running"
    (tmp_path / "end").touch()
    for run_id in (*ids[1:], limited):
        stack.wait_state(run_id, "succeeded")
    assert stack.show(ids[0])["run"]["state"] == "queued"
    stack.orch("queue", "release", ids[0])
    stack.wait_state(ids[0], "succeeded")
    begun = {run_id: stack.show(run_id)["attempts"][0]["created_at"] for run_id in ids}
    assert begun[ids[2]] < begun[ids[1]] < begun[ids[0]]


def test_a_run_moves_up_makes_room_comes_back_and_outlives_its_node(
    stack: Stack, text: Path, tmp_path: Path
) -> None:
    blocking = stack.submit(command("blocking", "gpu", tmp_path / "blocked"))
    stack.wait_state(blocking, "running")
    placement = [{"pool": "gpu", "cpus": 1}, {"pool": "laptop", "cpus": 1}]
    policy = {"every_steps": 200, "keep_last": 50}
    run_id = stack.submit(
        tiny_gpt("travels", text, FOREVER, placement=placement, checkpoint=policy, retries=0, migrate="auto")
    )
    stack.wait_step(run_id, 50)
    (tmp_path / "blocked").touch()
    _sees_it_move_up(stack, run_id)
    _sees_it_make_room_and_come_back(stack, run_id, tmp_path / "done")
    stack.orch("limit", "pool", "gpu", "0")  # else it may have moved up again when the node is back
    kill(stack, "gpu")
    reached = stack.wait_step(run_id, (stack.show(run_id)["run"]["step"] or 0) + 300)
    killed, last = stack.show(run_id)["attempts"][2:]
    assert (killed["node"], last["node"]) == ("gpu", "laptop")
    assert killed["reason"] in ("away", "node-lost"), "whichever is known first"
    committed = {point["step"]: point["attempt"] for point in stack.json("checkpoints", run_id)}
    assert last["first_step"] == max(step for step, attempt in committed.items() if attempt <= 3)
    assert killed["last_step"] - last["first_step"] <= 400, "no more is lost than since the last commit"
    points = [point["step"] for point in stack.get(f"/v1/runs/{run_id}/points", key="train/loss")]
    assert points[: reached // 5] == list(range(0, reached // 5 * 5, 5)), "each step once, whoever made it"
    stack.orch("cancel", run_id)


def _sees_it_move_up(stack: Stack, run_id: str) -> None:
    assert stack.show(run_id)["run"]["node"] == "laptop"
    wait_until(lambda: stack.show(run_id)["run"]["node"] == "gpu", 60, stack.evidence)
    first, _ = stack.show(run_id)["attempts"]
    stack.wait_step(run_id, first["last_step"] + 50)
    first, second = stack.show(run_id)["attempts"]
    assert (first["node"], first["reason"], second["node"]) == ("laptop", "upgraded", "gpu")
    assert second["first_step"] == first["last_step"], "no step is lost"
    assert stack.json("why", run_id)["variants"] == []


def _sees_it_make_room_and_come_back(stack: Stack, run_id: str, done: Path) -> None:
    stack.orch("limit", "pool", "laptop", "0")  # else it would go on there
    high = stack.submit(command("high", "gpu", done, priority=5))
    stack.wait_state(high, "running", timeout=60)
    detail = stack.wait_state(run_id, "queued")
    assert detail["attempts"][1]["reason"] == "preempted"
    assert "in use by high" in stack.json("why", run_id)["variants"][0]["nodes"][0]["why"]
    assert "in use by high" in stack.orch("why", run_id)
    done.touch()
    stack.wait_state(high, "succeeded")
    stack.wait_state(run_id, "running")
    second = stack.show(run_id)["attempts"][1]
    stack.wait_step(run_id, second["last_step"] + 250)
    third = stack.show(run_id)["attempts"][2]
    assert (third["node"], third["first_step"]) == ("gpu", second["last_step"]), "no step is lost"
    events = [event["text"] for event in stack.show(run_id)["events"]]
    assert any("makes room for high" in text for text in events)
    stack.orch("limit", "pool", "laptop", "none")
