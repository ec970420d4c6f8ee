"""Points: the first one wins, nothing acknowledged is lost, reading is quick."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SetupError, StoreUnavailableError
from orchestrator.messages_agent import Point
from orchestrator.store.outbox import tracking_key
from orchestrator.store.spool import Spool
from tests.unit.tracking.helpers import point


def test_first_one_wins(spool: Spool) -> None:
    assert spool.add_points("r", 1, [point("loss", 5, 1.0)]) == 1
    assert spool.add_points("r", 2, [point("loss", 5, 2.0), point("loss", 6, 3.0)]) == 1
    found = [(p.step, p.value, p.attempt) for p in spool.points("r")]
    assert found == [(5, 1.0, 1), (6, 3.0, 2)]


def test_first_one_of_a_beat_wins(spool: Spool) -> None:
    assert spool.add_points("r", 1, [point("loss", 5, 1.0), point("loss", 5, 2.0)]) == 1
    assert spool.latest("r") == {"loss": (5, 1.0)}


def test_same_step_of_other_keys_and_runs_is_another_point(spool: Spool) -> None:
    assert spool.add_points("a", 1, [point("x", 1), point("y", 1)]) == 2
    assert spool.add_points("b", 1, [point("x", 1)]) == 1
    assert spool.keys("a") == ["x", "y"]
    assert spool.keys("none") == []


def test_latest_is_the_highest_step_whatever_came_last(spool: Spool) -> None:
    spool.add_points("r", 1, [point("loss", 30, 3.0), point("loss", 10, 1.0), point("acc", 1, 0.5)])
    spool.add_points("r", 1, [point("loss", 20, 2.0)])
    assert spool.latest("r") == {"loss": (30, 3.0), "acc": (1, 0.5)}
    assert spool.latest_many(["r", "none"], ["loss"]) == {"r": {"loss": (30, 3.0)}}


def test_points_are_chosen_by_key_and_step(spool: Spool) -> None:
    spool.add_points("r", 1, [point(key, step) for step in range(10) for key in ("a", "b")])
    assert [(p.key, p.step) for p in spool.points("r", after_step=8)] == [("a", 9), ("b", 9)]
    assert [p.step for p in spool.points("r", keys=["b"], limit=3)] == [0, 1, 2]
    assert spool.points("r", keys=[]) == []


def test_not_finite_values_are_flags(spool: Spool) -> None:
    values = [point("a", 1, math.nan), point("b", 1, math.inf), point("c", 1, -math.inf)]
    assert spool.add_points("r", 1, values) == 3
    assert {p.key: p.value for p in spool.points("r")} == {f"{key}/nonfinite": 1.0 for key in "abc"}


def test_numbers_beyond_64_bits_are_dropped_and_the_others_kept(spool: Spool) -> None:
    assert (
        spool.add_points("r", 1, [point("a", 2**63), point("a", 1, time_ms=-(2**63) - 1), point("a", 2)]) == 1
    )
    assert spool.latest("r") == {"a": (2, 1.0)}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train/loss", "train/loss"),
        ("größe (m²)", "größe _m²_"),
        ("/a//b/../c/.", "a/b/_/c"),
        ("", "_"),
        ("///", "_"),
        ("a\x00b\n", "a_b_"),
        ("x" * 300, "x" * 250),
        ("x" * 249 + "/y", "x" * 249),
    ],
)
def test_keys_are_made_acceptable(key: str, expected: str) -> None:
    assert tracking_key(key) == expected
    assert tracking_key(expected) == expected


def test_keys_that_become_equal_are_one_series(spool: Spool) -> None:
    assert spool.add_points("r", 1, [point("a@b", 1, 1.0), point("a#b", 1, 2.0)]) == 1
    assert spool.latest("r") == {"a_b": (1, 1.0)}
    assert [p.value for p in spool.points("r", keys=["a@b"])] == [1.0]


Beats = st.lists(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(1, 3)), max_size=6), max_size=8
)


@given(beats=Beats, data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_and_repetition_of_beats_gives_one_point_each(
    tmp_path_factory: pytest.TempPathFactory, beats: list[list[tuple[str, int, int]]], data: st.DataObject
) -> None:
    repeated = data.draw(st.permutations(beats + beats))
    spool = Spool(tmp_path_factory.mktemp("s") / "p.db")
    expected: dict[tuple[str, int], float] = {}
    for beat in repeated:
        for key, step, value in beat:
            expected.setdefault((key, step), float(value))
        spool.add_points("r", 1, [point(key, step, value) for key, step, value in beat])
    stored = spool.points("r")
    assert {(p.key, p.step): p.value for p in stored} == expected
    assert len(stored) == len(expected)
    assert len(spool.unshipped("r", 1000)) == len(expected)
    spool.close()


def test_four_threads_write_the_same_points_once(spool: Spool) -> None:
    added = [0] * 4

    def write(number: int) -> None:
        for first in range(0, 400, 20):
            beat = [point(f"k{step % 3}", step, number) for step in range(first, first + 20)]
            added[number] += spool.add_points("r", number, beat)
            spool.latest("r")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sum(added) == 400
    assert len(spool.points("r")) == 400
    assert [p.seq for p in spool.unshipped("r", 1000)] == sorted(p.seq for p in spool.unshipped("r", 1000))


def test_shipping_moves_the_cursor_in_order_of_arrival(spool: Spool) -> None:
    spool.add_points("r", 1, [point("a", step) for step in (3, 1, 2)])
    first = spool.unshipped("r", 2)
    assert [p.step for p in first] == [3, 1]
    assert spool.unshipped("r", 2) == first, "unacknowledged points are handed out again, unchanged"
    spool.mark_shipped("r", first[-1].seq)
    assert [p.step for p in spool.unshipped("r", 2)] == [2]
    spool.mark_shipped("r", first[0].seq)
    assert [p.step for p in spool.unshipped("r", 2)] == [2], "the cursor never goes back"
    spool.add_points("r", 1, [point("a", 0)])
    assert [p.step for p in spool.unshipped("r", 9)] == [2, 0]
    assert spool.waiting() == ["r"]
    spool.mark_shipped("r", spool.unshipped("r", 9)[-1].seq)
    assert spool.waiting() == []
    spool.add_points("r", 1, [point("a", 0)])
    assert spool.waiting() == []


def test_listeners_hear_of_new_points_only(spool: Spool) -> None:
    heard: list[int] = []
    spool.subscribe(lambda: heard.append(1))
    spool.add_points("r", 1, [point("a", 1)])
    spool.add_points("r", 1, [point("a", 1)])
    spool.add_points("r", 1, [])
    assert heard == [1]


def test_backlog_counts_and_ages(spool: Spool) -> None:
    assert spool.backlog().oldest_ms is None
    spool.add_points("a", 1, [point("x", 1, time_ms=500), point("x", 2, time_ms=400)])
    spool.add_points("b", 1, [point("x", 1, time_ms=300)])
    assert (spool.backlog().points, spool.backlog().oldest_ms) == (3, 300)
    spool.mark_shipped("b", spool.unshipped("b", 9)[-1].seq)
    spool.mark_refused(spool.unshipped("a", 1)[0].seq, "no")
    assert (spool.backlog().points, spool.backlog().oldest_ms, spool.backlog().refused_points) == (2, 400, 1)


def test_it_all_survives_reopening(tmp_path: Path) -> None:
    first = Spool(tmp_path / "p.db")
    first.add_points("r", 1, [point("a", 1), point("a", 2)])
    first.mark_shipped("r", first.unshipped("r", 1)[0].seq)
    first.close()
    with pytest.raises(StoreUnavailableError):
        first.latest("r")
    second = Spool(tmp_path / "p.db")
    assert [p.step for p in second.unshipped("r", 9)] == [2]
    second.close()


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Spool(tmp_path / "p.db").close()
    connection = sqlite3.connect(tmp_path / "p.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(SetupError, match="later version"):
        Spool(tmp_path / "p.db")


def test_durability_settings(spool: Spool) -> None:
    with spool._db.read() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: a commit survives loss of power"


def test_listing_is_quick_on_100_000_points(spool: Spool) -> None:
    """200 runs x 5 metrics x 100 steps; measured 2 ms, a scan of all points would take 20 times as long."""
    for run in range(200):
        points = [Point(key=f"k{n % 5}", step=n // 5, time_ms=n, value=1.0) for n in range(500)]
        spool.add_points(f"r{run}", 1, points)
    runs = [f"r{run}" for run in range(200)]
    spool.latest_many(runs, ["k0", "k1"])
    best = min(_seconds(lambda: spool.latest_many(runs, ["k0", "k1"])) for _ in range(5))
    assert best < 0.03
    with spool._db.read() as db:
        plan = db.execute("EXPLAIN QUERY PLAN SELECT MAX(step) FROM points WHERE series = 1").fetchall()
    assert "SEARCH points USING COVERING INDEX" in str(plan)


def _seconds(action: object) -> float:
    assert callable(action)
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
