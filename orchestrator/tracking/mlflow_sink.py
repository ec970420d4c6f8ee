"""The sink that is an MLflow server. The only module that imports mlflow, and only when a sink is made."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from orchestrator.contract import step_name
from orchestrator.errors import SetupError
from orchestrator.store import outbox
from orchestrator.store.outbox import AnyTask, CreateRun, tracking_key
from orchestrator.store.spool_schema import StoredPoint
from orchestrator.tracking.mlflow_errors import translated
from orchestrator.tracking.sink import SinkRefusedError, SinkUnavailableError, Target, TargetState

RUN_TAG = "orch.run_id"
"""Tag that ties an MLflow run to ours; creation looks for it first."""
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_UPLOAD_TIMEOUT_S = 20
_ENVIRONMENT = {
    # The shipper has its own patience: one try, and short, so that a hung server costs seconds.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    _TIMEOUT: "6",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_MAX_PARAM = 6000
_MAX_TAG = 8000
_MAX_PER_BATCH = 100
"""Parameters or tags per request."""
_CUT = " … (cut)"


class MlflowSink:
    """Writes to one MLflow server. Belongs to the thread that made it."""

    def __init__(self, tracking_uri: str) -> None:
        """Import mlflow (seconds) without talking to the server; SetupError where it is not installed."""
        os.environ.update(_ENVIRONMENT)
        _reach_directly(urlsplit(tracking_uri).hostname)
        try:
            import mlflow
            import mlflow.entities
            import mlflow.utils.credentials
            import mlflow.utils.rest_utils
        except ImportError as error:
            raise SetupError(
                "mlflow is not installed on the controller's machine",
                remedy="Install it with: pip install 'orch[server]'",
            ) from error
        self._mlflow: Any = mlflow
        self._uri = tracking_uri.rstrip("/")
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)

    # ------------------------------------------------------------------ runs

    def create(self, run_id: str, task: CreateRun) -> Target:
        """Create the run, or find the one that carries the tag."""
        with _translating():
            experiment_id = self.ensure_experiment(task.experiment)
            return self._find(run_id, experiment_id) or self._create(run_id, experiment_id, task)

    def ensure_experiment(self, name: str) -> str:
        """The id of the experiment of this name: found, restored from the trash, or created."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                self._client.create_experiment(name)
            except self._mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise SinkRefusedError(f"MLflow neither has nor creates the experiment {name}")
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def state(self, target: Target) -> TargetState:
        """Ask the server for the run."""
        try:
            with _translating():
                run = self._client.get_run(target.mlflow_run_id)
        except SinkRefusedError:
            return TargetState.MISSING
        return TargetState.ACTIVE if run.info.lifecycle_stage == "active" else TargetState.DELETED

    def _create(self, run_id: str, experiment_id: str, task: CreateRun) -> Target:
        tags = {**_tags(task), RUN_TAG: run_id, **self._parent(experiment_id, task)}
        self._client.create_run(experiment_id, start_time=task.start_ms, tags=tags, run_name=task.name)
        # A request that timed out may have been carried out late. All who look choose the same one.
        target = self._find(run_id, experiment_id)
        if target is None:
            raise SinkRefusedError(f"MLflow does not find the run {run_id} that it has just created")
        self._remove_twins(target)
        return target

    def _parent(self, experiment_id: str, task: CreateRun) -> dict[str, str]:
        """The tag that shows a run below another, which has to be there first."""
        if task.parent is None:
            return {}
        found = self._find(task.parent, experiment_id)
        if found is None:
            message = f"the MLflow run of {task.parent}, below which it belongs, is not there yet"
            raise SinkUnavailableError(message, whole_server=False)
        return {"mlflow.parentRunId": found.mlflow_run_id}

    def _find(self, run_id: str, experiment_id: str) -> Target | None:
        found = self._twins(run_id, experiment_id)
        return Target(run_id, experiment_id, min(found)) if found else None

    def _twins(self, run_id: str, experiment_id: str) -> list[str]:
        query = f"tags.`{RUN_TAG}` = '{run_id}'"
        return [str(run.info.run_id) for run in self._client.search_runs([experiment_id], query)]

    def _remove_twins(self, target: Target) -> None:
        for other in self._twins(target.run_id, target.experiment_id):
            if other != target.mlflow_run_id:
                self._client.delete_run(other)

    # ------------------------------------------------------------------ points and tasks

    def log_points(self, target: Target, points: Sequence[StoredPoint]) -> None:
        """One request with all points."""
        with _translating():
            self._client.log_batch(target.mlflow_run_id, metrics=self._metrics(points))

    def apply(self, target: Target, task: AnyTask, points: Sequence[StoredPoint] = ()) -> None:
        """Carry out any task."""
        run = target.mlflow_run_id
        with _translating():
            match task:
                case CreateRun():
                    self._set_tags(run, _tags(task))
                    self._log_params(run, task.params)
                case outbox.SetTags():
                    self._set_tags(run, task.tags)
                case outbox.SetParams():
                    self._log_params(run, task.params)
                case outbox.SetDescription():
                    self._set_tags(run, {"mlflow.note.content": task.text})
                case outbox.LogCheckpoint():
                    self._log_checkpoint(target, task, points)
                case outbox.LogArtifact():
                    self._log_artifact(run, task)
                case outbox.LogDataset():
                    self._log_dataset(run, task)
                case outbox.SetStatus():
                    self._set_status(target, task)

    def _log_params(self, run: str, params: Mapping[str, str]) -> None:
        acceptable = _acceptable(params, _MAX_PARAM)
        listed = [self._mlflow.entities.Param(key, value) for key, value in acceptable.items()]
        for first in range(0, len(listed), _MAX_PER_BATCH):
            self._client.log_batch(run, params=listed[first : first + _MAX_PER_BATCH])

    def _set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        acceptable = _acceptable(tags, _MAX_TAG)
        listed = [self._mlflow.entities.RunTag(key, value) for key, value in acceptable.items()]
        for first in range(0, len(listed), _MAX_PER_BATCH):
            self._client.log_batch(run, tags=listed[first : first + _MAX_PER_BATCH])

    def _log_checkpoint(
        self, target: Target, task: outbox.LogCheckpoint, points: Sequence[StoredPoint]
    ) -> None:
        run, name = target.mlflow_run_id, f"ckpt-{step_name(task.step).removeprefix('step-')}"
        query = f"name = '{name}' AND source_run_id = '{run}'"
        found = self._client.search_logged_models([target.experiment_id], query)
        tags = {
            "uri": task.uri,
            "sha256": task.sha256,
            "step": str(task.step),
            "attempt": str(task.attempt),
            "bytes": str(task.size),
        }
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                target.experiment_id, name=name, source_run_id=run, model_type="checkpoint", tags=tags
            )
        )
        if str(model.status) != "READY":
            self._client.finalize_logged_model(model.model_id, "READY")
        outputs = self._client.get_run(run).outputs
        if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            output = self._mlflow.entities.LoggedModelOutput(model.model_id, task.step)
            self._client.log_outputs(run, [output])
        if points:
            self._client.log_batch(run, metrics=self._metrics(points, model.model_id))

    def _log_artifact(self, run: str, task: outbox.LogArtifact) -> None:
        source, path = Path(task.file), PurePosixPath(task.artifact_path)
        if not source.is_file():
            raise SinkRefusedError(f"{source} is not there (any more)")
        folder = None if path.parent == PurePosixPath(".") else str(path.parent)
        # MLflow names an artifact after its file, and the spool's files are named otherwise.
        with tempfile.TemporaryDirectory() as temporary:
            named = Path(temporary) / path.name
            named.symlink_to(source)
            with _patience(_UPLOAD_TIMEOUT_S):
                try:
                    self._client.log_artifact(run, str(named), folder)
                except (self._mlflow.MlflowException, OSError) as error:
                    # A large file may take too long where everything else works: it must not stop the rest.
                    found = translated(error)
                    if isinstance(found, SinkUnavailableError):
                        raise SinkUnavailableError(found.message, whole_server=False) from error
                    raise found from error

    def _log_dataset(self, run: str, task: outbox.LogDataset) -> None:
        entities = self._mlflow.entities
        dataset = entities.Dataset(
            name=task.name,
            digest=task.digest[:36],
            source_type="external",
            source=json.dumps({"uri": task.source}),
            profile=json.dumps(task.profile) if task.profile else None,
        )
        tag = entities.InputTag("mlflow.data.context", task.context)
        self._client.log_inputs(run, [entities.DatasetInput(dataset, [tag])])

    def _set_status(self, target: Target, task: outbox.SetStatus) -> None:
        if task.final:
            self._client.set_terminated(target.mlflow_run_id, task.status, task.time_ms)
            self._remove_twins(target)
            return
        # The client never clears the end time of a run that goes on; the REST call with 0 does.
        endpoint = "/api/2.0/mlflow/runs/update"
        response = self._mlflow.utils.rest_utils.http_request(
            self._mlflow.utils.credentials.get_default_host_creds(self._uri),
            endpoint,
            "POST",
            json={"run_id": target.mlflow_run_id, "status": task.status, "end_time": 0},
        )
        self._mlflow.utils.rest_utils.verify_rest_response(response, endpoint)

    def _metrics(self, points: Sequence[StoredPoint], model_id: str | None = None) -> list[Any]:
        metric: Callable[..., Any] = self._mlflow.entities.Metric
        return [
            metric(point.key, point.value, point.time_ms, point.step, model_id=model_id) for point in points
        ]


