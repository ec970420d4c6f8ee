"""What MLflow is told about a run, and when. Everything goes through the spool; nothing here waits."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.clock import Clock
from orchestrator.contract import DATASET_FILE
from orchestrator.domain.energy import KWH_J, in_words
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import CONSEQUENCES, RunState
from orchestrator.domain.sweeps import TrialRecord
from orchestrator.errors import StoreError
from orchestrator.messages_agent import CheckpointNote
from orchestrator.spec.models import RunSpec
from orchestrator.store.checkpoints import checkpoints
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import ObjectStore
from orchestrator.store.outbox import (
    AnyTask,
    CreateRun,
    LogArtifact,
    LogCheckpoint,
    LogDataset,
    SetDescription,
    SetStatus,
    SetTags,
)
from orchestrator.store.records import CheckpointRecord
from orchestrator.store.spool import Spool
from orchestrator.tracking.describe import AttemptRow, CheckpointRow, describe

log = logging.getLogger(__name__)

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""With libyaml, where PyYAML was built with it: a tenth of the time."""

_STATUS = {
    RunState.SUCCEEDED: "FINISHED",
    RunState.FAILED: "FAILED",
    RunState.CANCELLED: "KILLED",
}


class _Dataset(BaseModel):
    """The artifact in which a program describes its data."""

    name: str
    digest: str
    profile: dict[str, float | int | str] = {}


