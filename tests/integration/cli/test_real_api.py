"""The client against the real API, in one process: both must speak of the same things."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.client import Client
from orchestrator.domain.states import RunState
from orchestrator.errors import ConflictError, NotFoundError, SpecError, UnauthorizedError
from orchestrator.messages import RunDetail, SubmitRequest, TariffView
from orchestrator.spec import Variant
from orchestrator.spec.tariff import TariffBand, TariffSpec
from tests.integration.control.conftest import TOKEN, PaperGateway, build
from tests.support import wait_until
from tests.unit.cli.fake import NOW, spec


@pytest.fixture
def paper() -> PaperGateway:
    return PaperGateway()


@pytest.fixture
def api(tmp_path: Path, paper: PaperGateway) -> Iterator[TestClient]:
    with TestClient(create_app(build(tmp_path, paper), TOKEN, "cluster-1")) as client:
        yield client


@pytest.fixture
def real(api: TestClient) -> Iterator[Client]:
    with Client("http://testserver", TOKEN, transport=api._transport) as client:
        yield client


def submit(client: Client, key: str = "k") -> str:
    return client.submit(SubmitRequest(spec=spec(), key=key, source="name: demo", user="ada")).run_id


def test_a_run_as_the_client_sees_it(real: Client, api: TestClient) -> None:
    run = submit(real)
    assert submit(real) == run
    wait_until(lambda: real.run(run).run.attempt == 1, 10)
    assert [view.id for view in real.runs([RunState.STARTING])] == [run]
    assert real.runs([RunState.FAILED], "default", 3) == []
    assert real.run("demo").run.id == real.run(run[:4]).run.id == run
    beat = {
        "phase": "running",
        "pid": 1,
        "device": "cpu",
        "step": 10,
        "points": [{"key": "train/loss", "step": 10, "time_ms": 5, "value": 2.5}],
        "log": {"offset": 0, "data": base64.b64encode(b"hello\n").decode()},
    }
    headers = {"Authorization": f"Bearer {TOKEN}"}
    api.post(f"/v1/agent/runs/{run}/attempts/1/beat", json=beat, headers=headers).raise_for_status()
    assert real.run(run).run.loss == 2.5
    assert real.points(run, ["train/loss"])[0].attempt == 1
    assert real.logs(run, 1, 2).data == b"llo\n"
    assert b"".join(real.stream_logs(run)) == b"hello\n"
    assert real.checkpoints(run) == []
    assert real.links([run]) == {}
    assert real.move(run, "gpu").state == RunState.STOPPING
    end = {
        **beat,
        "points": [],
        "log": None,
        "phase": "ended",
        "outcome": {"reason": "moved", "last_step": 10},
    }
    api.post(f"/v1/agent/runs/{run}/attempts/1/beat", json=end, headers=headers).raise_for_status()
    wait_until(lambda: "gpu" in real.run(run).run.message, 10, lambda: repr(real.run(run).run))
    waiting = real.run(run).run
    assert (waiting.state, waiting.attempt, waiting.step) == (RunState.QUEUED, 1, 10)
    assert real.cancel(run).state == RunState.CANCELLED


def test_everything_at_one_look(real: Client) -> None:
    run = submit(real)
    wait_until(lambda: real.overview(NOW).running_total == 1, 10)
    view = real.overview(NOW)
    assert [one.run.id for one in view.running] == [run]
    assert {one.node.name for one in view.nodes} == {"laptop", "gpu"}
    assert view.health == real.health()


def test_following_a_run_that_is_cancelled(real: Client) -> None:
    nowhere = spec().model_copy(update={"placement": [Variant(pool="attic")]})
    run = real.submit(SubmitRequest(spec=nowhere, key="k")).run_id
    updates = real.follow(run, every_s=0.05)
    assert next(updates)
    real.cancel(run)
    *_, last = updates
    assert isinstance(last, RunDetail)
    assert last.run.state == RunState.CANCELLED
    assert b"".join(real.stream_logs(run, follow=True)) == b""


def test_errors_of_the_real_api(real: Client, api: TestClient) -> None:
    run = submit(real)
    with pytest.raises(NotFoundError, match="no run"):
        real.run("nobody")
    with pytest.raises(NotFoundError, match="no attempt 9"):
        real.logs(run, 9)
    with pytest.raises(ConflictError, match="no placement in pool attic"):
        real.move(run, "attic")
    with pytest.raises(ConflictError, match="another spec"):
        real.submit(SubmitRequest(spec=spec("other"), key="k"))
    with pytest.raises(SpecError, match="limit"):
        real.runs(limit=0)
    stranger = Client("http://testserver", "wrong", transport=api._transport)
    with pytest.raises(UnauthorizedError):
        stranger.runs()


def test_what_is_said_about_the_cluster(real: Client, api: TestClient) -> None:
    wait_until(lambda: real.health().ray_connected, 10)
    assert real.health().cluster_id == "cluster-1"
    assert {node.name for node in real.nodes()} == {"laptop", "gpu"}
    assert real.plan(SubmitRequest(spec=spec(), key="p")).lines[0].node
    with Client("http://testserver", transport=api._transport) as stranger:
        assert stranger.health().cluster_id == ""
    assert real.shutdown() == 0


def test_tariffs(real: Client) -> None:
    assert real.tariff() == real.set_tariff(None) == TariffView()
    spec = TariffSpec(tz="Europe/Paris", default=0.25, bands=[TariffBand(hours="22:00-06:00", price=0.1)])
    view = real.set_tariff(spec)
    assert real.tariff().tariff == view.tariff == spec
    assert view.price in (0.1, 0.25)
    assert view.until is not None
    assert real.set_tariff(None).tariff is None
