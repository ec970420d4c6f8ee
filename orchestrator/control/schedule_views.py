"""Schedules and fires as clients see them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.domain.schedule_window import window_of
from orchestrator.domain.schedules import FireRecord, ScheduleRecord
from orchestrator.domain.times import Fire
from orchestrator.domain.windows import closes_at, first_open
from orchestrator.messages_schedules import ComingView, FireView, ScheduleView
from orchestrator.spec.sweep import SweepSpec


def schedule_view(
    schedule: ScheduleRecord, coming: ComingView | None, last: FireView | None, waiting: int
) -> ScheduleView:
    """A schedule with its next due time, its newest fire, and how many fires wait."""
    window = window_of(schedule.spec)
    return ScheduleView(
        id=schedule.id,
        name=schedule.name,
        creates="sweep" if isinstance(schedule.spec, SweepSpec) else "run",
        state=schedule.state,
        message=schedule.message,
        cron=schedule.cron,
        at=schedule.at,
        tz=schedule.tz,
        window=str(window) if window is not None else "",
        overlap=schedule.overlap,
        catch_up=schedule.catch_up,
        next=coming,
        last=last,
        waiting=waiting,
        user=schedule.user,
        created_at=schedule.created_at,
        ended_at=schedule.ended_at,
    )


def coming_view(schedule: ScheduleRecord, fire: Fire) -> ComingView:
    """A due time that is to come, and when its work may execute."""
    window = window_of(schedule.spec)
    opens = first_open(window, fire.at) if window is not None else None
    return ComingView(
        schedule=schedule.id,
        name=schedule.name,
        local=fire.local,
        at=fire.at,
        opens=opens,
        closes=closes_at(window, opens) if opens is not None else None,
    )


def fire_view(schedule: ScheduleRecord, fire: FireRecord, states: Mapping[str, str]) -> FireView:
    """A fire, with the states of runs and sweeps by id."""
    work = fire.run_id or fire.sweep_id
    return FireView(
        schedule=fire.schedule_id,
        local=schedule.local(fire.due) if fire.by_hand else fire.local,
        due=fire.due,
        last=fire.last,
        count=fire.count,
        by_hand=fire.by_hand,
        state=fire.state,
        message=fire.message,
        run_id=fire.run_id,
        sweep_id=fire.sweep_id,
        work_state=states.get(work) if work else None,
        decided_at=fire.decided_at,
    )
