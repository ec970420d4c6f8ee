"""Who is told where a due time of a schedule has created nothing, on a real ledger."""

from __future__ import annotations

import pytest

from orchestrator.domain.notice import Notice, NoticeKind
from orchestrator.domain.schedules import CatchUp, Overlap
from orchestrator.errors import Problem, SpecError
from orchestrator.messages import SubmitRequest, Submitted
from orchestrator.messages_schedules import ScheduleView
from tests.integration.control.nights import Nights
from tests.integration.control.test_firing import MOMENTS, ledger, nights

__all__ = ["ledger", "nights"]


def notices(nights: Nights, schedule: ScheduleView) -> list[Notice]:
    with nights.ledger.read() as ledger:
        return [one for one in ledger.notices.unspread() if one.subject == schedule.id]


def test_who_creates_nothing_tells_so_once_in_a_row(nights: Nights) -> None:
    schedule = nights.add("0 * * * *", overlap=Overlap.SKIP)
    nights.go(hours=1)
    nights.look()
    assert notices(nights, schedule) == []
    for _ in range(3):
        nights.go(hours=1)
        nights.look()
    (told,) = notices(nights, schedule)
    assert (told.kind, told.key, told.name) == (NoticeKind.SCHEDULE, "2026-03-02T15:00+01:00", "job")
    assert told.title == f"schedule {schedule.name}: skipped, due Mon 2026-03-02 15:00"
    assert "of an earlier fire had not ended" in told.body
    nights.end_all(schedule)
    nights.go(hours=1)
    nights.look()
    nights.go(hours=1)
    nights.look()
    assert [one.key[11:16] for one in notices(nights, schedule)] == ["15:00", "19:00"]


def test_work_that_is_refused_is_told_each_time(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: SubmitRequest) -> Submitted:
        raise SpecError([Problem("spec.yaml", 3, 1, "dataset", "no such file")])

    schedule = nights.add("0 22 * * *")
    monkeypatch.setattr(nights.runs, "submit", refuse)
    for _ in range(2):
        nights.go(days=1)
        nights.look()
    first, second = notices(nights, schedule)
    assert first.title.endswith(": failed, due Mon 2026-03-02 22:00")
    assert "no such file" in first.body
    assert second.title.endswith("Tue 2026-03-03 22:00")


@pytest.mark.parametrize("moment", range(1, MOMENTS, 3))
def test_what_was_told_before_a_crash_is_told_once(nights: Nights, moment: int) -> None:
    schedule = nights.add("0 22 * * *", catch_up=CatchUp.NONE)
    nights.go(days=2)
    nights.look(moment)
    nights.restart()
    nights.look()
    (told,) = notices(nights, schedule)
    assert told.title == f"schedule {schedule.name}: missed, due Mon 2026-03-02 22:00 and 1 more"
