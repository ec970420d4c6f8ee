"""The main job on real parts: submit, train on the laptop, move to the GPU box, finish, look at it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mlflow_api import MlflowReader
from tests.stack import Stack, tiny_gpt
from tests.support import wait_until

STEPS = 400


@pytest.fixture(scope="module")
def moved(stack: Stack, text: Path) -> dict[str, Any]:
    """A run that began on the laptop and ended on the GPU box."""
    stack.wait_free()
    run_id = stack.submit(tiny_gpt("moved", text, STEPS))
    stack.wait_step(run_id, 100)
    stack.orch("move", run_id, "--to", "gpu")
    return stack.wait_state(run_id, "succeeded", timeout=180)


def test_two_attempts_on_two_nodes(moved: dict[str, Any]) -> None:
    first, second = moved["attempts"]
    assert (first["node"], first["reason"]) == ("laptop", "moved")
    assert (second["node"], second["reason"]) == ("gpu", "completed")
    assert second["first_step"] == first["last_step"]
    assert second["last_step"] == STEPS


def test_one_mlflow_run_with_one_point_per_metric_and_step(stack: Stack, moved: dict[str, Any]) -> None:
    run_id = moved["run"]["id"]
    reader = MlflowReader(stack.get("/v1/health")["mlflow_url"])
    wait_until(lambda: stack.get("/v1/health")["mlflow_pending"] == 0, 60)
    (mlflow_run,) = reader.run_of(run_id)
    mlflow_id = mlflow_run["info"]["run_id"]
    expected = {"train/loss": range(0, STEPS + 1, 5), "val/loss": range(0, STEPS + 1, 100)}
    for key, steps in expected.items():
        assert [step for step, _ in reader.history(mlflow_id, key)] == list(steps), key
    for key in moved["metrics"]:
        repeated = [s for s, n in Counter(s for s, _ in reader.history(mlflow_id, key)).items() if n > 1]
        assert repeated == [], key
    attempts = dict(reader.history(mlflow_id, "orch/attempt"))
    assert {attempts[step] for step in range(0, 100, 5)} == {1.0}
    assert attempts[STEPS] == 2.0


def test_mlflow_shows_what_where_and_what_came_of_it(stack: Stack, moved: dict[str, Any]) -> None:
    run_id = moved["run"]["id"]
    reader = MlflowReader(stack.get("/v1/health")["mlflow_url"])

    def finished() -> dict[str, Any] | None:
        (found,) = reader.run_of(run_id)
        return dict(found) if found["info"]["status"] == "FINISHED" else None

    run = wait_until(finished, 30)
    mlflow_id, experiment = run["info"]["run_id"], run["info"]["experiment_id"]
    params = {p["key"]: p["value"] for p in run["data"]["params"]}
    assert params["n_embd"] == "64"
    tags = {t["key"]: t["value"] for t in run["data"]["tags"]}
    assert tags["orch.attempt.1"].startswith("laptop")
    assert tags["orch.attempt.2"].startswith("gpu")
    assert "| 2 | gpu |" in tags["mlflow.note.content"]
    assert f"gpu to step {STEPS}" in tags["mlflow.note.content"]
    (dataset,) = run["inputs"]["dataset_inputs"]
    assert dataset["dataset"]["name"].endswith("words.txt")
    wait_until(lambda: "sample.txt" in reader.artifacts(mlflow_id), 30)
    assert set(reader.artifacts(mlflow_id, "spec")) == {"spec/resolved.yaml", "spec/as-written.yaml"}
    models = wait_until(lambda: reader.checkpoints(experiment, mlflow_id), 30)
    assert any(model["info"]["name"].endswith(f"{STEPS:08d}") for model in models), models


def test_energy_is_counted_on_both_nodes(stack: Stack, moved: dict[str, Any]) -> None:
    first, second = moved["attempts"]
    assert first["energy_kwh"] > 0
    assert second["energy_kwh"] > 0
    used = moved["run"]["energy_kwh"]
    assert used == pytest.approx(first["energy_kwh"] + second["energy_kwh"])
    assert moved["run"]["energy_source"] in ("measured", "estimated", "mixed")
    assert moved["run"]["cost"] is None
    reader = MlflowReader(stack.get("/v1/health")["mlflow_url"])
    wait_until(lambda: stack.get("/v1/health")["mlflow_pending"] == 0, 60)
    (mlflow_run,) = reader.run_of(moved["run"]["id"])
    points = reader.history(mlflow_run["info"]["run_id"], "orch/energy_kwh")
    steps = [(first["last_step"], pytest.approx(first["energy_kwh"])), (STEPS, pytest.approx(used))]
    assert points == steps


def test_the_loss_goes_on_where_it_was(stack: Stack, moved: dict[str, Any]) -> None:
    handover = moved["attempts"][0]["last_step"]
    points = stack.get(f"/v1/runs/{moved['run']['id']}/points", key="train/loss")
    before = [p["value"] for p in points if handover - 30 <= p["step"] < handover]
    after = [p["value"] for p in points if handover <= p["step"] < handover + 30]
    start = points[0]["value"]
    assert abs(sum(before) / len(before) - sum(after) / len(after)) < 0.1 * start
    assert moved["metrics"]["probe/delta"] == 0.0


def test_checkpoints_name_their_nodes(stack: Stack, moved: dict[str, Any]) -> None:
    listed = stack.json("checkpoints", moved["run"]["id"])
    assert {c["node"] for c in listed} == {"laptop", "gpu"}
    assert max(c["step"] for c in listed) == STEPS
    kept = [c for c in listed if c["kept"]]
    assert len(kept) <= 4
    for entry in kept:
        assert (Path(entry["uri"].removeprefix("file://")) / "model.safetensors").is_file()


def test_logs_show_both_attempts(stack: Stack, moved: dict[str, Any]) -> None:
    printed = stack.orch("logs", moved["run"]["id"])
    assert "stopped at step" in printed
    assert f"done at step {STEPS}" in printed


def test_every_listing_speaks_json(stack: Stack, moved: dict[str, Any]) -> None:
    run_id = moved["run"]["id"]
    assert run_id in [run["id"] for run in stack.json("ls", "--all")]
    assert stack.json("show", run_id)["run"]["state"] == "succeeded"
    assert {node["name"] for node in stack.json("nodes")} == {"laptop", "gpu"}
    assert stack.json("open", run_id)


def test_text_from_any_checkpoint(stack: Stack, moved: dict[str, Any]) -> None:
    step = next(c["step"] for c in stack.json("checkpoints", moved["run"]["id"]) if c["kept"])
    arguments = ("sample", f"{moved['run']['id']}@{step}", "--tokens", "40", "--seed", "3")
    printed = stack.orch(*arguments, timeout=120)
    assert len(printed.strip()) >= 20
    assert stack.orch(*arguments, timeout=120) == printed


def test_resume_begins_a_new_run_from_a_checkpoint(stack: Stack, moved: dict[str, Any]) -> None:
    run_id = moved["run"]["id"]
    answer = stack.json("resume", run_id, "--set", f"trainer.max_steps={STEPS + 50}")
    detail = stack.wait_state(answer["run_id"], "succeeded", timeout=120)
    assert detail["attempts"][0]["first_step"] == STEPS
    assert detail["run"]["step"] == STEPS + 50
    table = stack.json("compare", run_id, answer["run_id"])
    assert "max_steps" in json.dumps(table)


def test_cancel_ends_it_and_keeps_its_checkpoint(stack: Stack, text: Path) -> None:
    run_id = stack.submit(tiny_gpt("cancelled", text, 100_000))
    stack.wait_step(run_id, 60)
    stack.orch("cancel", run_id)
    detail = stack.wait_state(run_id, "cancelled", timeout=60)
    assert detail["attempts"][0]["reason"] == "cancelled"
    assert stack.json("checkpoints", run_id)
    assert stack.agents() == {}


def test_what_the_user_got_wrong_fails_at_once_and_says_so(stack: Stack) -> None:
    run_id = stack.submit(tiny_gpt("no-data", Path("/nonexistent/words.txt")))
    detail = stack.wait_state(run_id, "failed", timeout=60)
    assert len(detail["attempts"]) == 1
    assert "/nonexistent/words.txt" in detail["run"]["message"]


def test_any_program_runs(stack: Stack) -> None:
    spec = {
        "name": "any",
        "command": {"argv": ["{python}", "-c", "import os; print('run', os.environ['ORCH_RUN_ID'])"]},
        "placement": [{"pool": "laptop"}],
    }
    run_id = stack.submit(spec)
    stack.wait_state(run_id, "succeeded", timeout=60)
    assert f"run {run_id}" in stack.orch("logs", run_id)
