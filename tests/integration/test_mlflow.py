"""The shipper and a real MLflow server, also while the server hangs, dies and comes back.

What the server has is read over its REST API, not through our sink.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.cluster.mlflow_command import initialise
from orchestrator.messages_agent import Point
from orchestrator.store.outbox import (
    CreateRun,
    LogArtifact,
    LogCheckpoint,
    LogDataset,
    SetDescription,
    SetParams,
    SetStatus,
    SetTags,
)
from orchestrator.store.spool import Spool
from orchestrator.tracking.links import run_link
from orchestrator.tracking.mlflow_sink import MlflowSink
from orchestrator.tracking.shipper import Shipper
from orchestrator.tracking.sink import SinkUnavailableError, Target, TargetState
from tests.mlflow_server import MlflowServer
from tests.support import free_port, wait_until

START_MS = 1_760_000_000_000
END_MS = START_MS + 60_000


class Rest:
    """MLflow's REST API, as a browser would use it."""

    def __init__(self, base: str) -> None:
        self.base = base

    def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"params" if method == "GET" else "json": body}
        answer = httpx.request(
            method, f"{self.base}/api/2.0/mlflow/{path}", timeout=30, trust_env=False, **options
        )
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def run(self, mlflow_run_id: str | None) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", "runs/get", run_id=mlflow_run_id)["run"]
        return found

    def history(self, mlflow_run_id: str | None, key: str) -> list[tuple[int, int, float]]:
        """(step, time, value) of every stored point, also of duplicates, by step."""
        found: list[tuple[int, int, float]] = []
        page: dict[str, str] = {}
        while True:
            answer = self.call(
                "GET", "metrics/get-history", run_id=mlflow_run_id, metric_key=key, max_results=20_000, **page
            )
            found += [
                (int(m["step"]), int(m["timestamp"]), float(m["value"])) for m in answer.get("metrics", [])
            ]
            if not answer.get("next_page_token"):
                return sorted(found)
            page = {"page_token": answer["next_page_token"]}

    def runs_of(self, experiment_id: str, run_id: str, view: str = "ACTIVE_ONLY") -> list[str]:
        query = f"tags.`orch.run_id` = '{run_id}'"
        found = self.call(
            "POST", "runs/search", experiment_ids=[experiment_id], filter=query, run_view_type=view
        )
        return [run["info"]["run_id"] for run in found.get("runs", [])]


@pytest.fixture
def rest(mlflow_server: MlflowServer) -> Rest:
    return Rest(mlflow_server.url)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "points.db")
    yield spool
    spool.close()


@pytest.fixture
def shipper(spool: Spool, mlflow_server: MlflowServer) -> Iterator[Shipper]:
    shipper = Shipper(spool, lambda: MlflowSink(mlflow_server.url))
    shipper.start()
    yield shipper
    assert shipper.stop(30)


@pytest.fixture
def run_id() -> str:
    return f"r-{uuid.uuid4().hex[:8]}"


def create(experiment: str = "curves") -> CreateRun:
    return CreateRun(
        name="shakespeare",
        experiment=experiment,
        start_ms=START_MS,
        user="ada",
        source_name="orch submit",
        tags={"team": "lab"},
        params={"lr": "1e-3", "long": "x" * 7000, "odd(name)": "1", "odd[name]": "2"},
        description="**a run**",
    )


def points(first: int, last: int) -> list[Point]:
    return [
        Point(key="train/loss", step=step, time_ms=START_MS + step, value=step / 7)
        for step in range(first, last)
    ]


def expected(last: int) -> list[tuple[int, int, float]]:
    return [(step, START_MS + step, step / 7) for step in range(last)]


