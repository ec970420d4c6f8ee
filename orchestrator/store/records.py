"""The records of a run's log, and how they look in storage.

A record is one JSON object with a version and, as its last key, the SHA-256 of everything before it: a
flipped bit in a step number would otherwise pass for a record.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, Self
from urllib.parse import quote
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from orchestrator.errors import DamagedError, StoreError
from orchestrator.store.protocol import check_key

VERSION: Final = 2
_READABLE: Final = (1, 2)
"""Version 2 has tags, discards, shared files and versions of software."""
MAX_SLOT: Final = 99_999_999
_TAIL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n')
_TAIL_SIZE: Final = len(b',"sha256":""}\n') + 64
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


def _relative(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or len(path) > 1024:
        raise ValueError(f"{path!r} is not a relative path without '.' and '..'")
    return path


def _key(value: str) -> str:
    try:
        return check_key(value)
    except StoreError as error:
        raise ValueError(error.message) from error


def _tag_name(value: str) -> str:
    return check_tag(value)


Key = Annotated[str, AfterValidator(_key)]
TagName = Annotated[str, AfterValidator(_tag_name)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Frozen):
    """One file of a checkpoint; `path` below its directory, with `/` between names."""

    path: Annotated[str, AfterValidator(_relative)]
    size: Size
    sha256: Sha256
    key: Key | None = None
    """Where an earlier checkpoint of the run has put these bytes; None: they are among this one's data."""


class PointsRef(_Frozen):
    """The object with the metric points that were measured since the checkpoint before."""

    key: Key
    size: Size
    sha256: Sha256


class Parent(_Frozen):
    """The checkpoint that an attempt went on from; it may be another run's."""

    run: str
    step: int
    id: UUID


class _Record(_Frozen):
    version: Literal[1, 2] = 2
    run: str
    slot: int = Field(ge=1, le=MAX_SLOT)
    id: UUID
    attempt: int = Field(ge=1)
    """Launch of the run that wrote this; the highest one in the log owns the run."""
    at: AwareDatetime
    """Instant on the writer's clock; nothing depends on it."""
    node: str = ""


class Fence(_Record):
    """An attempt has taken the run: nothing of an earlier attempt can follow."""

    kind: Literal["fence"] = "fence"


class CheckpointRecord(_Record):
    """A committed checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int = Field(ge=0)
    data: Key
    """Key prefix of the files, without a slash at the end."""
    files: tuple[FileEntry, ...] = Field(min_length=1)
    metrics: dict[str, float] = Field(default_factory=dict)
    device: str = ""
    points: PointsRef | None = None
    parent: Parent | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Name -> version of the software that wrote it."""
    retired: bool = Field(default=False, exclude=True)
    """True where a later record says that the data may be gone. Not stored: the fold of the log sets it."""
    retired_at: AwareDatetime | None = Field(default=None, exclude=True)
    """When that was. Not stored either."""
    tags: tuple[str, ...] = Field(default=(), exclude=True)
    """Names that people have given it, sorted. Not stored either."""

    @model_validator(mode="after")
    def _at_home(self) -> Self:
        if not self.data.startswith(f"{data_root(self.run)}{self.attempt}/"):
            raise ValueError(f"{self.data} is not among the data of attempt {self.attempt}")
        names = {file.path for file in self.files}
        folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
        if len(names) != len(self.files) or names & folders:
            raise ValueError("two files have one path")
        for file in self.files:
            if file.key is not None and not file.key.startswith(data_root(self.run)):
                raise ValueError(f"{file.key} is not among the data of run {self.run}")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """Digest of paths and contents, the same for two checkpoints with the same files."""
        lines = sorted(f"{file.sha256} {file.path}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def key(self, file: FileEntry) -> str:
        """Where the bytes of one of the files are."""
        return file.key or data_key(self.data, file.path)


class Retire(_Record):
    """Checkpoints that do not count any more; their data may be deleted."""

    kind: Literal["retire"] = "retire"
    checkpoints: tuple[UUID, ...] = Field(min_length=1)
    why: str = ""


class Tag(_Record):
    """A name for a checkpoint, which retention then keeps; the name leaves the checkpoint that had it before.

    Anybody may write one, by the number of the attempt that owns the run.
    """

    kind: Literal["tag"] = "tag"
    name: TagName
    checkpoint: UUID | None = None
    """None takes the name away."""


class Discard(_Record):
    """Data that will never be a checkpoint's: a record after this one that refers to it does not count.

    Anybody may write one, by the number of the attempt that owns the run.
    """

    kind: Literal["discard"] = "discard"
    data: tuple[Key, ...] = Field(min_length=1)
    """Key prefixes as in :attr:`CheckpointRecord.data`."""


Record = Fence | CheckpointRecord | Retire | Tag | Discard
_ADAPTER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
_ANY: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


def encode(record: Record) -> bytes:
    """The bytes of a record, one line."""
    body = record.model_dump_json().encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"sha256":"{digest}"}}\n'.encode()


