"""Schedules on a real ledger: what fires, and what crashes, sleep and clocks do to it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.schedules import CatchUp, FireState, Overlap, ScheduleState, at_instant
from orchestrator.domain.states import RunState
from orchestrator.domain.sweeps import SweepState
from orchestrator.domain.times import Cron
from orchestrator.errors import ConflictError, NotFoundError, SpecError, UnavailableError
from orchestrator.messages_schedules import ScheduleView
from orchestrator.spec.sweep import Budget, Parameter, SweepSpec
from orchestrator.store.ledger import Ledger
from tests.integration.control.nights import NOON, Nights
from tests.unit.records import spec

WAITING, CREATED, SKIPPED, MISSED, FAILED = FireState
MOMENTS = 30
"""More than there are before and after the transactions of a look that creates one run."""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    found = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.db")
    yield found
    found.close()


@pytest.fixture
def nights(ledger: Ledger) -> Iterator[Nights]:
    yield Nights(ledger)
    clear(ledger)


def clear(ledger: Ledger) -> None:
    """No schedule of one test fires in the next."""
    nights = Nights(ledger)
    for schedule in nights.schedules.all(ended=False):
        nights.schedules.remove(schedule.id)


def told(nights: Nights, schedule: ScheduleView) -> list[tuple[str, FireState]]:
    """Local times to the minute and verdicts, oldest first."""
    return [(fire.local[:16], fire.state) for fire in nights.fires(schedule)]


# ------------------------------------------------------------------ nights and crashes


@pytest.mark.parametrize("moment", range(1, MOMENTS))
def test_two_nights_with_a_crash_in_each(nights: Nights, moment: int) -> None:
    """The controller dies at this moment of its look, in both nights."""
    schedule = nights.add()
    for night in (1, 2):
        nights.go(hours=9)  # 22:00 in Paris
        nights.look(moment)
        nights.restart()
        nights.look()
        assert len(nights.created(schedule)) == night
        assert len(nights.unfinished(schedule)) == 1
        nights.go(hours=15)
        nights.end_all(schedule)
    assert told(nights, schedule) == [("2026-03-02T22:00", CREATED), ("2026-03-03T22:00", CREATED)]
    assert [fire.run_id for fire in nights.fires(schedule)] == [run.id for run in nights.created(schedule)]


def test_the_moments_are_more_than_there_are(nights: Nights) -> None:
    nights.add()
    nights.go(hours=9)
    nights.look()
    assert 10 < nights.fused.passed < MOMENTS


@pytest.mark.parametrize("overlap", list(Overlap))
@pytest.mark.parametrize("moment", range(1, MOMENTS, 2))
def test_a_crash_while_earlier_work_goes_on(nights: Nights, overlap: Overlap, moment: int) -> None:
    schedule = nights.add(overlap=overlap)
    nights.go(hours=9)
    nights.look()
    (first,) = nights.created(schedule)
    nights.change(first.id, RunState.RUNNING)
    nights.go(days=1)
    nights.look(moment)
    if overlap is Overlap.REPLACE:
        with nights.ledger.read() as reading:
            assert reading.run(first.id).state is RunState.STOPPING, "it saves"
    assert nights.unfinished(schedule)[0].id == first.id
    nights.end_all(schedule)
    nights.look(moment)
    verdict = SKIPPED if overlap is Overlap.SKIP else CREATED
    assert told(nights, schedule) == [("2026-03-02T22:00", CREATED), ("2026-03-03T22:00", verdict)]
    assert len(nights.created(schedule)) == (1 if overlap is Overlap.SKIP else 2)


# ------------------------------------------------------------------ overlap


def test_a_fire_that_is_skipped_says_what_goes_on(nights: Nights) -> None:
    schedule = nights.add()
    nights.go(hours=9)
    nights.look()
    nights.go(days=1)
    nights.look()
    (run,) = nights.created(schedule)
    assert nights.fires(schedule)[-1].message == f"run {run.id} (job) of an earlier fire had not ended"
    nights.end_all(schedule)
    nights.go(days=1)
    nights.look()
    assert [state for _, state in told(nights, schedule)] == [CREATED, SKIPPED, CREATED]


def test_fires_that_wait_go_ahead_one_after_the_other_and_survive_restarts(nights: Nights) -> None:
    schedule = nights.add(overlap="queue")
    nights.go(hours=9)
    for _ in range(3):
        nights.look()
        nights.restart()
        nights.go(days=1)
    assert [state for _, state in told(nights, schedule)] == [CREATED, WAITING, WAITING]
    for created in (1, 2, 3):
        nights.look()
        assert len(nights.created(schedule)) == min(3, created)
        nights.end_all(schedule)
    assert [state for _, state in told(nights, schedule)][:3] == [CREATED, CREATED, CREATED]


def test_a_fire_replaces_what_runs_and_what_waits(nights: Nights) -> None:
    schedule = nights.add(overlap="replace")
    nights.go(hours=9)
    nights.look()
    (first,) = nights.created(schedule)
    nights.change(first.id, RunState.RUNNING)
    for _ in range(2):
        nights.go(days=1)
        nights.look()
    assert [state for _, state in told(nights, schedule)] == [CREATED, SKIPPED, WAITING]
    assert "the fire of 2026-03-04T22:00+01:00 took its place" in nights.fires(schedule)[1].message
    nights.change(first.id, RunState.CANCELLED)
    nights.look()
    assert len(nights.created(schedule)) == 2
    assert [run.state for run in nights.unfinished(schedule)] == [RunState.QUEUED]


def test_what_runs_as_a_sweep(nights: Nights) -> None:
    space = {"priority": Parameter(choice=[1, 2])}
    search = SweepSpec(name="search", base=spec(), space=space, budget=Budget(trials=2))
    schedule = nights.add(sweep=search, overlap="replace")
    nights.go(hours=9)
    for _ in range(2):
        nights.look()
        nights.restart()
        nights.go(days=1)
    first, second = nights.fires(schedule)
    with nights.ledger.read() as reading:
        assert reading.sweeps.get(str(first.sweep_id)).state is SweepState.CANCELLED
        last = reading.sweeps.get(str(second.sweep_id))
    assert (last.state, last.schedule_id, last.key) == (SweepState.RUNNING, schedule.id, second.key)
    assert nights.schedules.fires(schedule.id, 1)[0].work_state == "running"


# ------------------------------------------------------------------ what is refused


def test_what_is_refused_fails_and_the_next_night_goes_on(nights: Nights) -> None:
    schedule = nights.add()
    nights.runs.refusal = NotFoundError("no run is called base")
    nights.go(hours=9)
    nights.look()
    nights.runs.refusal = None
    nights.go(days=1)
    nights.look()
    first, second = nights.fires(schedule)
    assert (first.state, first.message) == (FAILED, "no run is called base")
    assert second.state is CREATED


def test_a_store_that_does_not_answer_is_waited_for(nights: Nights) -> None:
    schedule = nights.add()
    nights.runs.refusal = UnavailableError("the store does not answer")
    nights.go(hours=9)
    nights.look()
    (fire,) = nights.fires(schedule)
    assert (fire.state, fire.message) == (WAITING, "not submitted yet: the store does not answer")
    nights.runs.refusal = None
    nights.go(hours=1)
    nights.look()
    (fire,) = nights.fires(schedule)
    assert (fire.state, fire.message) == (CREATED, "")


# ------------------------------------------------------------------ clocks


@pytest.mark.parametrize(
    ("tz", "night"),
    [
        ("Europe/Paris", "2026-03-29"),
        ("Europe/Paris", "2026-10-25"),
        ("Australia/Lord_Howe", "2026-10-04"),
        ("Australia/Lord_Howe", "2026-04-05"),
    ],
)
def test_half_past_two_fires_once_in_the_nights_when_clocks_change(
    ledger: Ledger, tz: str, night: str
) -> None:
    """The controller looks every ten minutes, and is killed at every second look."""
    nights = Nights(ledger, at_instant(datetime.fromisoformat(night), tz) - timedelta(hours=12))
    schedule = nights.add("30 2 * * *", tz=tz)
    for number in range(6 * 36):
        nights.go(minutes=10)
        nights.look(5 if number % 2 else None)
        nights.end_all(schedule)
    assert len(nights.created(schedule)) == len(nights.fires(schedule)) == 1
    assert nights.fires(schedule)[0].local.startswith(night)
    clear(ledger)


def test_a_clock_that_is_set_forward_and_back_fires_nothing_twice(nights: Nights) -> None:
    schedule = nights.add(catch_up="all", overlap="queue")
    for days in (3, -2, 1, -1, 4):
        nights.go(days=days)
        nights.look()
        nights.end_all(schedule)
        nights.look()
        nights.end_all(schedule)
    while nights.waiting(schedule):
        nights.look()
        nights.end_all(schedule)
    assert told(nights, schedule) == [(f"2026-03-{day:02}T22:00", CREATED) for day in range(2, 7)]
    assert len(nights.created(schedule)) == 5


def test_while_nothing_is_due_nothing_is_read(nights: Nights) -> None:
    nights.add()
    nights.look()
    nights.go(hours=8)
    nights.look()
    assert nights.fused.passed == 0


# ------------------------------------------------------------------ what its user does


def test_pause_and_resume(nights: Nights) -> None:
    schedule = nights.add()
    nights.go(hours=9)
    assert nights.schedules.pause(schedule.id).message == "paused by its user"
    nights.go(days=2)
    nights.look()
    assert nights.schedules.resume(schedule.name).next is not None
    nights.end_all(schedule)
    nights.go(days=1)
    nights.look()
    assert told(nights, schedule) == [("2026-03-02T22:00", CREATED), ("2026-03-05T22:00", CREATED)]


def test_what_is_removed_fires_no_more_and_frees_its_name(nights: Nights) -> None:
    schedule = nights.add(name="nightly", overlap="queue")
    with pytest.raises(ConflictError, match="nightly already"):
        nights.add(name="nightly")
    nights.go(hours=33)
    nights.look()
    removed = nights.schedules.remove("nightly")
    assert removed.state is ScheduleState.REMOVED
    nights.end_all(schedule)
    nights.go(days=3)
    nights.look()
    assert len(nights.created(schedule)) == 1
    assert [state for _, state in told(nights, schedule)] == [MISSED, CREATED]
    again = nights.add(name="nightly")
    assert nights.schedules.detail("nightly").schedule.id == again.id
    assert nights.schedules.detail(schedule.id).schedule.state is ScheduleState.REMOVED
    for refused in (nights.schedules.pause, nights.schedules.resume, nights.schedules.remove):
        with pytest.raises(ConflictError, match="removed"):
            refused(schedule.id)


def test_what_waits_is_dropped_with_its_schedule(nights: Nights) -> None:
    schedule = nights.add(overlap="queue")
    nights.go(hours=9)
    nights.look()
    nights.go(days=1)
    nights.look()
    nights.schedules.remove(schedule.id)
    fire = nights.fires(schedule)[-1]
    assert (fire.state, fire.message) == (SKIPPED, "its schedule was removed")


def test_by_hand_once_per_key(nights: Nights) -> None:
    schedule = nights.add()
    first = nights.schedules.run(schedule.id, "a")
    assert (first.state, first.by_hand, first.local) == (CREATED, True, "2026-03-02T13:00:00+01:00")
    assert nights.schedules.run(schedule.id, "a").run_id == first.run_id
    with pytest.raises(ConflictError, match="had not ended"):
        nights.schedules.run(schedule.id, "b")
    nights.end_all(schedule)
    nights.schedules.pause(schedule.id)
    assert nights.schedules.run(schedule.id, "b").run_id != first.run_id
    assert len(nights.created(schedule)) == 2


def test_one_time(nights: Nights) -> None:
    schedule = nights.add(None, at="2026-03-02T13:00:30")
    assert schedule.next is not None
    assert schedule.next.at == NOON + timedelta(seconds=30)
    nights.go(seconds=30)
    nights.look()
    nights.go(days=400)
    nights.look()
    assert told(nights, schedule) == [("2026-03-02T13:00", CREATED)]
    assert nights.schedules.detail(schedule.id).schedule.state is ScheduleState.ENDED


def test_what_would_never_fire_is_refused(nights: Nights) -> None:
    with pytest.raises(SpecError, match="2026-03-02T12:59:00\\+01:00 is over"):
        nights.add(None, at="2026-03-02T12:59")
    assert nights.schedules.all(ended=False) == []


def test_the_same_key_is_the_same_schedule(nights: Nights) -> None:
    assert nights.add(key="k", name="a").id == nights.add(key="k", name="a").id


def test_coming_fires_of_all_schedules_in_their_order(nights: Nights) -> None:
    nights.add("0 22 * * *", name="late")
    nights.add("0 6 * * *", name="early")
    coming = nights.schedules.coming(None, 3)
    assert [(one.name, one.local) for one in coming] == [
        ("late", "2026-03-02T22:00+01:00"),
        ("early", "2026-03-03T06:00+01:00"),
        ("late", "2026-03-03T22:00+01:00"),
    ]
    assert [one.name for one in nights.schedules.coming("early", 2)] == ["early", "early"]


def test_the_run_says_which_schedule_made_it(nights: Nights) -> None:
    schedule = nights.add(name="nightly")
    nights.go(hours=9)
    nights.look()
    (run,) = nights.created(schedule)
    with nights.ledger.read() as reading:
        (event,) = reading.events(run.id)
    assert event.text == f"created by schedule nightly ({schedule.id}), due 2026-03-02T22:00:00+01:00"


# ------------------------------------------------------------------ whatever happens

CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0 22 * * 1-5", "*/20 1-3 * * *"]
)
STEPS = st.tuples(
    st.sampled_from([30, 60, 299, 301, 600, 3600, 9 * 3600, 86400, -90, -4000]),  # seconds that pass
    st.sampled_from(["up", "up", "up", "down"]),
    st.sampled_from(["none", "end", "run"]),  # what happens to what it has created
    st.integers(0, 40),  # the moment at which it is killed
)


@settings(max_examples=30, deadline=None)
@given(
    cron=CRONS,
    tz=st.sampled_from(["Europe/Paris", "Australia/Lord_Howe", "UTC"]),
    night=st.sampled_from(["2026-03-28", "2026-10-24", "2026-04-04", "2026-10-03", "2026-06-01"]),
    overlap=st.sampled_from(list(Overlap)),
    catch_up=st.sampled_from(list(CatchUp)),
    steps=st.lists(STEPS, min_size=1, max_size=12),
)
def test_every_due_time_is_decided_once_and_rightly(
    ledger: Ledger,
    cron: str,
    tz: str,
    night: str,
    overlap: Overlap,
    catch_up: CatchUp,
    steps: list[tuple[int, str, str, int]],
) -> None:
    begin = datetime.fromisoformat(night).replace(hour=12, tzinfo=UTC)
    nights = Nights(ledger, begin)
    schedule = nights.add(cron, tz=tz, overlap=overlap, catch_up=catch_up)
    try:
        model = Model(Cron.parse(cron, tz), begin, overlap, catch_up)
        for step in steps:
            live(nights, schedule, model, *step)
        while nights.waiting(schedule):
            nights.end_all(schedule)
            model.look(nights, schedule)
            nights.look()
        model.check(nights, schedule)
    finally:
        nights.schedules.remove(schedule.id)


def live(
    nights: Nights,
    schedule: ScheduleView,
    model: Model,
    seconds: int,
    presence: str,
    happening: str,
    moment: int,
) -> None:
    """Let time pass and something happen to the runs; then look, where one is up, and die in it."""
    nights.go(seconds=seconds)
    if happening == "end":
        nights.end_all(schedule)
    for run in nights.unfinished(schedule) if happening == "run" else ():
        nights.change(run.id, RunState.RUNNING)
    if presence == "up":
        model.look(nights, schedule)
        nights.look(moment)
        assert len(nights.unfinished(schedule)) <= 1, "one at a time"


class Model:
    """What is to become of each due time, told without cursors, batches or records."""

    def __init__(self, cron: Cron, begin: datetime, overlap: Overlap, catch_up: CatchUp) -> None:
        self.cron = cron
        self.begin = begin
        self.overlap = overlap
        self.made_up_for = {CatchUp.NONE: 0, CatchUp.LAST: 1, CatchUp.ALL: 100}[catch_up]
        self.verdicts: dict[datetime, FireState] = {}

    def look(self, nights: Nights, schedule: ScheduleView) -> None:
        """Tell what a look is to decide, before it is made."""
        now = nights.clock.now()
        self.begin = min(self.begin, now)  # what was ahead once, after a clock has gone back
        due = [fire.at for fire in takewhile(lambda fire: fire.at <= now, self.cron.fires(self.begin))]
        late = [at for at in due if now - at > timedelta(minutes=5)]
        missed = set(late) - set(due[max(0, len(due) - self.made_up_for) :])
        ahead = [at for at in due if at not in missed and at not in self.verdicts]
        for at in missed:
            self.verdicts.setdefault(at, MISSED)
        waiting = [fire.due for fire in nights.waiting(schedule)]
        taken = self._taken(ahead, waiting, bool(nights.unfinished(schedule)))
        if self.overlap is Overlap.REPLACE and ahead:
            self.verdicts |= dict.fromkeys(waiting, SKIPPED)
        self.verdicts |= {at: CREATED if at in taken else SKIPPED for at in ahead}

    def _taken(self, ahead: list[datetime], waiting: list[datetime], unfinished: bool) -> list[datetime]:
        """Which of these create work, sooner or later."""
        if self.overlap is Overlap.SKIP:
            return [] if waiting or unfinished else ahead[:1]
        return ahead[-1:] if self.overlap is Overlap.REPLACE else ahead[: 100 - len(waiting)]

    def check(self, nights: Nights, schedule: ScheduleView) -> None:
        """Compare with the ledger: each due time is in one record, and each fire that created has its run."""
        fires = nights.fires(schedule)
        for at, verdict in self.verdicts.items():
            (fire,) = [fire for fire in fires if fire.due <= at <= fire.last]
            assert fire.state is verdict, at
        assert sum(fire.count for fire in fires) == len(self.verdicts)
        created = [fire.run_id for fire in fires if fire.state is CREATED]
        assert created == [run.id for run in nights.created(schedule)]
