"""Curves in a terminal."""

from __future__ import annotations

import pytest

from orchestrator.cli.plot import render_curve
from orchestrator.messages import PointView


def line(values: list[float], attempts: list[int] | None = None, every: int = 10) -> list[PointView]:
    numbers = attempts or [1] * len(values)
    return [
        PointView(key="loss", step=i * every, time_ms=0, value=value, attempt=number)
        for i, (value, number) in enumerate(zip(values, numbers, strict=True))
    ]


def drawing(text: str) -> list[str]:
    """The cells right of the axis."""
    return [row[9:] for row in text.splitlines() if row[8:9] in ("┤", "│")]


def test_a_falling_curve_falls() -> None:
    rows = drawing(render_curve(line([4 - i / 50 for i in range(100)]), 60, 8))
    assert len(rows) == 8
    first = [next((i for i, cell in enumerate(row) if cell.strip()), 99) for row in rows]
    assert first == sorted(first)
    assert len(set(first)) == 8


def test_the_axes_name_the_ends() -> None:
    text = render_curve(line([4.0, 3.0, 1.5]), 60, 6)
    labels = [row[:8].strip() for row in text.splitlines()]
    assert labels[0] == "4"
    assert labels[5] == "1.5"
    assert text.splitlines()[-1].split() == ["0", "20"]


def test_a_handover_is_marked_where_it_happened() -> None:
    points = line([2.0] * 101, [1] * 51 + [2] * 50)
    text = render_curve(points, 9 + 50, 6, {1: "laptop", 2: "gpu"})
    column = {row.index("┊") for row in drawing(text) if "┊" in row}
    assert len(column) == 1
    assert 24 <= column.pop() <= 26
    assert "┴" in text
    assert text.splitlines()[-1].split() == ["laptop", "gpu"]


def test_a_late_point_of_an_old_attempt_is_no_handover() -> None:
    text = render_curve(line([2.0] * 6, [1, 1, 2, 1, 2, 2]), 60, 6, {1: "a", 2: "b"})
    assert text.count("┴") == 2


@pytest.mark.parametrize(("width", "height"), [(80, 12), (20, 3), (5, 1), (200, 40)])
def test_it_keeps_to_its_place(width: int, height: int) -> None:
    text = render_curve(
        line([float(i % 7) for i in range(500)]), width, height, {1: "a-node-with-a-long-name"}
    )
    assert max(map(len, text.splitlines())) <= max(width, 19)
    assert len(drawing(text)) == max(3, height)


def test_many_points_become_their_mean() -> None:
    noisy = line([1.0 + (i % 2) for i in range(20_000)], every=1)
    rows = [row for row in drawing(render_curve(noisy, 60, 9)) if row.strip()]
    assert len(rows) == 1


def test_few_points() -> None:
    assert render_curve([], 60, 8) == "no points"
    for points in (line([3.0]), line([3.0, 3.0])):
        text = render_curve(points, 60, 9)
        assert [row[:8].strip() for row in text.splitlines() if row[:8].strip()] == ["3"]
        assert any(row.strip() for row in drawing(text))


def test_the_order_of_points_does_not_matter() -> None:
    points = line([4.0, 3.0, 2.0, 1.0], [1, 1, 2, 2])
    assert render_curve(points[::-1], 60, 8, {1: "a", 2: "b"}) == render_curve(
        points, 60, 8, {1: "a", 2: "b"}
    )
