"""What travels between the client and the API about schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import Field, model_validator

from orchestrator.domain.schedules import CatchUp, FireState, Overlap, ScheduleState
from orchestrator.messages import Message
from orchestrator.spec.models import RunSpec
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.values import Name
from orchestrator.spec.window import CronText, TimeText, ZoneName


class ScheduleRequest(Message):
    """Accept a schedule. The same key is the same schedule."""

    key: str = Field(min_length=1, max_length=200)
    name: Name
    spec: RunSpec | None = None
    """What each fire submits as a run. Give this or `sweep`."""
    sweep: SweepSpec | None = None
    source: str = ""
    """The file's text as the user wrote it."""
    user: str = ""
    cron: CronText | None = None
    """When it fires, in `tz`. Give this or `at`."""
    at: datetime | None = None
    """The only time at which it fires; without an offset from UTC it is a local time in `tz`."""
    tz: ZoneName = "UTC"
    until: TimeText | None = None
    """What it creates executes from each fire's time of day until this one only."""
    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.LAST

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.spec is None) == (self.sweep is None):
            raise ValueError("expected a spec or a sweep")
        if (self.cron is None) == (self.at is None):
            raise ValueError("expected one of cron and at")
        base = self.sweep.base if self.sweep is not None else self.spec
        assert base is not None
        if self.cron is not None and base.deadline is not None:
            raise ValueError(
                "a deadline is one instant, which later fires would be past: use max_duration or a window"
            )
        if self.until is not None and base.window is not None:
            raise ValueError("the spec has a window of its own: leave out --until, or the spec's window")
        return self


class FireRequest(Message):
    """Fire now. The same key is the same fire."""

    key: str = Field(min_length=1, max_length=64)


class FireView(Message):
    """What became of a due time, or of several in a row that were missed."""

    schedule: str
    """Id of the schedule."""
    local: str
    """The due time in the schedule's time zone, with its offset from UTC."""
    due: datetime
    last: datetime
    """The last due time of several; else `due`."""
    count: int
    """How many due times it is about."""
    by_hand: bool
    state: FireState
    message: str
    """Why it waits, or why it created nothing."""
    run_id: str | None = None
    sweep_id: str | None = None
    work_state: str | None = None
    """The state of the run or sweep now."""
    decided_at: datetime


class ComingView(Message):
    """A due time that is still to come."""

    schedule: str
    """Id of the schedule."""
    name: str
    local: str
    """In the schedule's time zone, with its offset from UTC."""
    at: datetime
    opens: datetime | None = None
    """When its work may execute for the first time; None where nothing limits that, or it never may."""
    closes: datetime | None = None
    """When that ends."""


class ScheduleView(Message):
    """A schedule as a list shows it."""

    id: str
    name: str
    creates: str
    """`run` or `sweep`."""
    state: ScheduleState
    message: str = ""
    cron: str | None
    at: datetime | None
    tz: str
    window: str = ""
    """When its work may execute, in words; empty where nothing limits that."""
    overlap: Overlap
    catch_up: CatchUp
    next: ComingView | None = None
    last: FireView | None = None
    """The newest fire."""
    waiting: int = 0
    """Fires that wait for earlier work to end."""
    user: str = ""
    created_at: datetime
    ended_at: datetime | None = None


class ScheduleDetail(Message):
    """Everything about one schedule."""

    schedule: ScheduleView
    spec: RunSpec | None = None
    sweep: SweepSpec | None = None
    coming: list[ComingView] = Field(default_factory=list)
    fires: list[FireView] = Field(default_factory=list)
    """The newest ones, newest first."""