def decode(data: bytes, run: str, slot: int) -> Record:
    """The record in a slot; DamagedError where it is not whole or belongs elsewhere."""
    where = f"log record {slot} of run {run}"
    tail = _TAIL.fullmatch(data[-_TAIL_SIZE:])
    body = data[:-_TAIL_SIZE] + b"}"
    if tail is None or hashlib.sha256(body).hexdigest().encode() != tail[1]:
        raise DamagedError(f"{where} does not match its SHA-256")
    try:
        version = _ANY.validate_json(body).get("version")
        if version not in _READABLE:
            raise StoreError(
                f"{where} has format version {version}; this program reads versions up to {VERSION}",
                remedy="Install the version of orch here that the other machines have.",
            )
        record = _ADAPTER.validate_json(body)
    except ValidationError as error:
        raise DamagedError(f"{where} is not a valid record: {error}") from error
    if (record.run, record.slot) != (run, slot):
        raise DamagedError(f"{where} holds record {record.slot} of run {record.run}")
    return record


def check_run_id(run_id: str) -> str:
    """The run id, or StoreError where it cannot be part of a key."""
    if not _RUN_ID.fullmatch(run_id):
        raise StoreError(
            f"{run_id[:200]!r} cannot be a run id", remedy="Use letters, digits, '.', '_' and '-'."
        )
    return run_id


def import_id(name: str) -> str:
    """The id, as a run's, below which something that was brought in is stored."""
    return f"import.{name}"


def check_tag(name: str) -> str:
    """The name of a tag, or ValueError: a letter first, then letters, digits, `.`, `_` and `-`."""
    if not _TAG.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} cannot be a tag: begin with a letter, go on with letters, digits, '.', '_', '-'"
        )
    return name


def log_key(run: str, slot: int) -> str:
    """Where a record is."""
    return f"runs/{run}/log/{slot:08d}.json"


def data_root(run: str) -> str:
    """Prefix of the data of all checkpoints of a run, with a slash at the end."""
    return f"runs/{run}/data/"


def data_prefix(run: str, attempt: int, step: int, token: UUID) -> str:
    """Where the files of one checkpoint go."""
    return f"{data_root(run)}{attempt}/{step}-{token}"


def points_root(run: str) -> str:
    """Prefix of the points of all checkpoints of a run, with a slash at the end."""
    return f"runs/{run}/points/"


def points_key(run: str, attempt: int, step: int, token: UUID) -> str:
    """Where the points of one checkpoint go."""
    return f"{points_root(run)}{attempt}-{step}-{token}.jsonl"


def data_key(prefix: str, path: str) -> str:
    """Key of a file; characters that keys cannot have are percent-encoded."""
    return check_key(f"{prefix}/{quote(PurePosixPath(path).as_posix(), safe='/~=+@,')}")


def instant(at: datetime) -> datetime:
    """The instant as records keep it, in whole milliseconds."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
