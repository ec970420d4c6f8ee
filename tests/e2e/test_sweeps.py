"""Sweeps on a real stack: rungs that climb from "laptop" to "gpu", a killed controller, MLflow's tree."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from tests import browser
from tests.browser import CHROMIUM
from tests.e2e.mlflow_api import MlflowReader
from tests.stack import Stack, tiny_gpt
from tests.support import wait_until

TRIALS = 12 if os.environ.get("ORCH_SOAK") else 5


def sweep(name: str, text: Path, **values: Any) -> dict[str, Any]:
    base = tiny_gpt(name, text, 120, trainer={"eval_interval": 20, "sample_tokens": 0, "min_lr": 1e-5})
    base.pop("name")
    return {
        "name": name,
        "base": base,
        "space": {"trainer.learning_rate": {"float": [1e-4, 3e-2], "log": True}},
        "sampler": {"kind": "random", "seed": 5},
        "pruner": {"kind": "asha", "first_steps": 20, "factor": 2, "pools": ["laptop", "gpu"]},
        "budget": {"trials": TRIALS},
        "parallel": 2,
        **values,
    }


def submit(stack: Stack, spec: dict[str, Any]) -> str:
    path = stack.home / f"{spec['name']}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return str(stack.json("submit", str(path))["sweep_id"])


def finished(stack: Stack, sweep_id: str, timeout: float = 200) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        found = stack.get(f"/v1/sweeps/{sweep_id}")
        return found if found["sweep"]["state"] != "running" else None

    found = wait_until(over, timeout, stack.evidence, every=0.5)
    assert found["sweep"]["state"] == "finished", found["sweep"]["message"]
    return dict(found)


def test_survivors_climb_from_laptop_to_gpu_though_the_controller_is_killed(
    stack: Stack, text: Path, tmp_path: Path
) -> None:
    sweep_id = submit(stack, sweep("climb", text))
    moment = random.uniform(3, 4 * TRIALS)
    print(f"the controller is killed after {moment:.1f} s")
    time.sleep(moment)  # the random moment itself
    for process in stack.service("controller"):
        process.kill()
    stack.orch("up", timeout=120)
    found = finished(stack, sweep_id)
    assert [trial["number"] for trial in found["trials"]] == list(range(TRIALS))
    assert {trial["state"] for trial in found["trials"]} == {"complete", "pruned"}
    for trial in found["trials"]:
        attempts = stack.show(trial["run_id"])["attempts"]
        ends = [(a["pool"], a["first_step"] or 0, a["last_step"]) for a in attempts]
        expected = list(zip([0, *found["rungs"]], found["rungs"], strict=False))[: len(ends)]
        assert ends == [("laptop" if k == 0 else "gpu", *steps) for k, steps in enumerate(expected)]
    _mlflow_shows(stack, found)
    _the_link_opens_on_its_children(stack, found, tmp_path)


def _the_link_opens_on_its_children(stack: Stack, found: dict[str, Any], folder: Path) -> None:
    """In a real browser: the names of the trials' runs, and no other run's."""
    if CHROMIUM is None:
        print("no Chromium here: the comparison link was not opened")
        return
    name = found["sweep"]["name"]
    shown = f"document.body.innerText.match(/{name}(-\\d+)?\\b/g)"
    links = stack.get(f"/v1/sweeps/{found['sweep']['id']}")["links"]
    with browser.page(folder) as page:
        page.look(1280, 1400)
        page.open(links["charts"], f"new Set({shown}).size >= {TRIALS}")
        names = set(page.value(shown))
        page.renew()
        page.open(links["report"], "document.querySelector('iframe') !== null")
        shown = "document.querySelector('iframe').getAttribute('src')"
        report = page.value(f"fetch({shown}).then(answer => answer.text())")
    assert names == {trial["name"] for trial in found["trials"]}
    assert f"<title>{name}" in report


def _mlflow_shows(stack: Stack, found: dict[str, Any]) -> None:
    """A tree of the sweep and exactly its trials, each with one unbroken curve; the link names these."""
    reader = MlflowReader(stack.get("/v1/health")["mlflow_url"])
    own = wait_until(lambda: reader.of_sweep(found["sweep"]["id"]), 30, stack.evidence)
    parent = next(run for run in own if _tags(run).get("orch.kind") == "sweep")
    children = [run for run in own if _tags(run).get("mlflow.parentRunId") == parent["info"]["run_id"]]
    assert sorted(_tags(run)["orch.trial"] for run in children) == sorted(map(str, range(TRIALS)))
    ended = {_tags(run)["orch.trial"]: run["info"]["run_id"] for run in children}
    for trial in found["trials"]:
        curve = stack.get(f"/v1/runs/{trial['run_id']}/points", key="train/loss")
        steps = [point["step"] for point in curve]
        assert steps == sorted(set(steps))
        wait_until(
            lambda run=ended[str(trial["number"])], n=len(steps): len(reader.history(run, "train/loss")) == n,  # type: ignore[misc]
            30,
            stack.evidence,
        )
    links = stack.get(f"/v1/sweeps/{found['sweep']['id']}")["links"]
    chosen = parse_qs(links["charts"].partition("?")[2])["searchFilter"][0]
    assert {run["info"]["run_id"] for run in reader.search(chosen)} == set(ended.values())
    compared = [run_id for run_id in ended.values() if run_id in unquote(links["compare"])]
    assert len(compared) == min(TRIALS, 10)
    best = reader.history(parent["info"]["run_id"], "best/val/loss")
    assert best[-1][1] == found["sweep"]["best_value"]


def _tags(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def test_a_sweep_is_shown_extended_and_cancelled(stack: Stack, text: Path) -> None:
    spec = sweep("shown", text, pruner={"kind": "none"}, budget={"trials": 1})
    spec["base"]["trainer"]["max_steps"] = 40
    sweep_id = submit(stack, spec)
    finished(stack, sweep_id)
    printed = stack.orch("sweep", "show", "shown")
    assert "VAL/LOSS" in printed
    assert "best: trial 0" in printed
    assert sweep_id in stack.orch("sweep", "ls")
    stack.orch("sweep", "extend", "shown", "--trials", "200")
    wait_until(lambda: len(stack.get(f"/v1/sweeps/{sweep_id}")["trials"]) > 1, 30, stack.evidence)
    stack.orch("sweep", "cancel", "shown")
    left = wait_until(
        lambda: all(
            trial["state"] in ("complete", "cancelled")
            for trial in stack.get(f"/v1/sweeps/{sweep_id}")["trials"]
        ),
        60,
        stack.evidence,
    )
    assert left
    assert "cancelled" in stack.orch("sweep", "extend", "shown", "--trials", "300", code=4)
