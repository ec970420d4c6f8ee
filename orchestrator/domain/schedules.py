"""When a schedule creates work, and what becomes of each due time. Pure.

A due time is decided once: what names it is the schedule and the local time. Whatever a clock does and
whenever the controller is there, a due time that has a record gets no second one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import islice, takewhile

from orchestrator.domain.times import Cron, Fire, resolve
from orchestrator.spec.hours import zone
from orchestrator.spec.models import RunSpec
from orchestrator.spec.sweep import SweepSpec

GRACE_S = 300.0
"""A due time that is met within so many seconds was not missed."""
MOST = 100
"""Most due times that `catch_up: all` makes up for at once, and most fires that wait for earlier work."""
BATCH = 500
"""Due times that are decided at once."""
HORIZON = timedelta(days=366)
"""Due times that are longer ago are not looked at any more."""


class Overlap(StrEnum):
    """What a fire does where earlier work of its schedule has not ended."""

    SKIP = "skip"
    """Nothing: the earlier work goes on."""
    QUEUE = "queue"
    """It waits until the earlier work has ended."""
    REPLACE = "replace"
    """The earlier work is cancelled, which saves it; then it goes ahead."""


class CatchUp(StrEnum):
    """What is done about due times at which nobody was there."""

    NONE = "none"
    LAST = "last"
    """The newest of them is made up for, unless it was not missed."""
    ALL = "all"
    """Each of the newest :data:`MOST` is."""


class ScheduleState(StrEnum):
    """The life of a schedule. The last two never change again."""

    ACTIVE = "active"
    PAUSED = "paused"
    """Its user holds it: no due time counts. What has fired goes on."""
    ENDED = "ended"
    """It has no due time any more."""
    REMOVED = "removed"


class FireState(StrEnum):
    """What became of a due time. All but the first never change again."""

    WAITING = "waiting"
    """It is to create work, as soon as earlier work has ended."""
    CREATED = "created"
    SKIPPED = "skipped"
    """Because of other work, or because its schedule was removed."""
    MISSED = "missed"
    """Nobody was there in time."""
    FAILED = "failed"
    """Its work was refused."""


@dataclass(frozen=True)
class ScheduleRecord:
    """One rule that creates work: of a cron line, or of one instant."""

    id: str
    seq: int
    """Order of acceptance."""
    key: str
    name: str
    """Unique among schedules that are active or paused."""
    spec: RunSpec | SweepSpec
    source: str
    user: str
    cron: str | None
    at: datetime | None
    """The only due time, UTC; there is either this or `cron`."""
    tz: str
    """Time zone of the cron line, and in which due times are told."""
    overlap: Overlap
    catch_up: CatchUp
    state: ScheduleState
    created_at: datetime
    cursor: datetime
    """Due times up to this instant are decided, or do not count."""
    message: str = ""
    ended_at: datetime | None = None

    def fires(self, after: datetime) -> Iterator[Fire]:
        """Every due time strictly after an instant, in order."""
        if self.cron is not None:
            yield from _cron(self.cron, self.tz).fires(after)
        elif self.at is not None and self.at > after:
            yield Fire(self.at, self.local(self.at))

    def local(self, instant: datetime) -> str:
        """An instant in the schedule's time zone, with its offset from UTC."""
        return instant.astimezone(zone(self.tz)).isoformat(timespec="seconds")


@lru_cache(maxsize=1024)
def _cron(text: str, tz: str) -> Cron:
    return Cron.parse(text, tz)


@dataclass(frozen=True)
class FireRecord:
    """What became of one due time, or of several in a row that were missed together."""

    schedule_id: str
    local: str
    """What names it among the schedule's fires: its local time, or the key of a fire by hand."""
    due: datetime
    last: datetime
    """The last of several due times; else `due`."""
    state: FireState
    decided_at: datetime
    seq: int = 0
    """Order of decision."""
    count: int = 1
    """Due times that it stands for."""
    by_hand: bool = False
    message: str = ""
    run_id: str | None = None
    sweep_id: str | None = None

    @property
    def key(self) -> str:
        """The submit key of its work."""
        return f"schedule/{self.schedule_id}/{self.local}"


@dataclass(frozen=True)
class Ruling:
    """What a look at a schedule has come to."""

    schedule: ScheduleRecord
    fires: list[FireRecord]
    """New ones, in order."""
    dropped: list[FireRecord]
    """Those that waited and do not any more."""
    more: bool = False
    """Whether there are more due times to decide."""


def next_due(schedule: ScheduleRecord) -> datetime | None:
    """The first due time that is not decided; None where there is none, or none counts."""
    if schedule.state is not ScheduleState.ACTIVE:
        return None
    return next((fire.at for fire in schedule.fires(schedule.cursor)), None)


