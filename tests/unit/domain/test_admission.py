"""The hours of runs: what they say, what they limit, and how the queue follows them."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.control.board import waiting_of
from orchestrator.domain.admission import GRACE_S, LEAST_S, Hours, hours_of
from orchestrator.domain.limits import Limit, first_limit
from orchestrator.domain.planner import Limits, plan
from orchestrator.domain.queue import Queue, Waiting
from orchestrator.domain.room import rooms_of
from orchestrator.domain.states import CONSEQUENCES, Reason, Then
from orchestrator.domain.tariff import Tariff
from orchestrator.domain.transitions import after_attempt
from orchestrator.domain.why import explain
from orchestrator.spec.models import Variant
from orchestrator.spec.window import WindowRule
from tests.unit.records import NOW, attempt, node, run, spec

NIGHT = WindowRule(hours="22:00-07:00", tz="Europe/Paris")
TARIFF = Tariff.of([("20:00-06:00", None, 0.1)], default=0.3, currency="EUR", tz="Europe/Paris")
LAPTOP = Variant(pool="laptop")


def paris(text: str) -> float:
    """Unix time of a winter's day in Paris."""
    return datetime.fromisoformat(f"2026-12-{text}+01:00").timestamp()


def night() -> Hours:
    """22:00 to 07:00."""
    hours = hours_of((NIGHT,), None, None)
    assert hours is not None
    return hours


def test_it_says_when_it_opens() -> None:
    outside = "outside its window 22:00-07:00 (Europe/Paris); it opens in"
    assert night().why(paris("01T18:48")) == f"{outside} 3 h 12 min, at 22:00"
    assert night().why(paris("01T21:59:30")) == f"{outside} 30 s, at 22:00"
    assert night().why(paris("01T22:00")) == ""
    assert night().why(paris("02T06:58")) == ""
    late = "the hours in which it may run end in 90 s, too soon to start; it opens in"
    assert night().why(paris("02T06:58:30")) == f"{late} 15 h 2 min, at 22:00"
    week = hours_of((WindowRule(hours="22:00-07:00", days="fri", tz="Europe/Paris"),), None, None)
    assert week is not None
    assert week.why(paris("01T22:00")) == (
        "outside its window 22:00-07:00 fri (Europe/Paris); it opens in 3 d 0 h, at Fri 22:00"
    )
    many = hours_of(tuple(WindowRule(hours=f"{h:02}:00-{h:02}:30", tz="UTC") for h in range(9)), None, None)
    assert many is not None
    assert (
        many.closed
        == "outside its window 00:00-00:30 (UTC) or 01:00-01:30 (UTC) or 02:00-02:30 (UTC) and 6 more"
    )


def test_a_window_that_never_opens_says_so() -> None:
    short = hours_of((WindowRule(hours="22:00-22:01", tz="UTC"),), None, None)
    assert short is not None
    assert short.next_start(paris("01T12:00")) is None
    assert short.why(paris("01T12:00")).endswith("(UTC); that does not change any more")


def test_prices_make_hours() -> None:
    assert hours_of(None, None, TARIFF) is None
    assert hours_of(None, 0.3, TARIFF) is None, "always cheap enough"
    cheap = hours_of(None, 0.2, TARIFF)
    assert cheap is not None
    assert cheap.why(paris("01T19:00")) == (
        "electricity costs more than 0.2 EUR per kWh (`max_price`); it gets cheaper in 1 h 0 min, at 20:00"
    )
    both = hours_of((NIGHT,), 0.2, TARIFF)
    assert both is not None
    assert not both.admits(paris("01T21:00"))
    assert both.admits(paris("01T22:00"))
    assert both.closes(paris("01T22:00")) == paris("02T06:00")
    none = hours_of(None, 0.2, None)
    assert none is not None
    assert "no tariff is set" in none.why(paris("01T21:00"))
    assert hours_of((NIGHT,), 0.3, TARIFF) == night()


def test_the_grace_lies_before_the_end() -> None:
    at = datetime.fromtimestamp(paris("02T06:00"), UTC)
    limit = first_limit(run(), LAPTOP, at, hours=night())
    assert limit == Limit(Reason.WINDOW, 3600 - GRACE_S)
    assert first_limit(run(), LAPTOP, at, hours=night(), grace_s=5) == Limit(Reason.WINDOW, 3595)
    closed = first_limit(run(), LAPTOP, at + timedelta(hours=1), hours=night())
    assert closed == Limit(Reason.WINDOW, 0.0)
    always = hours_of((WindowRule(hours="00:00-24:00", tz="UTC"),), None, None)
    assert first_limit(run(), LAPTOP, at, hours=always) is None


def test_whichever_limit_is_met_first_counts() -> None:
    at = datetime.fromtimestamp(paris("02T06:00"), UTC)
    sooner = run(spec=spec(max_duration=600, deadline=at + timedelta(minutes=50)))
    assert first_limit(sooner, LAPTOP, at, hours=night()) == Limit(Reason.TIME_LIMIT, 600)
    late = run(spec=spec(max_duration=7200, deadline=at + timedelta(hours=1)))
    assert first_limit(late, LAPTOP, at, hours=night()) == Limit(Reason.WINDOW, 3540)


def test_the_end_of_a_window_is_no_failure() -> None:
    assert CONSEQUENCES[Reason.WINDOW].then == Then.QUEUE
    executing = run(spec=spec(retries=0), state="running", attempt=1)
    after = after_attempt(executing, attempt(), Reason.WINDOW, "", NOW)
    assert (after.state, after.retries_used, after.not_before) == ("queued", 0, None)


