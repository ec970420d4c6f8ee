"""The shipper over a sink that fails in every way: all of it arrives, once, and nobody waits for another."""

from __future__ import annotations

import random

import pytest

from orchestrator.errors import SetupError
from orchestrator.store.outbox import (
    CreateRun,
    LogCheckpoint,
    SetDescription,
    SetParams,
    SetStatus,
    SetTags,
)
from orchestrator.store.spool import Spool
from orchestrator.store.spool_schema import StoredPoint
from orchestrator.tracking.backoff import Backoff
from orchestrator.tracking.shipper import Shipper
from tests.clocks import TurnedClock
from tests.support import wait_until
from tests.unit.tracking.helpers import FakeSink, point

CREATE = CreateRun(name="n", experiment="e", start_ms=1)
FINISHED = SetStatus(status="FINISHED", time_ms=9)


def shipper(spool: Spool, sink: FakeSink, clock: TurnedClock) -> Shipper:
    return Shipper(spool, lambda: sink, clock, random.Random(1))


def turns(shipping: Shipper, clock: TurnedClock, number: int = 200) -> int:
    """Take turns, moving the clock instead of waiting, until nothing waits; how many that took."""
    for taken in range(number):
        delay = shipping.turn()
        if delay is None:
            return taken
        clock.at += delay
    raise AssertionError(f"still something to do after {number} turns: {shipping.status()}")


def points_of(sink: FakeSink, run_id: str) -> list[tuple[str, int]]:
    return sorted((key, step) for key, step, _, _ in sink.runs[sink.ids[run_id]])


