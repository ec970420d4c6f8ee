"""The log of a run: create-only numbered slots in shared storage, the truth about who owns it and what it
has.

Slots are filled in order without gaps: a record goes to the first empty slot, after all before it were
read. So whoever creates a slot knows everything that precedes it, and taking the *next* slot with a FENCE
shuts out every earlier attempt, wherever it runs and however late it wakes up: its own next record meets a
slot that is taken.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import DamagedError, FencedError, NotFoundError, StoreError, StoreUnavailableError
from orchestrator.store.protocol import ObjectStore, read_bytes
from orchestrator.store.records import (
    CheckpointRecord,
    Discard,
    Fence,
    Record,
    Retire,
    Tag,
    check_run_id,
    decode,
    encode,
    instant,
    log_key,
)

__all__ = [
    "CheckpointRecord",
    "Claim",
    "Discard",
    "Fence",
    "History",
    "Record",
    "Retire",
    "RunLog",
    "Tag",
    "Unreadable",
    "fold",
]

_LOST_RACES: Final = 100
"""Slots in a row that others may take before an append gives up; each means that somebody made progress."""


_READS: Final = 2
"""A record counts as damaged where this many reads in a row found it so."""

R = TypeVar("R", Fence, CheckpointRecord, Retire)
N = TypeVar("N", Tag, Discard)


@dataclass(frozen=True)
class Unreadable:
    """A slot whose record is damaged."""

    slot: int
    why: str


class RunLog:
    """The log of one run. Records are immutable, so each slot is read once. Can be used from several
    threads.
    """

    def __init__(self, store: ObjectStore, run_id: str, clock: Clock = SYSTEM) -> None:
        self.store = store
        self.run_id = check_run_id(run_id)
        self._clock = clock
        self._slots: list[Record | Unreadable] = []
        self._history = History()
        self._unanswered: set[uuid.UUID] = set()
        """Fences that were sent and have led to no claim."""
        self._lock = threading.Lock()

    def slots(self) -> list[Record | Unreadable]:
        """Everything in the log now, in order; element 0 is slot 1."""
        with self._lock:
            while (found := self._read(len(self._slots) + 1)) is not None:
                self._slots.append(found)
            return list(self._slots)

    def history(self) -> History:
        """What the log says now."""
        slots = self.slots()
        with self._lock:
            if self._history.last_slot < len(slots):
                self._history = fold(slots)
            return self._history

    def records(self) -> list[Record]:
        """The readable records in the log now, in order."""
        return [slot for slot in self.slots() if not isinstance(slot, Unreadable)]

    def unreadable(self) -> list[Unreadable]:
        """The slots whose records are damaged."""
        return [slot for slot in self.slots() if isinstance(slot, Unreadable)]

    def claim(self, attempt: int, *, node: str) -> Claim:
        """Take the run for an attempt; from then on nothing of an earlier one can be committed.

        FencedError where the log has anything of this attempt or a later one already: an attempt is claimed
        once. After StoreUnavailableError ask the same object again: it knows its own fence if that arrived.
        """
        for _ in range(_LOST_RACES):
            history = self.history()
            fence = history.fence
            if fence is not None and fence.attempt == attempt and fence.id in self._unanswered:
                return self._claimed(fence)
            if history.owner >= attempt:
                raise FencedError(
                    f"run {self.run_id} belongs to attempt {history.owner}; attempt {attempt} cannot take it"
                )
            fence = Fence(**self.stamp(history.last_slot + 1, attempt), node=node)
            self._unanswered.add(fence.id)
            if self.create(fence):
                return self._claimed(fence)
        raise self.contended()

    def note(self, make: Callable[[dict[str, Any], History], N]) -> N:
        """Add a record that anybody may write, in the name of the attempt that owns the run.

        `make` gets the fields that every record has and what the log says before it; it is called again
        where another record is faster. NotFoundError where nobody has claimed the run yet.
        """
        for _ in range(_LOST_RACES):
            history = self.history()
            if not history.owner:
                raise NotFoundError(f"run {self.run_id} has no checkpoints")
            record = make(self.stamp(history.last_slot + 1, history.owner), history)
            if self.create(record):
                return record
        raise self.contended()

    def _claimed(self, fence: Fence) -> Claim:
        self._unanswered.discard(fence.id)
        return Claim(self, fence)

    def create(self, record: Record) -> bool:
        """Fill a slot; False where another record has it. Durable when this returns.

        An error or a refusal of the store is no answer, for it may have come after the write: the slot is
        read again, and the record's id decides.
        """
        key, data = log_key(self.run_id, record.slot), encode(record)
        try:
            if self.store.put(key, data, create_only=True):
                return True
        except StoreError:
            if not self._holds(record):
                raise
            # Returns once the record that is there is durable, or raises again.
            self.store.put(key, data, create_only=True)
            return True
        return self._holds(record)

    def _holds(self, record: Record) -> bool:
        found = self._read(record.slot)
        return not isinstance(found, Unreadable) and found is not None and found.id == record.id

    def _read(self, slot: int) -> Record | Unreadable | None:
        why = ""
        for _ in range(_READS):
            try:
                data = read_bytes(self.store, log_key(self.run_id, slot))
            except NotFoundError:
                return None
            try:
                return decode(data, self.run_id, slot)
            except DamagedError as error:
                why = error.message
        return Unreadable(slot, why)

    def stamp(self, slot: int, attempt: int) -> dict[str, Any]:
        """The fields that every new record has."""
        at = instant(self._clock.now())
        return {"run": self.run_id, "slot": slot, "id": uuid.uuid4(), "attempt": attempt, "at": at}

    def contended(self) -> StoreError:
        """What to say where others keep taking the next slot."""
        return StoreUnavailableError(
            f"run {self.run_id}: {_LOST_RACES} records in a row went to somebody else",
            remedy="Look for a second controller that works on the same store.",
        )


class Claim:
    """The right of one attempt to write to the log, until a newer attempt takes it."""

    def __init__(self, log: RunLog, fence: Fence) -> None:
        self.log = log
        self.fence = fence
        self.attempt = fence.attempt
        self.run_id = fence.run

    def check(self) -> None:
        """FencedError where a newer attempt has taken the run. Reads only slots that are new."""
        self.history()

    def append(self, make: Callable[[dict[str, Any]], R]) -> R:
        """Add a record; `make` gets the fields that every record has. FencedError where the run is taken.

        After FencedError nothing was written. After StoreUnavailableError that is unknown.
        """
        record = self.append_unless(lambda stamp, history: make(stamp))
        assert record is not None
        return record

    def append_unless(self, make: Callable[[dict[str, Any], History], R | None]) -> R | None:
        """As `append`; `make` also gets what the log says before the record, and may return None for none.

        It is called again where another record was faster.
        """
        for _ in range(_LOST_RACES):
            history = self.history()
            record = make(self.log.stamp(history.last_slot + 1, self.attempt), history)
            if record is None or self.log.create(record):
                return record
        raise self.log.contended()

    def history(self) -> History:
        """What the log says now. FencedError where the run is taken."""
        history = self.log.history()
        if history.owner != self.attempt:
            raise FencedError(
                f"attempt {history.owner} has taken run {self.run_id} from attempt {self.attempt}"
            )
        for slot in history.unreadable:
            if slot.slot > self.fence.slot:
                # It may be the fence of a newer attempt. Ending is safe, going on is not.
                raise FencedError(
                    f"run {self.run_id}: log record {slot.slot} is damaged ({slot.why}), so attempt "
                    f"{self.attempt} cannot tell whether it still owns the run",
                )
        return history


@dataclass(frozen=True)
class History:
    """What a log says."""

    owner: int = 0
    """The highest attempt; 0 where nobody has claimed the run."""
    fence: Fence | None = None
    """The owner's fence; None where its record is damaged."""
    last_slot: int = 0
    checkpoints: tuple[CheckpointRecord, ...] = ()
    """Those that counted when they were written, in the order of the log; `retired` where they do not any
    more.
    """
    unreadable: tuple[Unreadable, ...] = field(default=())
    discarded: frozenset[str] = frozenset()
    """Key prefixes of data that can be no checkpoint's any more."""

    @property
    def live(self) -> list[CheckpointRecord]:
        """Checkpoints that count, in the order of the log, the newest last; at most one per step."""
        return [checkpoint for checkpoint in self.checkpoints if not checkpoint.retired]

    def find(self, step: int) -> CheckpointRecord | None:
        """The checkpoint that counts for a step."""
        return next((checkpoint for checkpoint in self.live if checkpoint.step == step), None)

    def tagged(self, name: str) -> CheckpointRecord | None:
        """The checkpoint that has this tag."""
        return next((checkpoint for checkpoint in self.live if name in checkpoint.tags), None)

    def named(self, word: str) -> CheckpointRecord:
        """The checkpoint of a step or with a tag, as people write it after `@`. NotFoundError says what there
        is instead.
        """
        found = self.find(int(word)) if word.isdecimal() else self.tagged(word)
        if found is None:
            steps = [f"{c.step} ({', '.join(c.tags)})" if c.tags else str(c.step) for c in self.live]
            what = f"checkpoint of step {word}" if word.isdecimal() else f"checkpoint with the tag {word!r}"
            raise NotFoundError(f"there is no {what}", remedy=f"it has: {', '.join(steps) or 'none'}")
        return found


