"""Machines that are to be empty: drained by a person, or wanted by their owner."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.programs import train
from tests.stack import Stack
from tests.support import wait_until

STEPS = 400
GAME = "orch-e2e-game"


@pytest.fixture
def restored(stack: Stack) -> Iterator[None]:
    """Whatever a test does, the next one finds both nodes in use for runs."""
    yield
    stack.orch("drain", "laptop", "--undo")
    stack.orch("owner", "--process", "off", "--quiet", "2m")
    wait_until(lambda: node(stack, "laptop")["closed"] == "", 60, stack.evidence)


def node(stack: Stack, name: str) -> dict[str, Any]:
    return next(dict(found) for found in stack.get("/v1/nodes") if found["name"] == name)


def counting(name: str) -> dict[str, Any]:
    """A program that counts steps for some seconds, and saves when it is told to stop."""
    argv = ["{python}", "-c", train(STEPS, every=50, pause=0.03)]
    pools = [{"pool": "laptop"}, {"pool": "gpu"}]
    return {"name": name, "command": {"argv": argv}, "placement": pools, "retries": 0}


def true_in(pool: str) -> dict[str, Any]:
    """A run that does nothing there."""
    return {"name": f"true-{pool}", "command": {"argv": ["true"]}, "placement": [{"pool": pool}]}


def state_shown(stack: Stack, name: str) -> str:
    """What people see, as one line."""
    lines = stack.orch("nodes").splitlines()
    return re.sub(" +", " ", next(line for line in lines if line.startswith(name)))


def assert_nothing_lost(stack: Stack, detail: dict[str, Any], why: str) -> None:
    first, second = detail["attempts"]
    assert (first["node"], first["reason"]) == ("laptop", why)
    assert (second["node"], second["reason"]) == ("gpu", "completed")
    assert second["first_step"] == first["last_step"]
    points = stack.get(f"/v1/runs/{detail['run']['id']}/points", key="train/loss")
    assert [p["step"] for p in points] == list(range(STEPS))


@pytest.mark.usefixtures("restored")
def test_a_run_on_a_drained_node_goes_on_elsewhere(stack: Stack) -> None:
    run_id = stack.submit(counting("drained"))
    stack.wait_step(run_id, 30)
    said = stack.orch("drain", "laptop")
    assert said.strip() == "laptop is being drained: drained will save and go on elsewhere"
    detail = stack.wait_state(run_id, "succeeded", timeout=180)
    assert_nothing_lost(stack, detail, "drained")
    assert "laptop is being drained" in [event["text"] for event in detail["events"]]
    assert " drained " in state_shown(stack, "laptop")
    for process in stack.service("controller"):
        process.kill()
    stack.orch("up", timeout=120)
    waiting = stack.submit(true_in("laptop"))
    stack.wait_state(stack.submit(true_in("gpu")), "succeeded", timeout=60)
    assert stack.show(waiting)["attempts"] == []
    assert "it is being drained" in stack.show(waiting)["run"]["message"]
    assert stack.orch("drain", "laptop", "--undo").strip() == "laptop is used again"
    assert stack.wait_state(waiting, "succeeded", timeout=60)["attempts"][0]["node"] == "laptop"


@pytest.mark.usefixtures("restored")
def test_an_owner_who_plays_gets_his_machine(stack: Stack, tmp_path: Path) -> None:
    stack.orch("owner", "--node", "laptop", "--process", GAME, "--quiet", "2s")
    run_id = stack.submit(counting("played"))
    stack.wait_step(run_id, 30)
    game = tmp_path / GAME
    shutil.copy(shutil.which("sleep") or "/bin/sleep", game)
    playing = subprocess.Popen([str(game), "300"])
    try:
        wait_until(lambda: node(stack, "laptop")["busy"], 30, stack.evidence)
        assert " in use " in state_shown(stack, "laptop")
        assert f"its owner uses it: {GAME} is running" in state_shown(stack, "laptop")
        detail = stack.wait_state(run_id, "succeeded", timeout=180)
        assert_nothing_lost(stack, detail, "owner")
        assert node(stack, "laptop")["yields"]
    finally:
        playing.kill()
        playing.wait(10)
    wait_until(lambda: node(stack, "laptop")["closed"] == "", 30, stack.evidence)
    assert " ready " in state_shown(stack, "laptop")


def test_an_unknown_node_is_named(stack: Stack) -> None:
    said = stack.orch("drain", "lapptop", code=3)
    assert "no node is called lapptop" in said
    assert "gpu, laptop" in said
