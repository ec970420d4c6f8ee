"""Runs share a real GPU by memory, beside programs that are not ours. Skipped where there is no GPU."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.domain.room import CONTEXT_BYTES
from tests.stack import Stack, running_stack, tiny_gpt
from tests.support import wait_until

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

MIB = 2**20
STEP = 16
"""MiB to which a node rounds what others hold."""
HOLD = """
import sys, time, torch
kept = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("holding", flush=True)
time.sleep(600)
"""
NO_GPU = """
import os, torch
assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nodes `laptop` without a GPU and `box` with one, on this machine."""
    home = tmp_path_factory.mktemp("orch") / "home"
    with running_stack(home, "laptop:cpus=1,gpus=0", "box:pool=gpu,cpus=6,gpus=1") as running:
        wait_until(lambda: card(running), 60, running.evidence)
        yield running
    assert running.leftovers() == []


@pytest.fixture(autouse=True)
def nothing_left(stack: Stack) -> Iterator[None]:
    """The next test finds the GPU free."""
    yield
    for run in stack.get("/v1/runs"):
        if run["state"] not in ("succeeded", "failed", "cancelled"):
            stack.orch("cancel", run["id"])
    wait_until(lambda: not any(node["runs"] for node in stack.get("/v1/nodes")), 60, stack.evidence)


def card(stack: Stack) -> dict[str, Any] | None:
    """The GPU as its node describes it."""
    states = [state for node in stack.get("/v1/nodes") for state in node["gpu_states"]]
    return states[0] if states else None


def share_of(stack: Stack, part: float) -> int:
    """MiB of a share: this part of what the GPU has and others have not taken."""
    state = card(stack)
    assert state is not None
    return int((state["memory"] - state["foreign_memory"]) * part) // MIB


def program(name: str, code: str, *arguments: str, pool: str = "gpu", **placement: Any) -> dict[str, Any]:
    """A spec of a few lines of Python."""
    argv = ["{python}", "-c", code, *arguments]
    return {"name": name, "command": {"argv": argv}, "placement": [{"pool": pool, "cpus": 1, **placement}]}


def holding(name: str, mib: int, share: int) -> dict[str, Any]:
    """A spec that takes `mib` of its share of a GPU and keeps them."""
    return program(name, HOLD, str(mib * MIB), gpus=1, gpu_memory=f"{share}MiB")


def missing(why: str) -> int:
    """The MiB that `orch why` says are missing."""
    found = re.search(r"(\d+) MiB missing", why)
    assert found, why
    return int(found[1])


@contextmanager
def somebody_else(mib: int) -> Iterator[None]:
    """A process that is not ours and holds this much of the GPU."""
    command = [sys.executable, "-c", HOLD, str(mib * MIB)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield
    finally:
        process.kill()
        process.wait(30)


def test_two_share_and_the_third_waits_for_memory(stack: Stack, text: Path) -> None:
    share = share_of(stack, 0.4)
    placement = [{"pool": "gpu", "cpus": 1, "gpus": 1, "gpu_memory": f"{share}MiB"}]
    training = {"device": "cuda", "compile": "false", "max_steps": 1_000_000}
    first = stack.submit(tiny_gpt("trains", text, placement=placement, trainer=training))
    second = stack.submit(holding("holds", share // 2, share))
    stack.wait_step(first, 20, timeout=180)
    wait_until(lambda: "holding" in stack.orch("logs", second), 120, stack.evidence)
    third = stack.submit(holding("waits", share // 2, share))
    state = card(stack)
    assert state is not None
    wanted = 3 * (share * MIB + CONTEXT_BYTES) - (state["memory"] - state["foreign_memory"])
    why = stack.orch("why", third)
    assert missing(why) == -(-wanted // MIB)
    assert "in use by trains, holds" in why
    assert stack.show(third)["run"]["state"] == "queued"
    time.sleep(5)  # many plans later
    assert stack.show(third)["run"]["state"] == "queued"
    assert {stack.show(run)["run"]["state"] for run in (first, second)} == {"running"}
    before = stack.show(first)["run"]["step"]
    stack.orch("cancel", second)
    stack.wait_state(third, "running", timeout=60)
    wait_until(lambda: "holding" in stack.orch("logs", third), 120, stack.evidence)
    stack.wait_step(first, before + 20)


def test_what_others_hold_is_respected(stack: Stack) -> None:
    share = share_of(stack, 0.5)
    with somebody_else(int(share * 1.2)):
        wait_until(lambda: (card(stack) or {})["foreign_memory"] >= share * 1.2 * MIB, 30, stack.evidence)
        small = stack.submit(holding("fits-beside", 64, 1024))
        stack.wait_state(small, "running", timeout=60)
        stack.orch("cancel", small)
        stack.wait_state(small, "cancelled", timeout=60)
        run = stack.submit(holding("beside-somebody", 64, share))
        whole = stack.submit(program("all-of-it", "pass", gpus=1))
        time.sleep(5)
        for waiting in (run, whole):
            assert stack.show(waiting)["run"]["state"] == "queued"
            assert re.search(r"\d+ (of \d+ )?MiB used by others", stack.orch("why", waiting))
    stack.wait_state(run, "running", timeout=60)
    stack.orch("cancel", run)
    stack.wait_state(whole, "succeeded", timeout=60)


def test_a_program_keeps_to_its_share(stack: Stack) -> None:
    run = stack.submit(holding("greedy", 3072, 2048))
    detail = stack.wait_state(run, "failed", timeout=90)
    assert detail["run"]["reason"] == "gpu-memory"


@pytest.mark.parametrize("pool", ["laptop", "gpu"])
def test_a_run_on_cpus_sees_no_gpu(stack: Stack, pool: str) -> None:
    run = stack.submit(program(f"no-gpu-on-{pool}", NO_GPU, pool=pool))
    stack.wait_state(run, "succeeded", timeout=90)