def coming(schedule: ScheduleRecord, now: datetime) -> Iterator[Fire]:
    """Due times after now at which it will fire, in order; none while it is paused."""
    if schedule.state is ScheduleState.ACTIVE:
        yield from schedule.fires(now)


def at_instant(at: datetime, tz: str) -> datetime:
    """The instant (UTC) of a time: without an offset it is a local time in the time zone."""
    return resolve(at, zone(tz)) if at.tzinfo is None else at.astimezone(UTC)


def decide(
    schedule: ScheduleRecord,
    now: datetime,
    known: Sequence[FireRecord],
    waiting: Sequence[FireRecord],
    busy: str,
) -> Ruling:
    """What becomes of the due times up to now, of which the first :data:`BATCH` are decided.

    `known` are the records of due times after the cursor that there are already, after a clock has gone back;
    `waiting` the fires that wait, oldest first; `busy` says which created work has not ended, in words.
    """
    if schedule.state is not ScheduleState.ACTIVE:
        return Ruling(schedule, [], [])
    begin = max(min(schedule.cursor, now), now - HORIZON)
    due = list(takewhile(lambda fire: fire.at <= now, islice(schedule.fires(begin), BATCH + MOST)))
    batch, more = due[:BATCH], len(due) > BATCH
    book = _Book(schedule, now, list(waiting), busy)
    cursor = begin
    for place, fire in enumerate(batch):
        if not _is_known(fire, known):
            book.meet(fire, len(due) - 1 - place, cursor)
        cursor = fire.at
    moved = replace(schedule, cursor=cursor)
    if not more and next_due(moved) is None:
        moved = replace(moved, state=ScheduleState.ENDED, message="it has no due time any more", ended_at=now)
    return Ruling(moved, book.fires, book.dropped, more)


def by_hand(
    schedule: ScheduleRecord, key: str, now: datetime, waiting: Sequence[FireRecord], busy: str
) -> Ruling:
    """A fire that its user asks for now. It minds earlier work like any other, whatever state the schedule is
    in; `key` names it."""
    book = _Book(schedule, now, list(waiting), busy)
    book.arrange(FireRecord(schedule.id, key, now, now, FireState.WAITING, now, by_hand=True))
    return Ruling(schedule, book.fires, book.dropped)


_MADE_UP_FOR = {CatchUp.NONE: 0, CatchUp.LAST: 1, CatchUp.ALL: MOST}
"""How many of the newest due times are made up for where they were missed."""


def _is_known(fire: Fire, known: Sequence[FireRecord]) -> bool:
    return any(one.due <= fire.at <= one.last for one in known if not one.by_hand)


@dataclass
class _Book:
    """Fires as they are decided one after the other."""

    schedule: ScheduleRecord
    now: datetime
    waiting: list[FireRecord]
    busy: str
    fires: list[FireRecord] = field(default_factory=list)
    dropped: list[FireRecord] = field(default_factory=list)

    def meet(self, fire: Fire, followers: int, previous: datetime) -> None:
        """Decide a due time that comes after `previous`, and after which `followers` more have passed."""
        record = FireRecord(self.schedule.id, fire.local, fire.at, fire.at, FireState.WAITING, self.now)
        late = (self.now - fire.at).total_seconds() > GRACE_S
        if late and followers >= _MADE_UP_FOR[self.schedule.catch_up]:
            self._miss(record, previous)
        else:
            self.arrange(record)

    def _miss(self, record: FireRecord, previous: datetime) -> None:
        """Note a missed due time, in one record with the one before it where that was missed, too."""
        text = "the controller was not running then, or its machine was asleep"
        before = self.fires[-1] if self.fires else None
        if before is not None and before.state is FireState.MISSED and before.last == previous:
            self.fires[-1] = replace(before, last=record.due, count=before.count + 1)
        else:
            self.fires.append(replace(record, state=FireState.MISSED, message=text))

    def arrange(self, record: FireRecord) -> None:
        """Let a fire mind the work before it."""
        overlap = self.schedule.overlap
        if overlap is Overlap.SKIP and (self.busy or self.waiting):
            self._skip(record, self.busy or f"the fire of {self.waiting[-1].local} has not ended")
        elif overlap is Overlap.QUEUE and len(self.waiting) >= MOST:
            self._skip(record, f"{MOST} fires wait already")
        else:
            if overlap is Overlap.REPLACE:
                self._clear(f"the fire of {record.local} took its place")
            self.fires.append(record)
            self.waiting.append(record)

    def _skip(self, record: FireRecord, why: str) -> None:
        self.fires.append(replace(record, state=FireState.SKIPPED, message=why))

    def _clear(self, why: str) -> None:
        """What waited, waits no more."""
        for one in self.waiting:
            gone = replace(one, state=FireState.SKIPPED, message=why)
            if one.seq:
                self.dropped.append(gone)
            else:
                self.fires[self.fires.index(one)] = gone
        self.waiting.clear()