def shipped(spool: Spool, shipper: Shipper, timeout: float = 30.0) -> None:
    wait_until(lambda: not spool.waiting(), timeout, lambda: f"{shipper.status()} {spool.failures()}")


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def test_everything_about_a_run_arrives(
    spool: Spool, shipper: Shipper, rest: Rest, run_id: str, tmp_path: Path
) -> None:
    log = tmp_path / "a1.log"
    log.write_text("step 1\n")
    spool.enqueue(run_id, create(), SetStatus(status="RUNNING", time_ms=START_MS))
    spool.enqueue(
        run_id, LogDataset(name="shakespeare", digest="d" * 40, source="https://x", profile={"n": 3})
    )
    spool.enqueue(run_id, LogArtifact(artifact_path="logs/attempt-1.log", file=str(log)))
    spool.enqueue(run_id, files={"spec.yaml": b"name: shakespeare\n"})
    for first in range(0, 5000, 100):
        spool.add_points(run_id, 1, points(first, first + 100))
    spool.enqueue(
        run_id, SetDescription(text="| a | b |\n| --- | --- |"), SetTags(tags={"orch.state": "done"})
    )
    spool.enqueue(run_id, SetStatus(status="FINISHED", time_ms=END_MS))
    shipped(spool, shipper)
    assert spool.failures() == []
    run = rest.run(spool.mlflow_run_id(run_id))
    info, tags = run["info"], tags_of(run)
    assert (info["run_name"], info["status"], info["user_id"]) == ("shakespeare", "FINISHED", "ada")
    assert (int(info["start_time"]), int(info["end_time"])) == (START_MS, END_MS)
    assert rest.history(info["run_id"], "train/loss") == expected(5000)
    assert tags["mlflow.note.content"] == "| a | b |\n| --- | --- |"
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("orch submit", "JOB")
    assert (tags["orch.run_id"], tags["team"], tags["orch.state"]) == (run_id, "lab", "done")
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert (params["lr"], params["odd_name_"]) == ("1e-3", "1")
    assert len(params["long"]) == 6000
    assert params["long"].endswith("(cut)")
    (dataset,) = run["inputs"]["dataset_inputs"]
    assert (dataset["dataset"]["name"], dataset["tags"][0]["value"]) == ("shakespeare", "train")
    assert _artifact(rest, info["run_id"], "logs/attempt-1.log") == "step 1\n"
    assert _artifact(rest, info["run_id"], "spec.yaml") == "name: shakespeare\n"


def _artifact(rest: Rest, mlflow_run_id: str, path: str) -> str:
    address = f"{rest.base}/get-artifact"
    answer = httpx.get(address, params={"run_uuid": mlflow_run_id, "path": path}, trust_env=False)
    answer.raise_for_status()
    return answer.text


def test_checkpoints_are_logged_models_by_reference(
    spool: Spool, shipper: Shipper, rest: Rest, run_id: str, mlflow_server: MlflowServer
) -> None:
    spool.enqueue(run_id, create())
    spool.add_points(run_id, 1, [Point(key="val/loss", step=200, time_ms=START_MS + 5, value=1.5)])
    tasks = [
        LogCheckpoint(
            step=step,
            attempt=1,
            uri=f"file:///store/{step}",
            sha256="ab" * 32,
            size=123,
            time_ms=START_MS + 99,
            metrics={"val/loss": value},
        )
        for step, value in ((200, 1.50001), (400, 1.25))
    ]
    spool.enqueue(run_id, *tasks)
    shipped(spool, shipper)
    assert spool.failures() == []
    known = spool.mlflow_run(run_id)
    assert known is not None
    target, sink = Target(run_id, *known), MlflowSink(mlflow_server.url)
    for task in tasks:
        sink.apply(target, task)  # replayed after a crash
    models = rest.call("POST", "logged-models/search", experiment_ids=[known[0]])["models"]
    ours = {m["info"]["name"]: m for m in models if m["info"]["source_run_id"] == known[1]}
    assert sorted(ours) == ["ckpt-00000200", "ckpt-00000400"]
    info = ours["ckpt-00000200"]["info"]
    assert info["status"] == "LOGGED_MODEL_READY"
    assert info["model_type"] == "checkpoint"
    tags = {tag["key"]: tag["value"] for tag in info["tags"]}
    assert (tags["uri"], tags["sha256"], tags["step"]) == ("file:///store/200", "ab" * 32, "200")
    (metric,) = ours["ckpt-00000200"]["data"]["metrics"]
    assert (metric["key"], metric["value"], int(metric["step"])) == ("val/loss", 1.5, 200)
    outputs = rest.run(known[1])["outputs"]["model_outputs"]
    assert sorted(int(output["step"]) for output in outputs) == [200, 400]
    curve = [(200, START_MS + 5, 1.5), (400, START_MS + 99, 1.25)]
    assert rest.history(known[1], "val/loss") == curve, "one point per step, the measured one"


def test_each_point_once_though_the_server_hung(
    spool: Spool, shipper: Shipper, rest: Rest, run_id: str, mlflow_server: MlflowServer
) -> None:
    spool.enqueue(run_id, create())
    spool.add_points(run_id, 1, points(0, 100))
    shipped(spool, shipper)
    mlflow_server.freeze()
    try:
        slowest, thaw_at, step = 0.0, time.monotonic() + 10, 100
        while time.monotonic() < thaw_at:
            started = time.monotonic()
            spool.add_points(run_id, 1, points(step, step + 20))
            slowest, step = max(slowest, time.monotonic() - started), step + 20
            time.sleep(0.1)
        wait_until(lambda: shipper.status().last_error, 10, lambda: str(shipper.status()))
        assert shipper.status().connected is False
        assert shipper.status().pending_points == step - 100
    finally:
        mlflow_server.thaw()
    assert slowest < 1.0, "nobody who adds points waits for MLflow"
    shipped(spool, shipper)
    assert rest.history(spool.mlflow_run_id(run_id), "train/loss") == expected(step)
    status = shipper.status()
    assert (status.connected, status.last_error, status.pending_points) == (True, None, 0)


