"""Draining and reports through the whole API; agents are played by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from tests.integration.control.conftest import TOKEN, PaperGateway, build
from tests.integration.control.test_api import beat, end, launched, state, submit
from tests.support import wait_until

BUSY = {"busy": "cs2 is running", "yields": True}


def view(api: TestClient, name: str) -> dict[str, Any]:
    return next(dict(found) for found in api.get("/v1/nodes").json() if found["name"] == name)


def wait_nodes(api: TestClient) -> None:
    wait_until(lambda: len(api.get("/v1/nodes").json()) == 2, 5)


def report(api: TestClient, name: str, **note: Any) -> None:
    answer = api.post(f"/v1/agent/nodes/{name}/report", json=note)
    assert answer.status_code == 204, answer.text


def test_a_drained_node_is_left_and_nothing_new_starts_there(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    beat(api, run_id, step=40)
    told = api.post("/v1/nodes/laptop/drain").json()
    assert (told["draining"], told["drained"], told["closed"]) == (True, False, "it is being drained")
    wait_until(lambda: beat(api, run_id)["order"] == "stop", 5)
    assert beat(api, run_id)["reason"] == "drained"
    end(api, run_id, 1, "drained", exit_code=75, last_step=41)
    launched(gateway, run_id, 2)
    assert gateway.jobs[f"run-{run_id}-a2"].node == "gpu"
    detail = api.get(f"/v1/runs/{run_id}").json()
    assert "laptop is being drained" in [event["text"] for event in detail["events"]]
    assert [event["kind"] for event in detail["events"]].count("drained") == 1
    assert view(api, "laptop")["drained"]
    assert not view(api, "gpu")["draining"]


def test_a_run_that_fits_nowhere_else_waits_until_the_node_is_used_again(
    api: TestClient, gateway: PaperGateway
) -> None:
    wait_nodes(api)
    api.post("/v1/nodes/laptop/drain")
    api.post("/v1/nodes/gpu/drain")
    run_id = submit(api)
    wait_until(lambda: api.get(f"/v1/runs/{run_id}").json()["run"]["message"], 5)
    assert state(api, run_id) == "queued"
    assert api.delete("/v1/nodes/gpu/drain").json()["draining"] is False
    assert api.delete("/v1/nodes/gpu/drain").status_code == 200, "a second time changes nothing"
    launched(gateway, run_id)
    assert gateway.jobs[f"run-{run_id}-a1"].node == "gpu"


def test_an_unknown_node_names_those_there_are(api: TestClient) -> None:
    wait_nodes(api)
    for method in ("POST", "DELETE"):
        answer = api.request(method, "/v1/nodes/lapptop/drain")
        assert answer.status_code == 404
        assert answer.json()["message"] == "no node is called lapptop"
        assert answer.json()["remedy"] == "the nodes there are: gpu, laptop"


def test_a_drain_outlives_the_controller_and_its_node(tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(create_app(build(tmp_path, PaperGateway()), TOKEN, "c"), headers=headers) as first:
        wait_nodes(first)
        assert first.post("/v1/nodes/laptop/drain").json()["draining"]
    gateway = PaperGateway(fleet=[])
    with TestClient(create_app(build(tmp_path, gateway), TOKEN, "c"), headers=headers) as second:
        gone = second.post("/v1/nodes/laptop/drain").json()
        assert (gone["state"], gone["draining"]) == ("lost", True)
        gateway.fleet = PaperGateway().fleet
        wait_nodes(second)
        assert view(second, "laptop")["draining"]
        run_id = submit(second)
        launched(gateway, run_id)
        assert gateway.jobs[f"run-{run_id}-a1"].node == "gpu"


def test_an_owner_gets_the_machine_where_it_yields(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    beat(api, run_id)
    report(api, "laptop", **BUSY)
    wait_until(lambda: beat(api, run_id)["order"] == "stop", 5)
    assert beat(api, run_id)["reason"] == "owner"
    end(api, run_id, 1, "owner", exit_code=75, last_step=7)
    launched(gateway, run_id, 2)
    assert gateway.jobs[f"run-{run_id}-a2"].node == "gpu"
    shown = view(api, "laptop")
    assert (shown["busy"], shown["yields"], shown["state"]) == ("cs2 is running", True, "ready")
    texts = [event["text"] for event in api.get(f"/v1/runs/{run_id}").json()["events"]]
    assert "the owner of laptop needs it: cs2 is running" in texts


def test_otherwise_only_nothing_new_starts(api: TestClient, gateway: PaperGateway) -> None:
    first = submit(api)
    launched(gateway, first)
    beat(api, first)
    report(api, "laptop", busy="cs2 is running", yields=False)
    second = submit(api, "k2")
    launched(gateway, second)
    assert gateway.jobs[f"run-{second}-a1"].node == "gpu"
    assert beat(api, first)["order"] == "continue"


def test_gpus_are_shown_as_the_node_tells(api: TestClient) -> None:
    wait_nodes(api)
    told = {"index": 0, "name": "RTX", "memory": 12 << 30, "foreign_memory": 1 << 30, "foreign_use": 0.5}
    report(api, "gpu", gpus=[told])
    assert view(api, "gpu")["gpu_states"] == [told]
    assert 0 <= view(api, "gpu")["silent_s"] < 30
    assert view(api, "laptop")["silent_s"] is None


def test_nonsense_is_refused(api: TestClient) -> None:
    for note in ({"busy": "x" * 501}, {"gpus": [{"index": -1, "name": "", "memory": 1}]}, {"more": 1}):
        assert api.post("/v1/agent/nodes/gpu/report", json=note).status_code == 422
    api.headers.pop("Authorization")
    assert api.post("/v1/agent/nodes/gpu/report", json={}).status_code == 401
