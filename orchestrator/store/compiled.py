"""Compiled steps that nodes share through the store, so that like machines compile one once.

======================  ===========================================================================
``compiled/KEY/*.tar``  the files of an entry, named by the SHA-256 of the archive
``compiled/KEY.json``   which of them counts: written last and create-only, so the first writer wins
======================  ===========================================================================

KEY is the trainer's name for everything that the programs depend on (docs/compiled.md). What is damaged is
wiped, and whoever compiles the step next puts it there anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import DamagedError, NotFoundError
from orchestrator.store.protocol import ObjectInfo, ObjectStore, Source, read_bytes
from orchestrator.store.records import Sha256

PREFIX: Final = "compiled/"
MOST: Final = 256 << 20
"""Bytes of an archive. One for a CPU has a few millions."""
LIFETIME: Final = timedelta(days=90)
"""After that an entry is garbage: few are for the version in use, and making one again takes a minute."""
_KEY: Final = re.compile(r"[0-9a-f]{32}")
_NOTE_MOST: Final = 1 << 16


class StepNote(BaseModel):
    """What ``compiled/KEY.json`` says."""

    model_config = ConfigDict(frozen=True)

    sha256: Sha256
    """Of the archive."""
    size: Annotated[int, Field(ge=1, le=MOST)]
    """Bytes of the archive."""
    at: AwareDatetime
    """When it was put there."""
    node: str = ""
    """Who has compiled it."""


def is_key(text: str) -> bool:
    """Whether this can be the name of a compiled step."""
    return _KEY.fullmatch(text) is not None


def find(store: ObjectStore, key: str) -> StepNote | None:
    """What the store has for a key. DamagedError where that cannot be read."""
    try:
        data = read_bytes(store, _note_key(key), _NOTE_MOST)
    except NotFoundError:
        return None
    try:
        return StepNote.model_validate_json(data)
    except ValidationError as error:
        raise DamagedError(f"{store.uri}: {_note_key(key)} is damaged") from error


def fetch(store: ObjectStore, key: str, note: StepNote, file: Path) -> None:
    """Write the archive to `file`, whole. DamagedError where it is not what the note says; OSError where
    `file` cannot be written.
    """
    digest, name = hashlib.sha256(), _archive_key(key, note)
    try:
        with file.open("wb") as out:
            for chunk in store.get(name, end=note.size + 1):
                digest.update(chunk)
                out.write(chunk)
    except NotFoundError as error:
        raise DamagedError(f"{store.uri}: {name} is missing") from error
    if digest.hexdigest() != note.sha256:
        raise DamagedError(f"{store.uri}: {name} is damaged: its SHA-256 is not {note.sha256[:16]}…")


def publish(store: ObjectStore, key: str, note: StepNote, archive: Source) -> bool:
    """Store an archive; False where somebody else has just stored this step, and then theirs stays."""
    store.put(_archive_key(key, note), archive)
    if store.put(_note_key(key), note.model_dump_json().encode() + b"\n", create_only=True):
        return True
    if _counts(store, key) != note.sha256:
        store.delete(_archive_key(key, note))
    return False


def wipe(store: ObjectStore, key: str, note: StepNote | None) -> None:
    """Remove an entry that cannot be used, so that the next one to compile it can store it."""
    store.delete(_note_key(key))
    if note is not None:
        store.delete(_archive_key(key, note))


def collect(store: ObjectStore, put_before: datetime, *, dry_run: bool = False) -> list[ObjectInfo]:
    """Remove what was put there before that instant, and archives that do not count; what that was.

    An archive may belong to somebody who is about to say that it counts. Then the entry has no archive, which
    is found out by whoever wants it, and it is made anew.
    """
    found = list(_garbage(store, put_before))
    if not dry_run:
        for info in found:
            store.delete(info.key)
    return found


def _garbage(store: ObjectStore, put_before: datetime) -> Iterator[ObjectInfo]:
    kept: set[str] = set()
    archives: list[ObjectInfo] = []
    for info in store.list(PREFIX):
        key, _, ending = info.key.removeprefix(PREFIX).partition(".")
        if ending == "json" and is_key(key):
            note = _readable(store, key)
            if note is None or note.at < put_before:
                yield info
            else:
                kept.add(_archive_key(key, note))
        elif info.key.endswith(".tar"):
            archives.append(info)
    yield from (info for info in archives if info.key not in kept)


def _readable(store: ObjectStore, key: str) -> StepNote | None:
    try:
        return find(store, key)
    except DamagedError:
        return None


def _counts(store: ObjectStore, key: str) -> str | None:
    note = _readable(store, key)
    return note.sha256 if note else None


def _note_key(key: str) -> str:
    return f"{PREFIX}{key}.json"


def _archive_key(key: str, note: StepNote) -> str:
    return f"{PREFIX}{key}/{note.sha256}.tar"
