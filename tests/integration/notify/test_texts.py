"""What people read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.notice import Notice, NoticeKind
from orchestrator.domain.records import Member
from orchestrator.domain.schedules import (
    CatchUp,
    FireRecord,
    FireState,
    Overlap,
    ScheduleRecord,
    ScheduleState,
)
from orchestrator.domain.states import RunState
from orchestrator.notify import texts
from tests.unit.records import NOW, attempt, run, spec

ENDED = run(
    spec=spec("lr-3", experiment="shakespeare"),
    state=RunState.SUCCEEDED,
    started_at=NOW,
    ended_at=NOW + timedelta(minutes=12, seconds=3),
)
LINKS = {"run": "http://m/#/r", "loss": "http://m/#/l", "report": "http://c/report"}


def test_a_run_has_finished() -> None:
    attempts = [
        attempt(device="cpu", last_step=900),
        attempt(number=2, node="gpu", device_name="RTX 4070 Ti", last_step=2000),
    ]
    facts = texts.Facts(ENDED, attempts, (2000, 1.4712), (1750, 1.4698), record=True, links=LINKS)
    assert texts.ended(facts) == (
        "shakespeare/lr-3: finished, val/loss 1.4712 at step 2000",
        "12 min 3 s on laptop (cpu), gpu (RTX 4070 Ti)\n"
        "best val/loss 1.4698 at step 1750, the best of shakespeare so far\n"
        "MLflow: http://m/#/r\n"
        "Report: http://c/report",
    )


def test_a_run_has_failed() -> None:
    message = "the program failed\nTraceback ...\nValueError: no such dataset\n\n"
    failed = replace(ENDED, state=RunState.FAILED, message=message)
    members = (Member("ray-gpu", "gpu"),)
    title, body = texts.ended(texts.Facts(failed, [attempt(last_step=7, members=members)]))
    assert title == "shakespeare/lr-3: failed at step 7"
    assert body == "ValueError: no such dataset\n12 min 3 s on laptop, gpu\nlog: orch logs aaaa1111"


def test_a_run_that_never_started() -> None:
    record = run(spec=spec("demo"), state=RunState.CANCELLED)
    assert texts.ended(texts.Facts(record)) == ("demo: cancelled", "never started")


def test_many_at_once() -> None:
    notices = [
        Notice(n, NoticeKind.FAILED if n < 3 else NoticeKind.FINISHED, f"r{n}", "", "", "", NOW, f"run {n}")
        for n in range(25)
    ]
    title, body = texts.digest(notices)
    assert title == "25 notifications: 3 failed, 22 finished"
    assert body.splitlines()[:2] == ["run 0", "run 1"]
    assert body.splitlines()[-1] == "and 5 more: orch ls --all"
    assert len(body.splitlines()) == 21


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (12_000, "3 h 20 min")],
)
def test_times(seconds: float, text: str) -> None:
    assert texts.time(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(1.47123, "1.4712"), (0, "0.0000"), (3e-5, "3e-05"), (-2.5e7, "-2.5e+07")]
)
def test_values(number: float, text: str) -> None:
    assert texts.value(number) == text


def test_a_due_time_that_created_nothing() -> None:
    at = datetime(2026, 3, 2, 21, 0, tzinfo=UTC)
    schedule = ScheduleRecord(
        id="sch1",
        seq=1,
        key="k",
        name="nightly",
        spec=spec("lr-3"),
        source="",
        user="ada",
        cron="0 22 * * *",
        at=None,
        tz="Europe/Paris",
        overlap=Overlap.SKIP,
        catch_up=CatchUp.NONE,
        state=ScheduleState.ACTIVE,
        created_at=NOW,
        cursor=NOW,
    )
    fire = FireRecord("sch1", "2026-03-02T22:00", at, at, FireState.MISSED, NOW, message="nobody was there")
    assert texts.barren(schedule, fire) == (
        "schedule nightly: missed, due Mon 2026-03-02 22:00",
        "nobody was there\nall of them: orch schedule fires nightly",
    )
    assert texts.barren(schedule, replace(fire, count=3))[0].endswith("22:00 and 2 more")
