"""However a run is interrupted, it ends with bitwise the same weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.stack import Stack, tiny_gpt

STEPS = 300


def final_weights(stack: Stack, run_id: str) -> dict[str, str]:
    """File name -> SHA-256 of what the last checkpoint says about weights and optimizer."""
    import hashlib

    last = max(stack.json("checkpoints", run_id), key=lambda c: c["step"])
    assert last["step"] == STEPS
    folder = Path(last["uri"].removeprefix("file://"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def uninterrupted(stack: Stack, text: Path) -> dict[str, str]:
    run_id = stack.submit(tiny_gpt("uninterrupted", text, STEPS))
    stack.wait_state(run_id, "succeeded", timeout=120)
    return final_weights(stack, run_id)


def test_moved(stack: Stack, text: Path, uninterrupted: dict[str, str]) -> None:
    run_id = stack.submit(tiny_gpt("exact-moved", text, STEPS))
    stack.wait_step(run_id, 120)
    stack.orch("move", run_id, "--to", "gpu")
    detail = stack.wait_state(run_id, "succeeded", timeout=120)
    assert len(detail["attempts"]) == 2
    assert final_weights(stack, run_id) == uninterrupted


def test_trainer_killed(stack: Stack, text: Path, uninterrupted: dict[str, str]) -> None:
    run_id = stack.submit(tiny_gpt("exact-killed", text, STEPS))
    stack.wait_step(run_id, 120)
    stack.program(f"{run_id}-a1").kill()
    detail = stack.wait_state(run_id, "succeeded", timeout=120)
    assert [a["reason"] for a in detail["attempts"]] == ["program-killed", "completed"]
    assert final_weights(stack, run_id) == uninterrupted
    assert_one_point_per_step(stack, run_id)


def test_node_killed(stack: Stack, text: Path, uninterrupted: dict[str, str]) -> None:
    run_id = stack.submit(tiny_gpt("exact-node-killed", text, STEPS, away=10))
    stack.wait_step(run_id, 120)
    kill_node(stack, "laptop")
    detail = stack.wait_state(run_id, "succeeded", timeout=180)
    assert detail["attempts"][0]["reason"] in ("away", "node-lost")
    assert final_weights(stack, run_id) == uninterrupted
    assert_one_point_per_step(stack, run_id)
    stack.wait_free(60)


def kill_node(stack: Stack, name: str) -> None:
    """Power loss of one node: SIGKILL to every process of it, agents and programs included."""
    home = str(stack.home / "nodes" / name)
    killed: list[Any] = []
    for process in psutil.process_iter(["pid"]):
        try:
            mine = process.environ().get("ORCH_NODE_HOME") == home
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if mine:
            killed.append(process)
    killed += [child for p in killed for child in p.children(recursive=True)]
    assert killed
    for process in set(killed):
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def assert_one_point_per_step(stack: Stack, run_id: str) -> None:
    points = stack.get(f"/v1/runs/{run_id}/points", key="train/loss")
    assert [p["step"] for p in points] == list(range(0, STEPS + 1, 5))