def test_creation_comes_first_then_points_then_tasks(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    spool.add_points("r", 1, [point("a", step) for step in range(2500)])
    spool.enqueue("r", CREATE, SetTags(tags={"a": "b"}), FINISHED)
    turns(shipper(spool, sink, clock), clock)
    assert [number for _, number in sink.sent] == [1000, 1000, 500]
    assert sink.kinds("r") == ["tags", "status"]
    assert points_of(sink, "r") == [("a", step) for step in range(2500)]
    assert spool.mlflow_run("r") == ("1", "m0")


def test_nothing_is_sent_before_the_run_is_created(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    spool.add_points("r", 1, [point("a", 1)])
    assert shipper(spool, sink, clock).turn() is None
    assert sink.sent == []


def test_the_end_is_told_after_the_last_point(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    spool.enqueue("r", CREATE, FINISHED)
    spool.add_points("r", 1, [point("a", step) for step in range(15_000)])
    shipping = shipper(spool, sink, clock)
    assert shipping.turn() == 0.0
    assert sink.kinds("r") == []
    turns(shipping, clock)
    assert len(points_of(sink, "r")) == 15_000
    assert sink.kinds("r") == ["status"]


@pytest.mark.parametrize("seed", range(8))
def test_a_sink_that_fails_at_random_gets_everything_once(
    spool: Spool, clock: TurnedClock, seed: int
) -> None:
    rng = random.Random(seed)
    sink = FakeSink(rng, failing=0.4)
    shipping = shipper(spool, sink, clock)
    expected: dict[str, set[tuple[str, int, int, float]]] = {}
    for beat in range(30):
        run_id = f"r{rng.randrange(3)}"
        spool.enqueue(run_id, CREATE)
        beat_points = [point("a", rng.randrange(200), rng.random()) for _ in range(20)]
        spool.add_points(run_id, 1, beat_points)
        spool.enqueue(run_id, SetTags(tags={f"t{beat}": "x"}))
        if rng.random() < 0.5:
            shipping.turn()
        if rng.random() < 0.2:
            shipping = shipper(spool, sink, clock)  # a crash: all that is known is in the spool
    turns(shipping, clock)
    for run_id, mlflow_run_id in sink.ids.items():
        expected[run_id] = {(p.key, p.step, p.time_ms, p.value) for p in spool.points(run_id)}
        assert sink.runs[mlflow_run_id] == expected[run_id], "verbatim, so that MLflow stores each once"
    assert {tag for _, task in sink.applied if isinstance(task, SetTags) for tag in task.tags} == {
        f"t{beat}" for beat in range(30)
    }
    assert len(sink.runs) == len(sink.ids)


def test_a_crash_after_acceptance_sends_the_same_again(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    spool.enqueue("r", CREATE)
    spool.add_points("r", 1, [point("a", step, step / 3) for step in range(10)])
    sink.break_down = lambda run_id, thing: isinstance(thing, list)
    shipper(spool, sink, clock).turn()
    accepted = set(sink.runs["m0"])
    assert len(accepted) == 10
    sink.break_down = lambda run_id, thing: False
    spool.add_points("r", 2, [point("a", step, 7.0, time_ms=1) for step in range(11)])
    turns(shipper(spool, sink, clock), clock)
    assert sink.runs["m0"] == accepted | {("a", 10, 1, 7.0)}


def test_bad_points_are_found_and_the_others_arrive(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    sink.refuse = lambda run_id, thing: isinstance(thing, StoredPoint) and thing.step in (17, 640)
    spool.enqueue("r", CREATE, FINISHED)
    spool.add_points("r", 1, [point("a", step) for step in range(1000)])
    turns(shipper(spool, sink, clock), clock)
    assert points_of(sink, "r") == [("a", step) for step in range(1000) if step not in (17, 640)]
    assert sink.kinds("r") == ["status"]
    assert spool.backlog().refused_points == 2
    assert len(sink.sent) < 50


def test_a_refused_task_is_recorded_and_passed_over(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    sink.refuse = lambda run_id, thing: isinstance(thing, SetParams)
    spool.enqueue("r", CREATE, SetParams(params={"a": "b"}), SetDescription(text="x"))
    turns(shipper(spool, sink, clock), clock)
    assert sink.kinds("r") == ["description"]
    assert [(failure.task.kind, failure.error) for failure in spool.failures()] == [("params", "bad task")]


def test_a_run_that_always_fails_delays_no_other(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    sink.break_down = lambda run_id, thing: run_id == "bad"
    spool.enqueue("bad", CREATE)
    for run_id in ("good", "fine"):
        spool.enqueue(run_id, CREATE, FINISHED)
        spool.add_points(run_id, 1, [point("a", 1)])
    shipping = shipper(spool, sink, clock)
    shipping.turn()
    assert sink.kinds("good") == sink.kinds("fine") == ["status"]
    assert shipping.status().connected is True
    assert shipping.status().last_error == "HTTP 500"


def test_a_run_that_makes_the_server_hang_goes_last(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    sink.hang = lambda run_id: run_id == "bad"
    for run_id in ("bad", "good"):
        spool.enqueue(run_id, CREATE, FINISHED)
    shipping = shipper(spool, sink, clock)
    delay = shipping.turn()
    assert delay
    assert sink.ids == {}, "after a timeout nothing else is tried in this turn"
    clock.at += delay
    shipping.turn()
    assert sink.kinds("good") == ["status"]


def test_a_stuck_task_does_not_hold_up_its_run_for_ever(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    sink.break_down = lambda run_id, thing: isinstance(thing, SetTags)
    spool.enqueue("r", CREATE, SetTags(tags={"a": "b"}), SetDescription(text="x"), FINISHED)
    shipping = shipper(spool, sink, clock)
    for _ in range(4):
        clock.at += shipping.turn() or 0
    assert sink.kinds("r") == [], "order is kept while there is hope"
    for _ in range(4):
        clock.at += shipping.turn() or 0
    assert sink.kinds("r") == ["description", "status"]
    assert [stored.task.kind for stored in spool.tasks("r")] == ["tags"]
    sink.break_down = lambda run_id, thing: False
    turns(shipping, clock)
    assert sink.kinds("r")[-1] == "tags"


def test_stuck_points_do_not_hold_up_tasks_for_ever(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    sink.break_down = lambda run_id, thing: isinstance(thing, list)
    spool.enqueue("r", CREATE, FINISHED)
    spool.add_points("r", 1, [point("a", 1)])
    shipping = shipper(spool, sink, clock)
    for _ in range(7):
        clock.at += shipping.turn() or 0
    assert sink.kinds("r") == ["status"]
    assert spool.waiting() == ["r"]


def test_a_lost_database_is_told_everything_again(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    spool.enqueue("r", CREATE, SetTags(tags={"a": "b"}))
    spool.add_points("r", 1, [point("a", step) for step in range(10)])
    shipping = shipper(spool, sink, clock)
    turns(shipping, clock)
    sink.lose_everything()
    spool.add_points("r", 1, [point("a", 10)])
    turns(shipping, clock)
    assert points_of(sink, "r") == [("a", step) for step in range(11)]
    assert sink.kinds("r") == ["tags"]


def test_a_run_deleted_in_mlflow_is_parked_until_it_is_restored(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    for run_id in ("r", "other"):
        spool.enqueue(run_id, CREATE)
    shipping = shipper(spool, sink, clock)
    turns(shipping, clock)
    sink.deleted.add(sink.ids["r"])
    for run_id in ("r", "other"):
        spool.add_points(run_id, 1, [point("a", 1)])
    turns(shipping, clock)
    assert points_of(sink, "other") == [("a", 1)]
    assert "deleted" in spool.parked()["r"]
    status = shipping.status()
    assert (status.pending_points, status.parked_runs, status.refused_points) == (0, 1, 0)
    sink.deleted.clear()
    clock.at += 601
    turns(shipping, clock)
    assert points_of(sink, "r") == [("a", 1)]


def test_a_refused_creation_parks_the_run(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    spool.enqueue("r", CREATE)
    sink.refuse = lambda run_id, thing: thing == "e"
    shipping = shipper(spool, sink, clock)
    turns(shipping, clock)
    assert "bad name" in spool.parked()["r"]
    sink.refuse = lambda run_id, thing: False
    clock.at += 601
    turns(shipping, clock)
    assert spool.mlflow_run_id("r") == "m0"


def test_refused_parameters_do_not_keep_the_run_away(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    sink.refuse = lambda run_id, thing: isinstance(thing, CreateRun)
    spool.enqueue("r", CREATE, FINISHED)
    spool.add_points("r", 1, [point("a", 1)])
    turns(shipper(spool, sink, clock), clock)
    assert points_of(sink, "r") == [("a", 1)]
    assert sink.kinds("r") == ["status"]
    assert [failure.task.kind for failure in spool.failures("r")] == ["create"]


def test_a_checkpoint_takes_the_points_that_were_measured(spool: Spool, clock: TurnedClock) -> None:
    """A metric of a logged model is stored as a point of the run too: it must be the same point."""
    sink = FakeSink()
    spool.enqueue("r", CREATE)
    spool.add_points("r", 1, [point("val/loss", 100, 1.5, time_ms=7), point("val/loss", 101, 1.4)])
    checkpoint = LogCheckpoint(
        step=100,
        attempt=1,
        uri="u",
        sha256="s",
        size=1,
        time_ms=99,
        metrics={"val/loss": 1.50001, "acc": 0.5},
    )
    spool.enqueue("r", checkpoint)
    turns(shipper(spool, sink, clock), clock)
    spool.add_points("r", 2, [point("acc", 100, 0.7)])
    turns(shipper(spool, sink, clock), clock)
    assert sorted(sink.runs["m0"]) == [
        ("acc", 100, 99, 0.5),
        ("val/loss", 100, 7, 1.5),
        ("val/loss", 101, 1_700_000_000_101, 1.4),
    ]


def test_an_unexpected_error_in_one_run_does_not_stop_the_others(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()

    def explode(run_id: str, thing: object) -> bool:
        if run_id == "bad":
            raise RuntimeError("bug")
        return False

    sink.break_down = explode
    for run_id in ("bad", "good"):
        spool.enqueue(run_id, CREATE, FINISHED)
    shipping = shipper(spool, sink, clock)
    assert (shipping.turn() or 0) > 0
    assert sink.kinds("good") == ["status"]
    assert "bug" in (shipping.status().last_error or "")


def test_a_sink_that_cannot_be_made_is_reported_and_tried_again(spool: Spool, clock: TurnedClock) -> None:
    sink, missing = FakeSink(), [True]

    def make() -> FakeSink:
        if missing:
            raise SetupError("mlflow is not installed")
        return sink

    spool.enqueue("r", CREATE)
    shipping = Shipper(spool, make, clock, random.Random(1))
    delay = shipping.turn()
    assert shipping.status().last_error == "mlflow is not installed"
    assert delay
    missing.clear()
    clock.at += delay
    turns(shipping, clock)
    assert shipping.status().last_error is None


def test_backoff_doubles_to_15_seconds_with_jitter() -> None:
    clock = TurnedClock()
    backoff = Backoff(clock, random.Random(3))
    waits = []
    for _ in range(9):
        backoff.failed("x")
        waits.append(backoff.wait_s("x"))
    for wait, full in zip(waits, [0.5, 1, 2, 4, 8, 15, 15, 15, 15], strict=True):
        assert full / 2 <= wait <= full
    assert len(set(waits)) == len(waits)
    assert backoff.wait_s("y") == 0
    backoff.worked("x")
    assert (backoff.wait_s("x"), backoff.failures("x")) == (0, 0)


def test_status_tells_how_far_behind(spool: Spool, clock: TurnedClock) -> None:
    sink = FakeSink()
    shipping = shipper(spool, sink, clock)
    assert shipping.status().connected is None
    spool.enqueue("r", CREATE)
    now_ms = int(clock.now().timestamp() * 1000)
    spool.add_points("r", 1, [point("a", 1, time_ms=now_ms - 5000)])
    sink.down = True
    shipping.turn()
    status = shipping.status()
    assert (status.connected, status.pending_points, status.pending_tasks) == (False, 1, 1)
    assert status.oldest_pending_s == pytest.approx(5.0)
    assert status.last_error == "connection refused"
    sink.down = False
    clock.at += 20
    turns(shipping, clock)
    status = shipping.status()
    assert (status.connected, status.pending_points, status.oldest_pending_s, status.last_error) == (
        True,
        0,
        0,
        None,
    )


def test_the_thread_sends_within_a_second_and_stops(spool: Spool) -> None:
    sink = FakeSink()
    shipping = Shipper(spool, lambda: sink)
    shipping.start()
    try:
        spool.enqueue("r", CREATE)
        spool.add_points("r", 1, [point("a", 1)])
        wait_until(lambda: not spool.waiting(), 1.0, lambda: str(shipping.status()), every=0.01)
        sink.release.clear()  # it hangs: adding points waits for nobody
        for step in range(2, 50):
            spool.add_points("r", 1, [point("a", step)])
        assert len(spool.points("r")) == 49
        sink.release.set()
        wait_until(lambda: not spool.waiting(), 2.0, lambda: str(shipping.status()), every=0.01)
    finally:
        assert shipping.stop(5)
    assert points_of(sink, "r") == [("a", step) for step in range(1, 50)]