# ---- the queue


def waits(run_id: str = "a", seq: int = 1, **values: object) -> Waiting:
    """A run that waits for the night."""
    rules = values.pop("window", [NIGHT])
    return waiting_of(run(run_id, seq, spec=spec(run_id, window=rules), **values))


def lined_up(queue: Queue, now: float) -> list[str]:
    """Who may start."""
    queue.due(now)
    return [
        run_id for _, level in queue.levels() for bench in level.values() for _, run_id in bench.everything
    ]


def test_a_run_is_in_line_within_its_hours_only() -> None:
    queue = Queue()
    queue.add(waits("b", 2))
    queue.add(waits("a", 1))
    queue.add(waiting_of(run("c", 3)))
    assert lined_up(queue, paris("01T21:59:59")) == ["c"]
    assert queue.next_due() == paris("01T22:00")
    assert lined_up(queue, paris("01T22:00")) == ["a", "b", "c"]
    assert lined_up(queue, paris("02T06:58")) == ["a", "b", "c"], "two minutes are left"
    assert lined_up(queue, paris("02T06:58:01")) == ["c"]
    assert lined_up(queue, paris("02T22:00")) == ["a", "b", "c"]
    queue.remove("a")
    queue.remove("b")
    assert lined_up(queue, paris("03T22:00")) == ["c"]
    assert len(queue) == 1


def test_hours_and_backoff_hold_together() -> None:
    queue = Queue()
    queue.add(waits(not_before=datetime.fromtimestamp(paris("01T23:00"), UTC)))
    assert lined_up(queue, paris("01T22:30")) == []
    assert lined_up(queue, paris("01T23:00")) == ["a"]
    queue.add(waits(not_before=datetime.fromtimestamp(paris("02T06:59"), UTC)))
    assert lined_up(queue, paris("02T06:59")) == []
    assert queue.next_due() == paris("02T22:00")


def test_a_run_that_is_held_is_not_looked_at() -> None:
    queue = Queue()
    queue.add(waits(held=True))
    assert lined_up(queue, paris("01T23:00")) == []
    queue.add(waits())
    assert lined_up(queue, paris("01T23:00")) == ["a"]
    queue.add(waits(held=True))
    assert lined_up(queue, paris("01T23:00")) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_line_is_what_the_hours_say_whatever_happens(seed: int) -> None:
    chance, queue, now = random.Random(seed), Queue(), paris("01T12:00")
    there: dict[str, Waiting] = {}
    rules = [
        [NIGHT],
        [WindowRule(cron="*/15 * * * *", until="13:05", tz="UTC")],
        [WindowRule(hours="12:10-12:14", tz="UTC"), WindowRule(hours="12:16-12:20", tz="Asia/Kathmandu")],
        [WindowRule(hours="22:00-22:01", tz="UTC")],
    ]
    for _ in range(200):
        now += chance.choice([1, 30, 300, 3600])
        run_id = chance.choice("abcdefgh")
        if chance.random() < 0.3:
            queue.remove(run_id)
            there.pop(run_id, None)
        elif chance.random() < 0.6:
            later = chance.choice([None, datetime.fromtimestamp(now + chance.randint(1, 4000), UTC)])
            held = chance.random() < 0.1
            there[run_id] = waits(
                run_id, ord(run_id), window=chance.choice(rules), not_before=later, held=held
            )
            queue.add(there[run_id])
        expected = {
            one.run_id
            for one in there.values()
            if not one.held and (one.not_before or 0) <= now and (one.hours is None or one.hours.admits(now))
        }
        assert set(lined_up(queue, now)) == expected


def test_twenty_thousand_that_wait_for_the_night_cost_nothing_by_day() -> None:
    queue = Queue()
    for seq in range(20_000):
        queue.add(waits(f"r{seq}", seq) if seq < 10 else _like(seq))
    queue.due(paris("01T12:00"))
    assert queue.levels() == []
    assert queue.next_due() == paris("01T22:00")
    assert len(lined_up(queue, paris("01T22:00"))) == 20_000
    assert lined_up(queue, paris("02T07:00")) == []


def _like(seq: int) -> Waiting:
    base = waits()
    return Waiting(f"r{seq}", "n", (0, 0, seq), "ada", "x", base.shape, 0.0, hours=base.hours)


def test_the_planner_says_why() -> None:
    queue, one = Queue(), waits()
    queue.add(one)
    desk = plan(queue, rooms_of([node()], []), Limits(), paris("01T12:00"))
    assert desk.plan.starts == []
    assert desk.plan.blocked == [], "it keeps no node from others"
    assert explain(one, desk).why == (
        "outside its window 22:00-07:00 (Europe/Paris); it opens in 10 h 0 min, at 22:00"
    )
    (start,) = plan(queue, rooms_of([node()], []), Limits(), paris("01T22:00")).plan.starts
    assert start.waiting is one


def test_an_attempt_ends_with_its_window_at_the_latest() -> None:
    assert waits().latest_end(paris("01T22:00")) == paris("02T07:00")
    assert waiting_of(run()).latest_end(0.0) == math.inf
    long = waiting_of(run(spec=spec(max_duration=60, window=[NIGHT])))
    assert long.latest_end(paris("01T22:00")) == paris("01T22:01")
    assert LEAST_S == 2 * GRACE_S
