"""What waits to be told to MLflow, one frozen model per kind of task.

Every task has a :meth:`~OutboxTask.dedupe_key`: a run holds at most one task per key. Where
:attr:`~OutboxTask.newest_wins` is set a later task replaces an earlier one of the same key and goes to the
end of the run's queue; elsewhere the first one stays and later ones are ignored.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MAX_KEY_CHARACTERS = 250
_UNUSUAL = re.compile(r"[^\w.\-:/ ]")


def tracking_key(key: str) -> str:
    """The name as MLflow accepts it: letters, digits and `_-. :/`, a plain relative path, at most 250 long.

    Applied where a measurement enters, so that names which become equal are one series from the beginning.
    """
    parts = [part for part in _UNUSUAL.sub("_", key).split("/") if part not in ("", ".")]
    cleaned = "/".join("_" if part == ".." else part for part in parts)
    return cleaned[:MAX_KEY_CHARACTERS].rstrip("/") or "_"


class OutboxTask(BaseModel):
    """One thing to tell MLflow about a run. Repeating it changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    newest_wins: ClassVar[bool] = True

    def dedupe_key(self) -> str:
        """Identity of the task within its run."""
        raise NotImplementedError

    def after(self, earlier: OutboxTask) -> Self:
        """This task as it replaces an earlier one of the same key."""
        return self


class CreateRun(OutboxTask):
    """Create the MLflow run, or find the one that carries this run's id as its tag `orch.run_id`."""

    newest_wins: ClassVar[bool] = False

    kind: Literal["create"] = "create"
    name: str
    experiment: str
    start_ms: int
    """Unix milliseconds."""
    user: str = ""
    source_name: str = ""
    """Shown in MLflow's Source column, with type JOB."""
    tags: dict[str, str] = Field(default_factory=dict)
    params: dict[str, str] = Field(default_factory=dict)
    description: str = ""
    """Markdown."""
    parent: str | None = None
    """The run of ours, in the same experiment, below which it is shown."""

    def dedupe_key(self) -> str:
        """A run is created once."""
        return "create"


class SetTags(OutboxTask):
    """Set tags; others stay. The newest value of each name wins, in whatever order tasks are sent."""

    kind: Literal["tags"] = "tags"
    tags: dict[str, str]

    def dedupe_key(self) -> str:
        """A run has one set of tags."""
        return "tags"

    def after(self, earlier: OutboxTask) -> Self:
        """All tags of both, so that one task carries them and none can overtake another."""
        assert isinstance(earlier, SetTags)
        return self.model_copy(update={"tags": {**earlier.tags, **self.tags}})


class SetParams(OutboxTask):
    """Log parameters. MLflow never changes the value of one that it has; asking for it fails the task."""

    newest_wins: ClassVar[bool] = False

    kind: Literal["params"] = "params"
    params: dict[str, str]

    def dedupe_key(self) -> str:
        """The set of names."""
        return "params:" + ",".join(sorted(self.params))


class SetDescription(OutboxTask):
    """Replace the run's description (Markdown)."""

    kind: Literal["description"] = "description"
    text: str

    def dedupe_key(self) -> str:
        """A run has one description."""
        return "description"


class LogCheckpoint(OutboxTask):
    """A committed checkpoint, as a logged model that refers to the object store; no data is copied."""

    newest_wins: ClassVar[bool] = False

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    attempt: int
    uri: str
    sha256: str
    size: int
    """Bytes."""
    time_ms: int
    """Unix milliseconds of the commit."""
    metrics: dict[str, float] = Field(default_factory=dict)

    def dedupe_key(self) -> str:
        """At most one checkpoint counts per step of a run."""
        return f"checkpoint:{self.step}"


class LogArtifact(OutboxTask):
    """A local file of the controller to keep as `artifact_path` of the run."""

    kind: Literal["artifact"] = "artifact"
    artifact_path: str
    """Relative POSIX path, such as `samples/step-100.txt`."""
    file: str
    """Absolute path of the file to send."""
    owned: bool = False
    """True where the file lies in the spool's own folder and is removed once sent."""

    def dedupe_key(self) -> str:
        """The newest file of a path wins."""
        return f"artifact:{self.artifact_path}"


class LogDataset(OutboxTask):
    """The data that the run trains on, for MLflow's Dataset column."""

    newest_wins: ClassVar[bool] = False

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    """At most 36 characters."""
    context: str = "train"
    source: str = ""
    """Where the data came from: an address or a path."""
    profile: dict[str, float | int | str] = Field(default_factory=dict)

    def dedupe_key(self) -> str:
        """Same name and digest, same data."""
        return f"dataset:{self.name}:{self.digest}:{self.context}"


class SetStatus(OutboxTask):
    """What MLflow shows the run as. A final status is sent after the run's points; RUNNING reopens it."""

    kind: Literal["status"] = "status"
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    time_ms: int
    """Unix milliseconds: the end time of a final status."""

    @property
    def final(self) -> bool:
        """True where the run has ended."""
        return self.status != "RUNNING"

    def dedupe_key(self) -> str:
        """A run has one status."""
        return "status"


AnyTask = Annotated[
    CreateRun | SetTags | SetParams | SetDescription | LogCheckpoint | LogArtifact | LogDataset | SetStatus,
    Field(discriminator="kind"),
]
TASK: TypeAdapter[AnyTask] = TypeAdapter(AnyTask)
"""Reads a task from its JSON."""
