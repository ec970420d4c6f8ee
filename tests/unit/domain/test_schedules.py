"""Decisions about due times, without a ledger and without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from orchestrator.domain.schedules import (
    BATCH,
    HORIZON,
    MOST,
    CatchUp,
    FireRecord,
    FireState,
    Overlap,
    Ruling,
    ScheduleRecord,
    ScheduleState,
    at_instant,
    by_hand,
    coming,
    decide,
    next_due,
)
from tests.unit.records import spec

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
"""A Monday."""
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def schedule(cron: str | None = "0 22 * * *", **values: object) -> ScheduleRecord:
    """A schedule that was made at NOW and fires every night in Paris."""
    defaults: dict[str, object] = {
        "id": "sched234",
        "seq": 1,
        "key": "k",
        "name": "nightly",
        "spec": spec(),
        "source": "",
        "user": "ada",
        "cron": cron,
        "at": None,
        "tz": "Europe/Paris",
        "overlap": Overlap.SKIP,
        "catch_up": CatchUp.LAST,
        "state": ScheduleState.ACTIVE,
        "created_at": NOW,
        "cursor": NOW,
    }
    return ScheduleRecord(**{**defaults, **values})  # type: ignore[arg-type]


def ruled(one: ScheduleRecord, now: datetime, waiting: Sequence[FireRecord] = (), busy: str = "") -> Ruling:
    return decide(one, now, [], waiting, busy)


def states(ruling: Ruling) -> list[tuple[str, FireState, int]]:
    return [(fire.local, fire.state, fire.count) for fire in ruling.fires]


def test_nothing_is_due_before_its_time_and_a_due_time_fires_once() -> None:
    one = schedule()
    due = datetime(2026, 3, 2, 21, 0, tzinfo=UTC)
    assert next_due(one) == due
    assert ruled(one, due - timedelta(microseconds=1)) == Ruling(one, [], [])
    ruling = ruled(one, due)
    assert states(ruling) == [("2026-03-02T22:00+01:00", FireState.WAITING, 1)]
    assert ruling.fires[0].key == "schedule/sched234/2026-03-02T22:00+01:00"
    assert ruling.schedule.cursor == due
    assert ruled(ruling.schedule, due + MINUTE).fires == []


def test_a_due_time_at_which_it_was_made_does_not_count() -> None:
    at_ten = datetime(2026, 3, 2, 21, 0, tzinfo=UTC)
    assert ruled(schedule(cursor=at_ten), at_ten + MINUTE).fires == []


@pytest.mark.parametrize(
    ("policy", "made_up_for"), [(CatchUp.NONE, []), (CatchUp.LAST, [4]), (CatchUp.ALL, [1, 2, 3, 4])]
)
def test_what_was_missed(policy: CatchUp, made_up_for: list[int]) -> None:
    """Away for four nights; back at noon."""
    ruling = ruled(schedule(catch_up=policy, overlap=Overlap.QUEUE), NOW + 4 * DAY)
    waits = [fire.due.day - 1 for fire in ruling.fires if fire.state is FireState.WAITING]
    missed = sum(fire.count for fire in ruling.fires if fire.state is FireState.MISSED)
    assert waits == made_up_for
    assert missed == 4 - len(made_up_for)
    assert all("not running" in fire.message for fire in ruling.fires if fire.state is FireState.MISSED)


@pytest.mark.parametrize("policy", list(CatchUp))
def test_a_little_late_is_not_missed(policy: CatchUp) -> None:
    due = datetime(2026, 3, 2, 21, 0, tzinfo=UTC)
    on_time = ruled(schedule(catch_up=policy), due + timedelta(seconds=300))
    assert on_time.fires[0].state is FireState.WAITING
    late = ruled(schedule(catch_up=policy), due + timedelta(seconds=301))
    assert (late.fires[0].state is FireState.MISSED) == (policy is CatchUp.NONE)


def test_the_newest_is_not_made_up_for_where_one_is_on_time() -> None:
    """Three nights late, and back just at ten."""
    ruling = ruled(schedule(), NOW + 3 * DAY + timedelta(hours=9, minutes=1))
    assert states(ruling) == [
        ("2026-03-02T22:00+01:00", FireState.MISSED, 3),
        ("2026-03-05T22:00+01:00", FireState.WAITING, 1),
    ]


def test_of_very_many_the_newest_hundred_are_made_up_for() -> None:
    one = schedule("* * * * *", catch_up=CatchUp.ALL, overlap=Overlap.QUEUE)
    now, fires = NOW + timedelta(minutes=1300), []
    waiting: list[FireRecord] = []
    for number in range(3):
        ruling = ruled(one, now, waiting)
        fires += ruling.fires
        waiting += [fire for fire in ruling.fires if fire.state is FireState.WAITING]
        one = ruling.schedule
        assert ruling.more == (number < 2)
    assert sum(fire.count for fire in fires) == 1300
    assert [fire.due for fire in waiting] == [now - n * MINUTE for n in range(MOST - 1, -1, -1)]
    assert [fire.count for fire in fires if fire.state is FireState.MISSED] == [BATCH, BATCH, 200]


def test_busy_skips_queues_or_replaces() -> None:
    due, busy = datetime(2026, 3, 2, 21, 0, tzinfo=UTC), "run abcd2345 (job) had not ended"
    skipped = ruled(schedule(), due, busy=busy).fires[0]
    assert (skipped.state, skipped.message) == (FireState.SKIPPED, busy)
    for overlap in (Overlap.QUEUE, Overlap.REPLACE):
        assert ruled(schedule(overlap=overlap), due, busy=busy).fires[0].state is FireState.WAITING


def test_a_fire_that_waits_is_earlier_work_too() -> None:
    due = datetime(2026, 3, 3, 21, 0, tzinfo=UTC)
    waits = FireRecord(
        "sched234", "2026-03-02T22:00+01:00", due - DAY, due - DAY, FireState.WAITING, NOW, seq=5
    )
    one = schedule(cursor=due - DAY)
    assert ruled(one, due, [waits]).fires[0].state is FireState.SKIPPED
    replacing = ruled(replace(one, overlap=Overlap.REPLACE), due, [waits])
    assert [fire.seq for fire in replacing.dropped] == [5]
    assert replacing.dropped[0].state is FireState.SKIPPED
    assert "2026-03-03T22:00" in replacing.dropped[0].message
    assert replacing.fires[0].state is FireState.WAITING
    queueing = replace(one, overlap=Overlap.QUEUE)
    assert ruled(queueing, due, [waits]).fires[0].state is FireState.WAITING
    assert ruled(queueing, due, [waits] * MOST).fires[0].state is FireState.SKIPPED


def test_of_several_that_are_made_up_for_the_policy_on_overlap_takes_its_share() -> None:
    one = schedule(catch_up=CatchUp.ALL)
    after = NOW + 3 * DAY
    assert [state for _, state, _ in states(ruled(one, after))] == [
        FireState.WAITING, FireState.SKIPPED, FireState.SKIPPED,
    ]  # fmt: skip
    assert [state for _, state, _ in states(ruled(replace(one, overlap=Overlap.REPLACE), after))] == [
        FireState.SKIPPED, FireState.SKIPPED, FireState.WAITING,
    ]  # fmt: skip


def test_a_clock_that_goes_back_repeats_nothing() -> None:
    one, known = schedule("0 * * * *"), []
    for now in (NOW + timedelta(hours=2), NOW + timedelta(minutes=30), NOW + timedelta(hours=3)):
        ruling = decide(one, now, known, [], "")
        assert ruling.schedule.cursor <= now
        one, known = ruling.schedule, known + ruling.fires
    dues = [fire.due for fire in known for _ in range(fire.count)]
    assert sorted(dues) == [NOW + timedelta(hours=n) for n in (1, 2, 3)]


def test_after_a_clock_that_was_a_year_ahead_it_fires_as_ever() -> None:
    far = decide(schedule(), NOW + 365 * DAY, [], [], "")
    assert far.schedule.cursor > NOW + 300 * DAY
    back = decide(far.schedule, NOW + DAY / 4, far.fires, [], "").schedule
    assert back.cursor == NOW + DAY / 4
    assert next_due(back) == datetime(2026, 3, 2, 21, 0, tzinfo=UTC)


def test_spans_of_missed_due_times_leave_out_what_is_known() -> None:
    one = schedule("0 * * * *", catch_up=CatchUp.NONE)
    hour = timedelta(hours=1)
    at = NOW + 3 * hour
    known = FireRecord("sched234", "2026-03-02T16:00+01:00", at, at, FireState.CREATED, at)
    ruling = decide(one, NOW + 5 * hour + DAY / 24 / 2, [known], [], "")
    spans = [(fire.due, fire.last, fire.count) for fire in ruling.fires]
    assert spans == [(NOW + hour, NOW + 2 * hour, 2), (NOW + 4 * hour, NOW + 5 * hour, 2)]


def test_what_is_over_a_year_ago_is_left_alone_and_does_not_come_up_again() -> None:
    one = schedule(None, at=NOW + DAY)
    ruling = ruled(one, NOW + DAY + HORIZON + MINUTE)
    assert ruling.fires == []
    assert ruling.schedule.state is ScheduleState.ENDED
    old = schedule("0 0 1 1 *", cursor=NOW - 4 * HORIZON)
    turned = ruled(old, NOW)
    assert [fire.due.year for fire in turned.fires] == [2025]
    due = next_due(turned.schedule)
    assert due is not None
    assert due > NOW


def test_one_time_is_one_fire() -> None:
    one = schedule(None, at=NOW + timedelta(seconds=90))
    ruling = ruled(one, NOW + timedelta(seconds=90))
    assert states(ruling) == [("2026-03-02T13:01:30+01:00", FireState.WAITING, 1)]
    assert ruling.schedule.state is ScheduleState.ENDED
    assert ruled(ruling.schedule, NOW + DAY).fires == []
    missed = ruled(replace(one, catch_up=CatchUp.NONE), NOW + DAY)
    assert [fire.state for fire in missed.fires] == [FireState.MISSED]
    assert ruled(one, NOW + DAY).fires[0].state is FireState.WAITING


def test_a_paused_schedule_decides_nothing() -> None:
    one = schedule(state=ScheduleState.PAUSED)
    assert ruled(one, NOW + 9 * DAY) == Ruling(one, [], [])
    assert next_due(one) is None
    assert list(coming(one, NOW)) == []


def test_by_hand_minds_earlier_work() -> None:
    one = schedule(state=ScheduleState.PAUSED)
    assert by_hand(one, "hand-1", NOW, [], "").fires[0].state is FireState.WAITING
    assert by_hand(one, "hand-1", NOW, [], "busy").fires[0].state is FireState.SKIPPED
    replacing = replace(one, overlap=Overlap.REPLACE)
    fire = by_hand(replacing, "hand-1", NOW, [], "busy").fires[0]
    assert (fire.state, fire.by_hand, fire.due) == (FireState.WAITING, True, NOW)


@pytest.mark.parametrize(
    ("tz", "night", "fires"),
    [
        ("Europe/Paris", "2026-03-29", ["2026-03-29T03:00+02:00"]),
        ("Europe/Paris", "2026-10-25", ["2026-10-25T02:30+02:00"]),
        ("Australia/Lord_Howe", "2026-10-04", ["2026-10-04T02:30+11:00"]),
        ("Australia/Lord_Howe", "2026-04-05", ["2026-04-05T02:30+10:30"]),
        ("Australia/Lord_Howe", "2026-04-06", ["2026-04-06T02:30+10:30"]),
    ],
)
def test_half_past_two_comes_once_when_clocks_change(tz: str, night: str, fires: list[str]) -> None:
    """Looked at every minute of the day."""
    begin = at_instant(datetime.fromisoformat(night), tz)
    one, found = schedule("30 2 * * *", tz=tz, cursor=begin - timedelta(seconds=1)), []
    for minute in range(25 * 60):
        ruling = ruled(one, begin + minute * MINUTE)
        one, found = ruling.schedule, found + [fire.local for fire in ruling.fires]
    assert [local for local in found if local.startswith(night)] == fires


def test_every_hour_goes_on_through_both_hours_of_autumn() -> None:
    begin = at_instant(datetime(2026, 10, 25), "Europe/Paris")
    one = schedule("0 * * * *", cursor=begin, catch_up=CatchUp.ALL, overlap=Overlap.QUEUE)
    fires = ruled(one, begin + timedelta(hours=6)).fires
    assert [fire.local for fire in fires][1:4] == [
        "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00",
    ]  # fmt: skip
    assert all(b.due - a.due == timedelta(hours=1) for a, b in pairwise(fires))


def test_a_local_time_and_an_instant() -> None:
    summer = datetime(2026, 7, 1, 22, 0)
    assert at_instant(summer, "Europe/Paris") == datetime(2026, 7, 1, 20, 0, tzinfo=UTC)
    assert at_instant(summer.replace(tzinfo=UTC), "Europe/Paris") == datetime(2026, 7, 1, 22, 0, tzinfo=UTC)
