from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.metrics import CommitPoints, MetricsReader, parse_line
from orchestrator.messages_agent import Point


def line(step: int, **metrics: float) -> bytes:
    return json.dumps({"step": step, "time": 1000 + step, "metrics": metrics}).encode() + b"\n"


def test_points_keep_step_time_and_value() -> None:
    assert list(parse_line(line(3, loss=1.5, lr=0.1))) == [
        Point(key="loss", step=3, time_ms=1003, value=1.5),
        Point(key="lr", step=3, time_ms=1003, value=0.1),
    ]


def test_values_that_json_and_mlflow_cannot_carry_become_a_flag() -> None:
    points = list(parse_line(b'{"step": 1, "time": 2, "metrics": {"a": NaN, "b": -Infinity, "c": 1}}'))
    assert [(p.key, p.value) for p in points] == [("a/nonfinite", 1.0), ("b/nonfinite", 1.0), ("c", 1.0)]


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"[1]",
        b'{"step": 1, "time": 2}',
        b'{"step": -1, "time": 2, "metrics": {"a": 1}}',
        b'{"step": 1.5, "time": 2, "metrics": {"a": 1}}',
        b'{"step": true, "time": 2, "metrics": {"a": 1}}',
        b'{"step": 1e400, "time": 2, "metrics": {"a": 1}}',
        b'{"step": 1, "time": 2, "metrics": {"a": "x"}}',
        b'{"step": 1, "time": 2, "metrics": {"": 1}}',
        b'{"step": 1, "time": 2, "metrics": {"a": 1' + b"0" * 400 + b"}}",
        b"[" * 100_000,
        b'{"step": 1, "time": 2, "metrics": {"' + b"k" * 300 + b'": 1}}',
        b"\xff\xfe{}",
        b'{"step": 1, "time": 2, "metrics": {"\\ud800": 1}}',
    ],
)
def test_a_malformed_line_is_counted_and_skipped(tmp_path: Path, bad: bytes) -> None:
    file = tmp_path / "m"
    file.write_bytes(line(1, a=1) + bad + b"\n" + line(2, a=2))
    reader = MetricsReader(file)
    assert [p.step for p in reader.read_all()] == [1, 2]
    assert reader.malformed == 1


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "m"
    whole = line(1, a=1)
    reader = MetricsReader(file)
    assert reader.read(10) == []
    file.write_bytes(whole[:10])
    assert reader.read(10) == []
    file.write_bytes(whole)
    assert len(reader.read(10)) == 1
    assert reader.read(10) == []


def test_a_file_that_begins_anew_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.write_bytes(line(1, a=1) + line(2, a=1))
    reader = MetricsReader(file)
    assert len(reader.read(10)) == 2
    file.write_bytes(line(3, a=1))
    assert [p.step for p in reader.read(10)] == [3]


def test_a_line_without_an_end_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.write_bytes(b"x" * (3 << 20) + b"\n" + line(5, a=1))
    reader = MetricsReader(file)
    assert [p.step for p in reader.read_all()] == [5]
    assert len(reader.example) == 200


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(1, 7))
def test_reading_in_pieces_loses_and_repeats_nothing(
    tmp_path_factory: pytest.TempPathFactory, widths: list[int], limit: int
) -> None:
    file = tmp_path_factory.mktemp("m") / "m"
    file.write_bytes(
        b"".join(line(n, **{f"k{i}": n for i in range(width)}) for n, width in enumerate(widths))
    )
    reader = MetricsReader(file)
    found: list[Point] = []
    while piece := reader.read(limit):
        found += piece
    assert [(p.step, p.key) for p in found] == [(n, f"k{i}") for n, w in enumerate(widths) for i in range(w)]


def steps(data: bytes) -> list[int]:
    return [json.loads(one)["step"] for one in data.splitlines()]


def test_a_commit_takes_what_was_measured_up_to_its_step(tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.write_bytes(line(1, a=1) + line(3, a=1) + line(2, a=1))
    points = CommitPoints(file)
    assert steps(points.until(2)) == [1, 2]
    points.taken()
    with file.open("ab") as more:
        more.write(line(2, late=1) + line(4, a=1))
    assert steps(points.until(4)) == [3, 2, 4]


def test_points_of_a_failed_commit_come_with_the_next(tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.write_bytes(line(1, a=1) + line(2, a=1))
    points = CommitPoints(file)
    assert steps(points.until(1)) == [1]
    assert steps(points.until(2)) == [1, 2]
    points.taken()
    assert points.until(2) == b""


def test_a_commit_carries_a_bounded_number_of_points(tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.write_bytes(b"".join(line(n, a=1) for n in range(100)))
    points = CommitPoints(file, limit=2000)
    found: list[int] = []
    while data := points.until(100):
        assert len(data) <= 2000
        found += steps(data)
        points.taken()
    assert found == list(range(100))
