"""Parts of the stack are killed or hang while a run trains."""

from __future__ import annotations

import os
import signal
import statistics
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.e2e.mlflow_api import MlflowReader
from tests.stack import Stack, tiny_gpt
from tests.support import wait_until

OUTAGE_S = 60 if os.environ.get("ORCH_SOAK") else 20


def test_controller_killed(stack: Stack, text: Path) -> None:
    run_id = stack.submit(tiny_gpt("controller-killed", text, 600))
    stack.wait_step(run_id, 60)
    for process in stack.service("controller"):
        process.kill()
    stack.orch("up", timeout=120)
    detail = stack.wait_state(run_id, "succeeded", timeout=120)
    assert len(detail["attempts"]) == 1
    printed = stack.orch("logs", run_id)
    steps = [line.split(":")[0] for line in printed.splitlines() if line.startswith("step ") and "lr" in line]
    assert len(steps) == len(set(steps)) == 600 // 5
    points = stack.get(f"/v1/runs/{run_id}/points", key="train/loss")
    assert [p["step"] for p in points] == list(range(0, 601, 5))


def test_ray_head_killed(stack: Stack, text: Path) -> None:
    run_id = stack.submit(tiny_gpt("head-killed", text, 1500))
    reached = stack.wait_step(run_id, 200)
    for process in stack.service("head"):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    detail = stack.wait_state(run_id, "succeeded", timeout=240)
    assert len(detail["attempts"]) >= 2
    assert detail["attempts"][-1]["first_step"] >= reached - 50
    points = stack.get(f"/v1/runs/{run_id}/points", key="train/loss")
    assert [p["step"] for p in points] == list(range(0, 1501, 5))


def test_agent_killed(stack: Stack, text: Path) -> None:
    run_id = stack.submit(tiny_gpt("agent-killed", text, 400))
    stack.wait_step(run_id, 100)
    trainer = stack.program(f"{run_id}-a1")
    os.kill(stack.agents()[f"{run_id}-a1"]["pid"], signal.SIGKILL)
    wait_until(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE, 10)
    detail = stack.wait_state(run_id, "succeeded", timeout=120)
    assert detail["attempts"][0]["reason"] == "agent-lost"


@pytest.mark.slow
def test_mlflow_hangs(stack: Stack, text: Path) -> None:
    """No step waits for MLflow, and afterwards every point is there once."""
    steps = 12_000
    run_id = stack.submit(tiny_gpt("mlflow-hangs", text, steps, trainer={"log_interval": 20}))
    stack.wait_step(run_id, 200)
    reader = MlflowReader(stack.get("/v1/health")["mlflow_url"])
    family = stack.service("mlflow")
    began = time.time()
    for process in family:
        process.suspend()
    try:
        time.sleep(OUTAGE_S)  # the outage itself
    finally:
        for process in family:
            process.resume()
    ended = time.time()
    stack.orch("cancel", run_id) if stack.show(run_id)["run"]["state"] == "running" else None
    stack.wait_state(run_id, "succeeded", "cancelled", timeout=120)
    points = stack.get(f"/v1/runs/{run_id}/points", key="train/loss")
    measured = [p["time_ms"] / 1000 for p in points]
    during = [b - a for a, b in pairwise(measured) if began < a < ended]
    before = [b - a for a, b in pairwise(measured) if b < began]
    assert during, "the run ended before the outage"
    assert statistics.median(during) < 3 * statistics.median(before)
    assert max(during) < max(8.0, 3 * max(before))
    wait_until(lambda: stack.get("/v1/health")["mlflow_pending"] == 0, 90, stack.evidence)
    (run,) = reader.run_of(run_id)
    history = reader.history(run["info"]["run_id"], "train/loss")
    assert [step for step, _ in history] == [p["step"] for p in points]