def test_one_mlflow_run_though_the_server_hung_during_creation(
    spool: Spool, shipper: Shipper, rest: Rest, run_id: str, mlflow_server: MlflowServer
) -> None:
    spool.enqueue("warm-up", create("late"))
    shipped(spool, shipper)
    mlflow_server.freeze()
    try:
        spool.enqueue(run_id, create("late"))
        wait_until(lambda: shipper.status().last_error, 20, lambda: str(shipper.status()))
    finally:
        mlflow_server.thaw()
    spool.enqueue(run_id, SetStatus(status="FINISHED", time_ms=END_MS))
    shipped(spool, shipper)
    known = spool.mlflow_run(run_id)
    assert known is not None
    wait_until(
        lambda: rest.runs_of(known[0], run_id) == [known[1]], 10, lambda: str(rest.runs_of(known[0], run_id))
    )


def test_each_point_once_though_the_server_was_killed(
    spool: Spool, shipper: Shipper, rest: Rest, run_id: str, mlflow_server: MlflowServer
) -> None:
    spool.enqueue(run_id, create())
    spool.add_points(run_id, 1, points(0, 3000))
    wait_until(
        lambda: len(spool.unshipped(run_id, 3000)) < 3000, 20, lambda: str(shipper.status()), every=0.005
    )
    mlflow_server.kill()
    try:
        spool.add_points(run_id, 1, points(3000, 6000))
        spool.enqueue(run_id, SetTags(tags={"after": "kill"}))
        wait_until(lambda: shipper.status().connected is False, 20, lambda: str(shipper.status()))
    finally:
        mlflow_server.start()
    shipped(spool, shipper)
    assert rest.history(spool.mlflow_run_id(run_id), "train/loss") == expected(6000)
    assert tags_of(rest.run(spool.mlflow_run_id(run_id)))["after"] == "kill"


def test_a_failed_run_is_reopened(spool: Spool, shipper: Shipper, rest: Rest, run_id: str) -> None:
    spool.enqueue(run_id, create(), SetStatus(status="FAILED", time_ms=END_MS))
    shipped(spool, shipper)
    info = rest.run(spool.mlflow_run_id(run_id))["info"]
    assert (info["status"], int(info["end_time"])) == ("FAILED", END_MS)
    spool.enqueue(run_id, SetStatus(status="RUNNING", time_ms=END_MS + 1))
    shipped(spool, shipper)
    info = rest.run(spool.mlflow_run_id(run_id))["info"]
    assert info["status"] == "RUNNING"
    assert not int(info.get("end_time", 0)), "a run that goes on has no end"


def test_a_second_creation_finds_the_first(mlflow_server: MlflowServer, rest: Rest, run_id: str) -> None:
    first = MlflowSink(mlflow_server.url).create(run_id, create())
    second = MlflowSink(mlflow_server.url).create(run_id, create())
    assert first == second
    assert rest.runs_of(first.experiment_id, run_id, view="ALL") == [first.mlflow_run_id]


def test_a_creation_that_was_carried_out_late_leaves_no_second_run(
    mlflow_server: MlflowServer, rest: Rest, run_id: str
) -> None:
    sink = MlflowSink(mlflow_server.url)
    ours = sink.create(run_id, create())
    tags = [{"key": "orch.run_id", "value": run_id}]
    rest.call("POST", "runs/create", experiment_id=ours.experiment_id, start_time=START_MS, tags=tags)
    assert len(rest.runs_of(ours.experiment_id, run_id)) == 2
    sink.apply(ours, SetStatus(status="FINISHED", time_ms=END_MS))
    assert rest.runs_of(ours.experiment_id, run_id) == [ours.mlflow_run_id]


def test_a_refused_task_does_not_hold_up_the_run(
    spool: Spool, shipper: Shipper, rest: Rest, run_id: str
) -> None:
    spool.enqueue(run_id, create(), SetParams(params={"lr": "another"}), SetTags(tags={"later": "yes"}))
    shipped(spool, shipper)
    (failure,) = spool.failures(run_id)
    assert failure.task == SetParams(params={"lr": "another"})
    assert "lr" in failure.error
    assert tags_of(rest.run(spool.mlflow_run_id(run_id)))["later"] == "yes"