def _tags(task: CreateRun) -> dict[str, str]:
    tags = {**task.tags, "mlflow.source.type": "JOB", "mlflow.source.name": task.source_name or "orch"}
    if task.user:
        tags["mlflow.user"] = task.user
    if task.description:
        tags["mlflow.note.content"] = task.description
    return _acceptable(tags, _MAX_TAG)


def _acceptable(values: Mapping[str, str], limit: int) -> dict[str, str]:
    """Names as MLflow takes them (the first of those that become equal stays), values cut with a mark."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found.setdefault(tracking_key(key), _cut(value, limit))
    return found


def _cut(value: str, limit: int) -> str:
    return value if len(value) <= limit else value[: limit - len(_CUT)] + _CUT


def _reach_directly(host: str | None) -> None:
    """Keep requests to this machine away from a proxy that the environment names."""
    if host not in ("localhost", "127.0.0.1", "::1"):
        return
    name = "no_proxy" if "no_proxy" in os.environ else "NO_PROXY"
    known = [entry for entry in os.environ.get(name, "").split(",") if entry]
    if host not in known:
        os.environ[name] = ",".join([*known, host])


@contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """MLflow reads the time limit of each request from the environment; only this thread makes requests."""
    before = os.environ[_TIMEOUT]
    os.environ[_TIMEOUT] = str(seconds)
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = before


@contextmanager
def _translating() -> Iterator[None]:
    import mlflow.exceptions
    import requests

    try:
        yield
    except (mlflow.exceptions.MlflowException, requests.exceptions.RequestException) as error:
        raise translated(error) from error
    except OSError as error:
        raise SinkUnavailableError(f"cannot read or stage a file: {error}", whole_server=False) from error
    except (TypeError, ValueError) as error:
        raise SinkRefusedError(f"{type(error).__name__}: {error}") from error
