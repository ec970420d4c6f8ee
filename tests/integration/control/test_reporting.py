"""Reports from a real ledger, spool, store and files. Sweeps run in the real controller, on paper."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.analysis.report import Report
from orchestrator.api.app import create_app
from orchestrator.client import Client
from orchestrator.control.reporting import REPORT_FILE, Reporting
from orchestrator.errors import NotFoundError, SetupError, SpecError, StoreUnavailableError
from orchestrator.messages import CheckpointView
from orchestrator.store.outbox import LogArtifact
from tests.integration.control.conftest import TOKEN
from tests.paper import PaperCluster
from tests.simulation.test_sweeps import asha, curve, finish, submit, sweep


@pytest.fixture
def cluster(tmp_path: Path) -> PaperCluster:
    return PaperCluster(tmp_path, curve, mlflow_url="http://127.0.0.1:5000")


def instead(reporting: Reporting, **sources: object) -> None:
    reporting._ask = dataclasses.replace(reporting._ask, **sources)  # type: ignore[arg-type]


def checkpoint(run: str, step: int, value: float | None, *, kept: bool = True) -> CheckpointView:
    return CheckpointView(
        run=run,
        step=step,
        attempt=1,
        node="gpu",
        device="cpu",
        at=datetime(2027, 3, 1, tzinfo=UTC),
        size=10,
        metrics={} if value is None else {"val/loss": value},
        uri=f"file:///x/{step}",
        kept=kept,
    )


def test_a_sweep_as_it_was(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    detail = finish(cluster, sweep_id)
    report = cluster.controller.reporting.sweep(sweep_id)
    assert report.title == "search"
    assert [entry.number for entry in report.entries] == [0, 1, 2, 3, 4, 5]
    assert report.best is not None
    best = report.entries[report.best]
    assert (best.number, best.value) == (detail.sweep.best_trial, detail.sweep.best_value)
    assert [(axis.path, axis.name, axis.log) for axis in report.axes] == [
        ("trainer.learning_rate", "learning_rate", True)
    ]
    for entry in report.entries:
        line = entry.curves["val/loss"]
        assert line.steps == (0, 50, 100, 150, 200, 250, 300)
        assert line.seconds[-1] == pytest.approx(300, abs=15)
        assert [one.number for one in entry.attempts] == [1]
        assert entry.seconds == pytest.approx(300, rel=0.1)
    page = cluster.controller.reporting.page(["search"])
    assert f"Trial {best.number} is best: val/loss {best.value:.4f} at step 300" in page


def test_rungs_and_machines_of_a_search_that_prunes(cluster: PaperCluster) -> None:
    finish(cluster, submit(cluster, asha()))
    report = cluster.controller.reporting.sweep("asha")
    assert {entry.state for entry in report.entries} == {"complete", "pruned"}
    nodes = {one.node for entry in report.entries for one in entry.attempts}
    assert nodes == {"laptop", "gpu"}
    page = cluster.controller.reporting.page(["asha"])
    assert "ASHA from step 50, factor 2" in page
    assert "saved, went on later" in page


def test_a_sweep_that_still_runs_has_a_page(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    assert "No trial has begun" in cluster.controller.reporting.page([sweep_id])
    cluster.run(120)
    report = cluster.controller.reporting.sweep(sweep_id)
    assert {entry.state for entry in report.entries} == {"open"}
    page = cluster.controller.reporting.page([sweep_id])
    assert "executes" in page
    assert "2 still open" in page


def test_several_trials_of_a_point_count_by_their_mean(cluster: PaperCluster) -> None:
    finish(cluster, submit(cluster, sweep(repeat=2, budget={"trials": 3})))
    report = cluster.controller.reporting.sweep("search")
    assert len(report.entries) == 6
    pairs = [report.entries[n : n + 2] for n in (0, 2, 4)]
    for one, other in pairs:
        assert one.mean == other.mean == pytest.approx(((one.value or 0) + (other.value or 0)) / 2)


def test_what_a_sweep_leaves_for_mlflow_is_its_newest_page(cluster: PaperCluster) -> None:
    sweep_id = submit(cluster, sweep())
    finish(cluster, sweep_id)
    for _ in range(2):
        cluster.controller.reporting.store(sweep_id)
    tasks = [one.task for one in cluster.controller.spool.tasks(sweep_id)]
    found = [task for task in tasks if isinstance(task, LogArtifact) and task.artifact_path == REPORT_FILE]
    assert len(found) == 1
    assert "is best: val/loss" in Path(found[0].file).read_text(encoding="utf-8")


def test_pages_of_a_sweep_in_mlflow(cluster: PaperCluster) -> None:
    """Few addresses, however many trials; the page about the sweep does not link itself."""
    sweep_id = submit(cluster, sweep(budget={"trials": 12}))
    spool = cluster.controller.spool
    spool.set_mlflow_run(sweep_id, "1", "own")
    assert "report" not in cluster.controller.sweep_views.detail(sweep_id).links
    for trial in finish(cluster, sweep_id).trials:
        spool.set_mlflow_run(trial.run_id, "1", f"trial{trial.number:02}")
    detail = cluster.controller.sweep_views.detail(sweep_id)
    assert list(detail.links) == ["run", "report", "charts", "compare"]
    assert "/runs/own/artifacts/report.html" in detail.links["report"]
    assert sweep_id in detail.links["charts"]
    assert "trial" not in detail.links["charts"].replace("orch.trial", "")
    assert detail.links["compare"].count("trial") == 10
    best = f"trial{detail.sweep.best_trial:02}"
    assert detail.links["compare"].index(best) == detail.links["compare"].index("trial")
    page = cluster.controller.reporting.page([sweep_id])
    assert page.count("MLflow: ") == 3
    assert "artifacts/report.html" not in page


def test_without_mlflow_nothing_is_left(tmp_path: Path) -> None:
    plain = PaperCluster(tmp_path, curve)
    sweep_id = submit(plain, sweep(budget={"trials": 1}))
    finish(plain, sweep_id)
    plain.controller.reporting.store(sweep_id)
    assert plain.controller.spool.tasks(sweep_id) == []


def test_importance_is_left_out_where_its_package_is_not_there(cluster: PaperCluster) -> None:
    def missing(trials: object, spec: object) -> dict[str, float]:
        raise SetupError("no such package")

    finish(cluster, submit(cluster, sweep()))
    instead(cluster.controller.reporting, importance=missing)
    assert cluster.controller.reporting.sweep("search").importance == {}


# ------------------------------------------------------------------ the best checkpoint


def ended(cluster: PaperCluster) -> Report:
    finish(cluster, submit(cluster, sweep(budget={"trials": 2})))
    return cluster.controller.reporting.sweep("search")


def test_the_best_checkpoint_is_the_best_of_those_that_are_kept(cluster: PaperCluster) -> None:
    run = ended(cluster).entries[0].run_id
    found = [checkpoint(run, 100, 1.2, kept=False), checkpoint(run, 150, 1.3), checkpoint(run, 300, 1.5)]
    instead(cluster.controller.reporting, checkpoints=lambda ref: found)
    kept = cluster.controller.reporting.sweep("search").kept
    assert kept is not None
    assert kept.checkpoint == found[1]
    instead(cluster.controller.reporting, checkpoints=lambda ref: [checkpoint(run, n, None) for n in (1, 2)])
    kept = cluster.controller.reporting.sweep("search").kept
    assert kept is not None
    assert kept.checkpoint is not None
    assert kept.checkpoint.step == 2


def test_a_store_that_does_not_answer_costs_only_that_part(cluster: PaperCluster) -> None:
    def away(ref: str) -> list[CheckpointView]:
        raise StoreUnavailableError("the store does not answer")

    ended(cluster)
    instead(cluster.controller.reporting, checkpoints=away)
    kept = cluster.controller.reporting.sweep("search").kept
    assert kept is not None
    assert kept.checkpoint is None
    assert "Best checkpoint" not in cluster.controller.reporting.page(["search"])


def test_the_sample_is_the_artifact_of_the_best_run(cluster: PaperCluster) -> None:
    report = ended(cluster)
    assert report.best is not None
    best = report.entries[report.best].run_id
    cluster.controller.service.save_artifact(best, 1, "sample.txt", b"ROMEO: <b>\xff</b>")
    page = cluster.controller.reporting.page(["search"])
    assert "ROMEO: &lt;b&gt;\ufffd&lt;/b&gt;" in page


# ------------------------------------------------------------------ runs, and the API


def test_runs_side_by_side(cluster: PaperCluster) -> None:
    detail = finish(cluster, submit(cluster, sweep(budget={"trials": 2})))
    refs = [trial.run_id for trial in detail.trials]
    report = cluster.controller.reporting.runs([*refs, refs[0]])
    assert [entry.run_id for entry in report.entries] == refs
    assert report.metrics == ("val/loss",)
    values = [trial.value for trial in detail.trials]
    assert [entry.value for entry in report.entries] == pytest.approx(values)
    assert report.best == values.index(min(v for v in values if v is not None))
    assert "learning_rate" in [axis.name for axis in report.axes]
    page = cluster.controller.reporting.page(refs)
    assert "Settings that differ" in page
    one = cluster.controller.reporting.page(refs[:1])
    assert "search-0, succeeded: 300 steps in" in one


def test_a_sweep_goes_before_a_run_of_its_name(cluster: PaperCluster) -> None:
    finish(cluster, submit(cluster, sweep("both-0", budget={"trials": 1}), "a"))
    finish(cluster, submit(cluster, sweep("both", budget={"trials": 1}), "b"))
    assert ">Sweep · " in cluster.controller.reporting.page(["both-0"])
    assert ">Run · " in cluster.controller.reporting.page(["both-0-0"])
    with pytest.raises(NotFoundError):
        cluster.controller.reporting.page(["nobody"])
    with pytest.raises(NotFoundError):
        cluster.controller.reporting.page(["both-0-0", "nobody"])


def test_the_client_gets_the_page(cluster: PaperCluster) -> None:
    finish(cluster, submit(cluster, sweep(budget={"trials": 1})))
    app = create_app(cluster.controller, TOKEN, "cluster-1")
    transport = TestClient(app)._transport  # without its life: nothing is started
    with Client("http://testserver", TOKEN, transport=transport) as client:
        page = client.report(["search"])
        assert page.startswith("<!doctype html>")
        assert "is best: val/loss" in page
        with pytest.raises(NotFoundError):
            client.report(["nobody"])
        with pytest.raises(SpecError):
            client.report([])
    answer = TestClient(app).get("/v1/report", params={"ref": "search"})
    assert answer.status_code == 401
