"""Links, the description, and what MLflow's failures mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import requests

from orchestrator.tracking.describe import AttemptRow, CheckpointRow, describe
from orchestrator.tracking.links import (
    artifact_link,
    charts_link,
    compare_link,
    experiment_link,
    metric_link,
    run_link,
    these_runs,
    trials_of,
)
from orchestrator.tracking.mlflow_errors import translated
from orchestrator.tracking.sink import SinkUnavailableError

BASE = "http://127.0.0.1:5000/"


def parts(link: str) -> tuple[str, list[tuple[str, str]]]:
    address, _, fragment = link.partition("#")
    assert address == BASE
    assert " " not in link
    assert '"' not in link
    split = urlsplit(fragment)
    return split.path, parse_qsl(split.query)


def test_run_and_experiment() -> None:
    assert parts(run_link(BASE, "3", "abc")) == (
        "/experiments/3/runs/abc",
        [("workflowType", "machine_learning")],
    )
    assert parts(artifact_link(BASE, "3", "abc", "report.html"))[0] == (
        "/experiments/3/runs/abc/artifacts/report.html"
    )
    assert parts(experiment_link(BASE, "3"))[0] == "/experiments/3/runs"


def test_compare_has_runs_first() -> None:
    path, query = parts(compare_link(BASE, ["1", "2"], ["a", "b"]))
    assert path == "/compare-runs"
    assert [name for name, _ in query] == ["runs", "experiments", "workflowType"]
    assert json.loads(query[0][1]) == ["a", "b"]
    assert json.loads(query[1][1]) == ["1", "2"]


def test_charts_filter_by_run() -> None:
    path, query = parts(charts_link(BASE, "7", these_runs(["a", "b"])))
    assert path == "/experiments/7/runs"
    assert dict(query) == {
        "workflowType": "machine_learning",
        "compareRunsMode": "CHART",
        "searchFilter": "attributes.run_id IN ('a', 'b')",
        "orderByKey": "metrics.`val/loss`",
        "orderByAsc": "true",
    }


def test_charts_of_a_sweep_do_not_grow_with_its_trials() -> None:
    _, query = parts(charts_link(BASE, "7", trials_of("abc")))
    assert dict(query)["searchFilter"] == "tags.`orch.sweep_id` = 'abc' AND tags.`orch.trial` LIKE '%'"


def test_metric_names_are_encoded() -> None:
    link = metric_link(BASE, ["1"], ["a"], "train/loss")
    path, query = parts(link)
    assert path == "/metric"
    assert json.loads(dict(query)["metric"]) == "train/loss"
    assert json.loads(dict(query)["plot_metric_keys"]) == ["train/loss"]
    assert 'metric="train/loss"' in unquote(link)


def test_description_shows_where_it_ran_and_what_it_saved() -> None:
    text = describe(
        "GPT with 4 layers",
        [
            AttemptRow(1, "laptop", "laptop", "AMD Zen 4", 0, 1200, "saved, to go on elsewhere", "3.20 Wh"),
            AttemptRow(2, "box", "gpu", "RTX | 4070", 1200, None, ""),
        ],
        [
            CheckpointRow(
                1200, 1, datetime(2026, 1, 2, 3, 4, tzinfo=UTC), 12_345_678, "val/loss 1.9", "file:///x"
            )
        ],
        "running",
    )
    assert text.startswith("GPT with 4 layers\n\n**running** · laptop to step 1,200\n")
    assert "| 1 | laptop | laptop | AMD Zen 4 | 0 to 1,200 | 3.20 Wh | saved, to go on elsewhere |" in text
    assert "| 2 | box | gpu | RTX \\| 4070 |  |  | still running |" in text
    assert "| 1,200 | 1 | 2026-01-02 03:04:00 UTC | 12.3 MB | val/loss 1.9 | `file:///x` |" in text


def test_long_descriptions_keep_the_newest_and_fit_mlflow() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        CheckpointRow(step, 1, at, 1, "val/loss 1.2345", "s3://bucket/" + "x" * 90) for step in range(500)
    ]
    attempts = [
        AttemptRow(n, "node", "pool", "NVIDIA " * 6, 0, n, "the machine was taken down") for n in range(99)
    ]
    text = describe("what", attempts, rows)
    assert "| 499 |" in text
    assert "| 479 |" not in text
    assert "(480 earlier rows are not shown)" in text
    assert len(text) < 8000


class MlflowLikeError(Exception):
    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.error_code = code
        self._status = status

    def get_http_status_code(self) -> int:
        return self._status


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowLikeError("QueuePool limit of size 5", "BAD_REQUEST", 400), "run"),
        (MlflowLikeError("x", "INTERNAL_ERROR", 500), "run"),
        (MlflowLikeError("x", "REQUEST_LIMIT_EXCEEDED", 429), "run"),
        (MlflowLikeError("x", "TEMPORARILY_UNAVAILABLE", 503), "run"),
        (MlflowLikeError("x", "INVALID_PARAMETER_VALUE", 400), "refused"),
        (MlflowLikeError("x", "RESOURCE_DOES_NOT_EXIST", 404), "refused"),
        (MlflowLikeError("x", "ENDPOINT_NOT_FOUND", 404), "server"),
        (MlflowLikeError("x", "PERMISSION_DENIED", 403), "server"),
        (caused(MlflowLikeError("x", "INTERNAL_ERROR", 500), requests.ConnectionError("refused")), "server"),
        (caused(MlflowLikeError("x", "INTERNAL_ERROR", 500), requests.Timeout("6 s")), "server"),
        (caused(MlflowLikeError("x", "INTERNAL_ERROR", 500), requests.exceptions.RetryError("503")), "run"),
        (requests.ConnectionError("reset"), "server"),
        (http_error(500), "run"),
        (http_error(404), "refused"),
        (http_error(401), "server"),
    ],
)
def test_what_failures_mean(error: Exception, expected: str) -> None:
    found = translated(error)
    if isinstance(found, SinkUnavailableError):
        assert expected == ("server" if found.whole_server else "run")
    else:
        assert expected == "refused"


def test_credentials_of_an_address_are_not_shown() -> None:
    error = requests.ConnectionError("cannot reach http://ada:hunter2@mlflow.lab:5000/api")
    assert translated(error).message == "cannot reach http://mlflow.lab:5000/api"
