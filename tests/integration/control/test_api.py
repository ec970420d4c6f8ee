"""The API over a real ledger, spool and store; agents are played by the tests."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.control.controller import Controller
from orchestrator.errors import SetupError, UnavailableError
from tests.integration.control.conftest import PaperGateway
from tests.support import wait_until
from tests.unit.records import node, spec


def submit(api: TestClient, key: str = "k1", **values: Any) -> str:
    body = {"spec": spec(pools=("laptop", "gpu"), **values).model_dump(mode="json"), "key": key}
    answer = api.post("/v1/runs", json=body)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["run_id"])


def state(api: TestClient, run_id: str) -> str:
    return str(api.get(f"/v1/runs/{run_id}").json()["run"]["state"])


def beat(api: TestClient, run_id: str, number: int = 1, **values: Any) -> dict[str, Any]:
    body = {"phase": "running", "pid": 1, **values}
    answer = api.post(f"/v1/agent/runs/{run_id}/attempts/{number}/beat", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def launched(gateway: PaperGateway, run_id: str, number: int = 1) -> None:
    wait_until(lambda: f"run-{run_id}-a{number}" in gateway.jobs, 5, lambda: str(gateway.jobs))


def end(api: TestClient, run_id: str, number: int, reason: str, **values: Any) -> dict[str, Any]:
    return beat(api, run_id, number, phase="ended", outcome={"reason": reason, **values})


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic x"}])
def test_without_the_token_nothing_is_told(api: TestClient, header: dict[str, str]) -> None:
    api.headers.pop("Authorization")
    for path in ("/v1/runs", "/v1/nodes", "/v1/runs/x"):
        answer = api.get(path, headers=header)
        assert answer.status_code == 401
        assert answer.json()["kind"] == "unauthorized"
    assert api.post("/v1/agent/runs/x/attempts/1/beat", headers=header, json={}).status_code == 401


def test_health_says_little_without_the_token(api: TestClient) -> None:
    assert api.get("/v1/health").json()["store_id"]
    api.headers.pop("Authorization")
    assert api.get("/v1/health").json()["store_id"] == ""


def test_the_same_key_is_the_same_run_and_another_spec_a_conflict(api: TestClient) -> None:
    first = submit(api, "once")
    again = api.post(
        "/v1/runs", json={"spec": spec(pools=("laptop", "gpu")).model_dump(mode="json"), "key": "once"}
    )
    assert (again.status_code, again.json()["run_id"], again.json()["created"]) == (200, first, False)
    other = api.post("/v1/runs", json={"spec": spec("other").model_dump(mode="json"), "key": "once"})
    assert other.status_code == 409


def test_a_run_from_submit_to_success(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    assert state(api, run_id) == "starting"
    beat(api, run_id, device="cpu", first_step=0)
    assert state(api, run_id) == "running"
    points = [{"key": "train/loss", "step": s, "time_ms": s, "value": 2.0 - s / 10} for s in (1, 2)]
    beat(api, run_id, step=2, points=points)
    told = api.get(f"/v1/runs/{run_id}/points", params={"key": "orch/attempt"}).json()
    assert [(p["step"], p["value"]) for p in told] == [(1, 1.0), (2, 1.0)]
    view = api.get(f"/v1/runs/{run_id}").json()["run"]
    assert (view["step"], view["loss"], view["node"]) == (2, 1.8, "laptop")
    end(api, run_id, 1, "completed", exit_code=0, last_step=3)
    detail = api.get(f"/v1/runs/{run_id}").json()
    assert (detail["run"]["state"], detail["run"]["step"]) == ("succeeded", 3)
    wait_until(lambda: gateway.killed == [f"run-{run_id}-a1"], 5)
    assert next(e["kind"] for e in detail["events"]) == "submitted"


def test_a_move_stops_the_attempt_and_goes_on_in_the_other_pool(
    api: TestClient, gateway: PaperGateway
) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    assert beat(api, run_id)["order"] == "continue"
    assert api.post(f"/v1/runs/{run_id}/move", json={"pool": "gpu"}).status_code == 200
    answer = beat(api, run_id)
    assert (answer["order"], answer["reason"]) == ("stop", "moved")
    end(api, run_id, 1, "moved", exit_code=75, last_step=40)
    launched(gateway, run_id, 2)
    assert gateway.jobs[f"run-{run_id}-a2"].node == "gpu"
    # A late word of the first attempt is answered with stop and changes nothing.
    late = beat(api, run_id, 1, points=[{"key": "a", "step": 9, "time_ms": 1, "value": 1.0}])
    assert late["order"] == "stop"
    assert api.get(f"/v1/runs/{run_id}/points").json() == []


def test_a_move_to_a_pool_that_the_spec_does_not_name_is_refused(api: TestClient) -> None:
    answer = api.post(f"/v1/runs/{submit(api)}/move", json={"pool": "cloud"})
    assert answer.status_code == 409
    assert "laptop, gpu" in answer.json()["remedy"]


def test_cancel_while_it_is_being_launched_wins(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    api.post(f"/v1/runs/{run_id}/cancel")
    assert beat(api, run_id, phase="claiming")["reason"] == "cancelled"
    end(api, run_id, 1, "program-killed")
    assert state(api, run_id) == "cancelled"
    assert api.post(f"/v1/runs/{run_id}/move", json={"pool": "gpu"}).status_code == 409


def test_a_crash_is_tried_again_and_given_up_at_last(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api, retries=1)
    launched(gateway, run_id, 1)
    end(api, run_id, 1, "program-killed", message="killed by SIGKILL")
    launched(gateway, run_id, 2)
    end(api, run_id, 2, "program-killed", message="killed by SIGKILL")
    detail = api.get(f"/v1/runs/{run_id}").json()
    assert detail["run"]["state"] == "failed"
    assert "killed by SIGKILL" in detail["run"]["message"]


def test_a_silent_attempt_whose_agent_is_gone_is_replaced(
    api: TestClient, gateway: PaperGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.domain.liveness.QUIET_S", 0.2)
    run_id = submit(api)
    launched(gateway, run_id)
    beat(api, run_id)
    gateway.agents_alive = False
    launched(gateway, run_id, 2)
    assert "agent-lost" in str(api.get(f"/v1/runs/{run_id}").json()["attempts"][0]["reason"])


def test_a_lost_node_costs_no_retry(
    api: TestClient, gateway: PaperGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.domain.liveness.NODE_DEAD_S", 0.2)
    run_id = submit(api, retries=0)
    launched(gateway, run_id)
    beat(api, run_id)
    gateway.fleet = [node("laptop", alive=False), node("gpu")]
    launched(gateway, run_id, 2)
    detail = api.get(f"/v1/runs/{run_id}").json()
    assert detail["attempts"][0]["reason"] == "away"
    assert gateway.jobs[f"run-{run_id}-a2"].node == "gpu"
    assert {n["name"]: n["state"] for n in api.get("/v1/nodes").json()} == {"laptop": "lost", "gpu": "ready"}


def test_while_ray_is_away_nothing_starts_and_nothing_is_declared_lost(
    api: TestClient, gateway: PaperGateway
) -> None:
    first = submit(api)
    launched(gateway, first)
    beat(api, first)
    gateway.nodes_error = UnavailableError("no Ray")
    wait_until(lambda: api.get("/v1/health").json()["ray_connected"] is False, 5)
    second = submit(api, "k2")
    assert state(api, second) == "queued"
    assert state(api, first) == "running"
    gateway.nodes_error = None
    launched(gateway, second)


def test_a_launch_that_fails_is_tried_again(api: TestClient, gateway: PaperGateway) -> None:
    gateway.launch_error = SetupError("no interpreter there")
    run_id = submit(api)
    wait_until(lambda: api.get(f"/v1/runs/{run_id}").json()["attempts"], 5)
    gateway.launch_error = None
    launched(gateway, run_id, 2)
    assert api.get(f"/v1/runs/{run_id}").json()["attempts"][0]["reason"] == "not-started"


def test_output_arrives_once_whatever_is_repeated(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)

    def send(offset: int, data: bytes) -> int:
        chunk = {"offset": offset, "data": base64.b64encode(data).decode()}
        return int(beat(api, run_id, log=chunk)["log_offset"])

    assert send(0, b"hello ") == 6
    assert send(0, b"hello ") == 6
    assert send(99, b"gap") == 6
    assert send(3, b"lo world") == 11
    page = api.get(f"/v1/runs/{run_id}/logs").json()
    assert base64.b64decode(page["data"]) == b"hello world"
    assert not page["ended"]


def test_a_checkpoint_under_way_is_shown(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    moving = {"direction": "up", "step": 10, "done": 5, "total": 50}
    beat(api, run_id, transfer=moving)
    assert api.get(f"/v1/runs/{run_id}").json()["run"]["transfer"] == moving
    beat(api, run_id)
    assert api.get(f"/v1/runs/{run_id}").json()["run"]["transfer"] is None


def test_news_that_is_repeated_is_one_event(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    note = {"step": 10, "at": "2100-01-01T00:00:00Z", "size": 5, "seconds": 0.1}
    for _ in range(3):
        beat(api, run_id, events=["the store was slow"], checkpoints=[note])
    texts = [event["text"] for event in api.get(f"/v1/runs/{run_id}").json()["events"]]
    assert texts.count("the store was slow") == 1
    assert len([text for text in texts if text.startswith("step 10 committed")]) == 1


def test_artifacts_cannot_leave_their_folder(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    path = f"/v1/agent/runs/{run_id}/attempts/1/artifacts"
    assert api.put(f"{path}/sample.txt", content=b"text").status_code == 204
    assert api.put(f"{path}/..%2F..%2F..%2Fevil", content=b"text").status_code in (404, 409)


def test_shutdown_orders_all_to_save_and_starts_nothing(api: TestClient, gateway: PaperGateway) -> None:
    run_id = submit(api)
    launched(gateway, run_id)
    beat(api, run_id)
    assert api.post("/v1/shutdown").json() == {"attempts": 1}
    assert beat(api, run_id)["reason"] == "shutdown"
    end(api, run_id, 1, "shutdown", exit_code=75)
    assert state(api, run_id) == "queued"
    assert f"run-{run_id}-a2" not in gateway.jobs


def test_an_interrupted_launch_is_made_good_by_the_next_controller(
    controller: Controller, gateway: PaperGateway, tmp_path: Any
) -> None:
    """The process dies between recording an attempt and launching it."""
    from orchestrator.api.app import create_app
    from tests.integration.control.conftest import TOKEN, build

    gateway.launch_error = UnavailableError("dies before it launches")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(create_app(controller, TOKEN, "c"), headers=headers) as api:
        run_id = submit(api)
        wait_until(lambda: state(api, run_id) == "starting", 5)
    gateway.launch_error = None
    with TestClient(create_app(build(tmp_path, gateway), TOKEN, "c"), headers=headers) as api:
        launched(gateway, run_id, 1)
        assert len(api.get(f"/v1/runs/{run_id}").json()["attempts"]) == 1


def test_plan_uses_the_scheduler_itself(api: TestClient) -> None:
    body = {"spec": spec(pools=("cloud", "gpu")).model_dump(mode="json"), "key": "x"}
    wait_until(lambda: api.get("/v1/nodes").json(), 5)
    lines = api.post("/v1/plan", json=body).json()["lines"]
    assert [line["node"] for line in lines] == [None, "gpu"]
    assert "no node of pool cloud" in lines[0]["why"]


def test_resume_from_what_does_not_exist_is_refused(api: TestClient) -> None:
    for text, status in (("nobody@3", 404), ("@", 404)):
        body = {"spec": spec(resume_from=text).model_dump(mode="json"), "key": text}
        answer = api.post("/v1/runs", json=body)
        assert answer.status_code == status, answer.text
    run_id = submit(api)
    body = {"spec": spec(resume_from=run_id).model_dump(mode="json"), "key": "z"}
    assert "has no checkpoint yet" in api.post("/v1/runs", json=body).json()["message"]