def test_a_deleted_run_is_parked_and_goes_on_once_restored(
    spool: Spool, shipper: Shipper, rest: Rest, run_id: str
) -> None:
    spool.enqueue(run_id, create())
    shipped(spool, shipper)
    mlflow_run_id = spool.mlflow_run_id(run_id)
    rest.call("POST", "runs/delete", run_id=mlflow_run_id)
    spool.add_points(run_id, 1, points(0, 50))
    shipped(spool, shipper)
    assert "deleted" in spool.parked()[run_id]
    rest.call("POST", "runs/restore", run_id=mlflow_run_id)
    spool.unpark()
    shipper.wake()
    shipped(spool, shipper)
    assert rest.history(mlflow_run_id, "train/loss") == expected(50)


def test_a_lost_run_is_told_again(spool: Spool, shipper: Shipper, rest: Rest, run_id: str) -> None:
    spool.enqueue(run_id, create())
    spool.set_mlflow_run(run_id, "1", uuid.uuid4().hex)  # of a database that is no more
    spool.add_points(run_id, 1, points(0, 50))
    shipped(spool, shipper)
    assert rest.history(spool.mlflow_run_id(run_id), "train/loss") == expected(50)
    assert rest.run(spool.mlflow_run_id(run_id))["info"]["run_name"] == "shakespeare"


def test_a_deleted_experiment_is_restored(mlflow_server: MlflowServer, rest: Rest, run_id: str) -> None:
    sink = MlflowSink(mlflow_server.url)
    experiment_id = sink.ensure_experiment("trash")
    rest.call("POST", "experiments/delete", experiment_id=experiment_id)
    target = MlflowSink(mlflow_server.url).create(run_id, create("trash"))
    assert target.experiment_id == experiment_id
    assert sink.state(target) is TargetState.ACTIVE


def test_an_experiment_deleted_after_it_was_used_is_restored(
    mlflow_server: MlflowServer, rest: Rest, run_id: str, spool: Spool, shipper: Shipper
) -> None:
    spool.enqueue("first", create("trash-later"))
    shipped(spool, shipper)
    known = spool.mlflow_run("first")
    assert known is not None
    rest.call("POST", "experiments/delete", experiment_id=known[0])
    spool.enqueue(run_id, create("trash-later"))
    shipped(spool, shipper)
    assert spool.parked() == {}
    assert spool.mlflow_run_id(run_id) is not None


def test_a_server_that_is_away_or_another_one_is_unavailable(
    mlflow_server: MlflowServer, run_id: str
) -> None:
    with pytest.raises(SinkUnavailableError) as refused:
        MlflowSink(f"http://127.0.0.1:{free_port()}").create(run_id, create())
    assert refused.value.whole_server
    with pytest.raises(SinkUnavailableError) as elsewhere:
        MlflowSink(f"{mlflow_server.url}/not-mlflow").create(run_id, create())
    assert elsewhere.value.whole_server


def test_the_page_and_the_names_it_answers_to(
    mlflow_server: MlflowServer, spool: Spool, shipper: Shipper, run_id: str, rest: Rest
) -> None:
    spool.enqueue(run_id, create())
    shipped(spool, shipper)
    known = spool.mlflow_run(run_id)
    assert known is not None
    address, _, fragment = run_link(mlflow_server.url, *known).partition("#")
    page = httpx.get(address, trust_env=False)
    assert page.status_code == 200
    assert "<title>MLflow" in page.text
    assert fragment.split("?")[0] == f"/experiments/{known[0]}/runs/{rest.run(known[1])['info']['run_id']}"
    for host, status in (
        ("localhost", 200),
        ("[::1]:5000", 200),
        ("100.64.1.2:5000", 200),
        ("evil.example", 403),
    ):
        answer = httpx.get(
            f"{mlflow_server.url}/api/2.0/mlflow/experiments/search?max_results=1",
            headers={"Host": host},
            trust_env=False,
        )
        assert answer.status_code == status, host


def test_several_processes_initialise_one_database(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from orchestrator.cluster.mlflow_command import initialise;"
    argv = [sys.executable, "-c", f"{code} initialise(Path(sys.argv[1]))", str(tmp_path / "m")]
    children = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    names = {file.name for file in (tmp_path / "m").iterdir()}
    assert names == {"mlflow.db", "mlflow.lock", "mlflow.version", "artifacts"}
    before = os.stat(tmp_path / "m" / "mlflow.db").st_mtime_ns
    started = time.monotonic()
    initialise(tmp_path / "m")
    assert time.monotonic() - started < 3
    assert os.stat(tmp_path / "m" / "mlflow.db").st_mtime_ns == before
