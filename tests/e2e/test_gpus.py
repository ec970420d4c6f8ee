"""Runs on a machine with two GPUs: one on each, and a gang on both. Skipped where there are not two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.stack import Stack, running_stack, tiny_gpt
from tests.support import wait_until

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

STEPS = 400
WHICH = """
import os, pathlib, sys, time, torch
assert torch.cuda.device_count() == 1
print("has", torch.cuda.get_device_properties(0).uuid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nodes `laptop` without a GPU and `box` with two, on this machine."""
    home = tmp_path_factory.mktemp("orch") / "home"
    with running_stack(home, "laptop:cpus=1,gpus=0", "box:pool=gpu,cpus=4,gpus=2") as running:
        wait_until(lambda: sum(len(n["gpu_states"]) for n in running.get("/v1/nodes")) == 2, 60)
        yield running
    assert running.leftovers() == []


def test_a_run_moves_from_one_processor_to_two_gpus_and_back(stack: Stack, text: Path) -> None:
    placement = [{"pool": "laptop", "cpus": 1}, {"pool": "gpu", "cpus": 1, "gpus": 1, "ranks": 2}]
    training = {"compile": "false", "dtype": "float32", "max_steps": 1_000_000}
    run = stack.submit(tiny_gpt("moves", text, placement=placement, trainer=training))
    stack.wait_step(run, 100)
    stack.orch("move", run, "--to", "gpu")
    wait_until(lambda: len(stack.show(run)["attempts"]) == 2, 120, stack.evidence)
    began = wait_until(lambda: stack.show(run)["attempts"][1]["first_step"], 120, stack.evidence)
    stack.wait_step(run, began + 200)
    assert stack.show(run)["attempts"][0]["last_step"] == began
    stack.orch("move", run, "--to", "laptop")
    wait_until(lambda: len(stack.show(run)["attempts"]) == 3, 120, stack.evidence)
    back = wait_until(lambda: stack.show(run)["attempts"][2]["first_step"], 120, stack.evidence)
    stack.wait_step(run, back + 20)
    stack.orch("cancel", run)
    detail = stack.wait_state(run, "cancelled")
    assert [attempt["node"] for attempt in detail["attempts"]] == ["laptop", "box", "laptop"]
    assert detail["attempts"][1]["last_step"] == back
    assert detail["metrics"]["probe/delta"] < 1e-4
    assert "2 ranks, float32" in stack.orch("logs", run)


def test_two_runs_have_a_gpu_each(stack: Stack) -> None:
    spec = {
        "command": {"argv": ["{python}", "-c", WHICH]},
        "placement": [{"pool": "gpu", "cpus": 1, "gpus": 1}],
    }
    runs = [stack.submit({"name": f"one-{n}", **spec}) for n in range(2)]

    def has(run: str) -> str:
        lines = [line for line in stack.orch("logs", run).splitlines() if "has " in line]
        return lines[0] if lines else ""

    for run in runs:
        wait_until(lambda run=run: has(run), 120, stack.evidence)
    assert has(runs[0]).split()[-1] != has(runs[1]).split()[-1]
    third = stack.submit({"name": "one-2", **spec})
    assert stack.show(third)["run"]["state"] == "queued"
    stack.orch("cancel", runs[0])
    wait_until(lambda: has(third), 120, stack.evidence)
    for run in (runs[1], third):
        stack.orch("cancel", run)
        stack.wait_state(run, "cancelled")