def fold(slots: list[Record | Unreadable]) -> History:
    """What the log says, computed from its slots in order.

    The highest attempt so far owns the log, and what an earlier one wrote after it does not count (the
    slots make that impossible; this is the second lock on the door). Of several checkpoints of one step the
    first counts, until it is retired. One whose data was discarded before it does not count. A name is the
    last tag's that gave it to a checkpoint which counted then.
    """
    owner = 0
    fence: Fence | None = None
    found: list[CheckpointRecord] = []
    retired: dict[uuid.UUID, datetime] = {}
    live: dict[int, uuid.UUID] = {}
    tags: dict[str, uuid.UUID] = {}
    discarded: set[str] = set()
    for record in slots:
        if isinstance(record, Unreadable) or record.attempt < owner:
            continue
        if record.attempt > owner:
            owner, fence = record.attempt, record if isinstance(record, Fence) else None
        if isinstance(record, CheckpointRecord):
            if record.step not in live and record.data not in discarded:
                found.append(record)
                live[record.step] = record.id
        elif isinstance(record, Retire):
            retired.update((id_, record.at) for id_ in record.checkpoints)
            live = {step: id_ for step, id_ in live.items() if id_ not in retired}
            tags = {name: id_ for name, id_ in tags.items() if id_ not in retired}
        elif isinstance(record, Tag):
            tags.pop(record.name, None)
            if record.checkpoint is not None and record.checkpoint in live.values():
                tags[record.name] = record.checkpoint
        elif isinstance(record, Discard):
            # What a record refers to already stays its own.
            discarded.update(set(record.data) - {checkpoint.data for checkpoint in found})
    return History(
        owner=owner,
        fence=fence,
        last_slot=len(slots),
        checkpoints=tuple(_marked(checkpoint, retired, tags) for checkpoint in found),
        unreadable=tuple(slot for slot in slots if isinstance(slot, Unreadable)),
        discarded=frozenset(discarded),
    )


def _marked(
    record: CheckpointRecord, retired: dict[uuid.UUID, datetime], tags: dict[str, uuid.UUID]
) -> CheckpointRecord:
    names = tuple(sorted(name for name, id_ in tags.items() if id_ == record.id))
    at = retired.get(record.id)
    if at is None and not names:
        return record
    return record.model_copy(update={"retired": at is not None, "retired_at": at, "tags": names})