class Tracking:
    """Turns what happens to runs into tasks for the shipper. Does nothing where there is no MLflow."""

    def __init__(
        self, ledger: Ledger, spool: Spool, store: ObjectStore, clock: Clock, *, enabled: bool
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._store = store
        self._clock = clock
        self._enabled = enabled

    def run_created(self, run: RunRecord) -> None:
        """The MLflow run, with parameters, tags and the spec as artifacts. Repeating it changes nothing."""
        if not self._enabled:
            return
        with self._ledger.read() as ledger:
            trial = ledger.sweeps.trial_of(run.id)
        create = CreateRun(
            name=run.spec.name,
            experiment=run.spec.experiment,
            start_ms=_ms(run.created_at),
            user=run.user,
            source_name="orch submit",
            tags=_tags(run) | _trial_tags(trial),
            params=parameters(run.spec),
            parent=trial.sweep_id if trial else None,
            description=describe(_what(run.spec), [], [], run.state.value),
        )
        self._spool.enqueue(run.id, create, files=spec_files(run.spec, run.source))

    def attempt_started(self, run: RunRecord) -> None:
        """The run executes now."""
        self._tell(run, SetStatus(status="RUNNING", time_ms=_ms(self._clock.now())))

    def attempt_ended(self, run: RunRecord) -> None:
        """The run waits for its next attempt, or has ended."""
        if run.state in _STATUS:
            status = _STATUS[run.state]
            at = _ms(run.ended_at or self._clock.now())
            self._tell(run, SetStatus.model_validate({"status": status, "time_ms": at}))
        else:
            self._tell(run)

    def checkpoint(self, run: RunRecord, attempt: AttemptRecord, note: CheckpointNote) -> None:
        """A checkpoint was committed."""
        if not self._enabled:
            return
        task = LogCheckpoint(
            step=note.step,
            attempt=attempt.number,
            uri=note.uri,
            sha256=note.sha256,
            size=note.size,
            time_ms=_ms(note.at),
            metrics=note.metrics,
        )
        self._spool.enqueue(run.id, task)

    def artifact(self, run: RunRecord, path: str, file: Path) -> None:
        """A file that the program left for its users."""
        if not self._enabled:
            return
        self._spool.enqueue(run.id, LogArtifact(artifact_path=path, file=str(file)))

    def dataset(self, run: RunRecord, description: bytes) -> None:
        """The data that the run trains on, as its program describes it; nonsense is logged and left out."""
        if not self._enabled:
            return
        try:
            found = _Dataset.model_validate_json(description)
        except ValidationError as error:
            log.warning("run %s: its %s cannot be read: %s", run.id, DATASET_FILE, error)
            return
        task = LogDataset(name=found.name, digest=found.digest[:36], source=found.name, profile=found.profile)
        self._spool.enqueue(run.id, task)

    def _tell(self, run: RunRecord, *more: SetStatus) -> None:
        if not self._enabled:
            return
        with self._ledger.read() as ledger:
            attempts = ledger.attempts(run.id)
        rows = [_attempt_row(attempt) for attempt in attempts]
        text = describe(_what(run.spec), rows, self._saved(run.id), run.state.value)
        tags = {f"orch.attempt.{a.number}": _where(a) for a in attempts} | _energy_tags(run)
        tasks: list[AnyTask] = [
            SetDescription(text=text),
            SetTags(tags={**tags, "orch.state": run.state.value}),
        ]
        self._spool.enqueue(run.id, *tasks, *more)

    def _saved(self, run_id: str) -> list[CheckpointRow]:
        try:
            records = checkpoints(self._store, run_id)
        except StoreError as error:
            log.warning("run %s: checkpoints left out of its description: %s", run_id, error)
            return []
        return [
            CheckpointRow(
                step=record.step,
                attempt=record.attempt,
                at=record.at,
                size=record.size,
                metrics=", ".join(f"{key} {value:.4f}" for key, value in record.metrics.items()),
                uri=checkpoint_uri(self._store, record),
            )
            for record in records
            if not record.retired
        ]


def checkpoint_uri(store: ObjectStore, record: CheckpointRecord) -> str:
    """Where a checkpoint's files are."""
    return f"{store.uri.rstrip('/')}/{record.data}"


def _what(spec: RunSpec) -> str:
    if spec.command is not None:
        return f"`{' '.join(spec.command.argv)}`"
    assert spec.trainer is not None
    t = spec.trainer
    return (
        f"GPT with {t.n_layer} layers, {t.n_head} heads, width {t.n_embd}, context {t.block_size} "
        f"on {t.dataset}: {t.max_steps:,} steps of {t.batch_size} sequences."
    )


def _attempt_row(attempt: AttemptRecord) -> AttemptRow:
    return AttemptRow(
        number=attempt.number,
        node=attempt.node,
        pool=attempt.variant.pool,
        device=attempt.device_name or attempt.device or "",
        first_step=attempt.first_step,
        last_step=attempt.last_step,
        ended=CONSEQUENCES[attempt.reason].text if attempt.reason else "",
        energy=in_words(attempt.joules / KWH_J, attempt.energy_source) if attempt.energy_source else "",
    )


def parameters(spec: RunSpec) -> dict[str, str]:
    """What MLflow shows as parameters: the program's settings by their own names, the rest by their keys."""
    values: dict[str, Any] = {"placement": ", ".join(_placement(spec)), "priority": spec.priority}
    if spec.trainer is not None:
        values |= spec.trainer.model_dump(mode="json")
    if spec.command is not None:
        values["command"] = " ".join(spec.command.argv)
    if spec.resume_from:
        values["resume_from"] = spec.resume_from
    return {key: str(value) for key, value in values.items() if value is not None}


def spec_files(spec: BaseModel, source: str) -> dict[str, bytes]:
    """The artifacts that show a spec: as it was understood, and as its user wrote it where that is known."""
    resolved = yaml.dump(spec.model_dump(mode="json", exclude_none=True), Dumper=_DUMPER, sort_keys=False)
    files = {"spec/resolved.yaml": resolved.encode()}
    return {**files, "spec/as-written.yaml": source.encode()} if source else files


def _placement(spec: RunSpec) -> list[str]:
    return [f"{v.pool}({v.cpus} cpu, {v.gpus} gpu)" for v in spec.placement]


def _tags(run: RunRecord) -> dict[str, str]:
    return {"orch.run_id": run.id, "orch.spec_sha256": run.spec_hash, **run.spec.tags}


def _trial_tags(trial: TrialRecord | None) -> dict[str, str]:
    if trial is None:
        return {}
    return {"orch.sweep_id": trial.sweep_id, "orch.trial": str(trial.number), "orch.point": str(trial.point)}


def _energy_tags(run: RunRecord) -> dict[str, str]:
    """What the run has used until now; its metrics have the same once per attempt."""
    if run.energy_source is None:
        return {}
    tags = {
        "orch.energy_kwh": f"{run.joules_used / KWH_J:.6g}",
        "orch.energy_source": run.energy_source.value,
    }
    return tags if run.cost is None else {**tags, "orch.cost": f"{run.cost:.6g}"}


def _where(attempt: AttemptRecord) -> str:
    device = attempt.device_name or attempt.device or "?"
    return f"{attempt.node} ({device})"


def _ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)
