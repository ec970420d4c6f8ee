"""Values and listings as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.render import Column
from tests.unit.cli.fake import NOW


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "just now"),
        (4, "just now"),
        (45, "45 s ago"),
        (60, "1 min ago"),
        (59 * 60 + 59, "59 min ago"),
        (3600, "1 h ago"),
        (47 * 3600, "1 d ago"),
        (6 * 86400, "6 d ago"),
    ],
)
def test_ago(seconds: float, text: str) -> None:
    assert render.ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_long_ago_is_a_date_and_never_is_nothing() -> None:
    assert render.ago(NOW - timedelta(days=40), NOW).startswith("2026-01-")
    assert render.ago(None, NOW) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0:00"),
        (59.6, "1:00"),
        (83, "1:23"),
        (3723, "1:02:03"),
        (90061, "1d 01:01:01"),
        (-1, "0:00"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (9_800_000, "9.3 MiB"),
        (8 * 2**30, "8.0 GiB"),
        (2**40, "1.0 TiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (2.0, "2"),
        (1_536_000, "1,536,000"),
        (1.88571, "1.886"),
        (3e-5, "3e-05"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert render.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (12.0, "12 tok/s"), (21_400, "21.4k tok/s"), (1.54e6, "1.5M tok/s")]
)
def test_rates(value: float | None, text: str) -> None:
    assert render.rate(value) == text


def test_an_instant_of_today_is_a_time() -> None:
    assert len(render.clock(NOW, NOW + timedelta(minutes=1))) == 8
    assert len(render.clock(NOW - timedelta(days=3), NOW)) == 16


COLUMNS = [Column("ID"), Column("NAME", least=5), Column("N", right=True)]


def test_columns_line_up() -> None:
    text = render.table(COLUMNS, [["a", "one", "1"], ["bbb", "three", "1000"]], 80).plain
    assert text.splitlines() == ["ID   NAME      N", "a    one       1", "bbb  three  1000"]


def test_long_cells_are_cut_only_as_far_as_needed() -> None:
    text = render.table(COLUMNS, [["a", "a-very-long-name", "1000"]], 20).plain
    assert text.splitlines() == ["ID  NAME           N", "a   a-very-lo…  1000"]
    narrow = render.table(COLUMNS, [["a", "a-very-long-name", "1000"]], 5).plain
    assert "a-ve…" in narrow


def test_wide_characters_count_as_two_cells() -> None:
    lines = render.table(COLUMNS, [["a", "日本語日本語日本語", "7"]], 20).plain.splitlines()
    assert Text(lines[1]).cell_len == 20


def test_a_short_row_runs_to_the_end() -> None:
    rows = [["a", "why it waits, at length"], ["b", "x", "1"]]
    assert render.table(COLUMNS, rows, 60).plain.splitlines()[1] == "a   why it waits, at length"
    assert render.table(COLUMNS, rows, 12).plain.splitlines()[1] == "a   why it …"


def test_fields_without_a_value_are_left_out() -> None:
    assert render.fields([("a", "1"), ("long", "-"), ("bb", Text("2")), ("c", "")]).plain == "a   1\nbb  2"


def test_control_characters_become_blanks() -> None:
    assert render.one_line(" a\nb\x1b[31m\tc\u202e ") == "a b [31m c"


def test_a_wrapped_column_goes_on_below_itself() -> None:
    columns = [Column("POOL"), Column("NAME", least=3), Column("WHY", wrap=True)]
    why = "pool laptop has no room: laptop has 0 of 1 CPUs free"
    assert render.table(columns, [["a", "b", why], ["cc", "d", "fits"]], 40).plain.splitlines() == [
        "POOL  NAME  WHY",
        "a     b     pool laptop has no room:",
        "            laptop has 0 of 1 CPUs free",
        "cc    d     fits",
    ]
    narrow = render.table(columns, [["a", "a-long-name", why]], 40).plain.splitlines()
    assert narrow[1].startswith("a     a-long-…  pool laptop has no")
    assert max(map(len, narrow)) <= 40
