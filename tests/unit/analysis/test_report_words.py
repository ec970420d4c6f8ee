"""How a report tells numbers and paths."""

from __future__ import annotations

import pytest

from orchestrator.analysis.report.words import duration, measure, short_names


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0, "0 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (18240, "5 h 04 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_measures_line_up() -> None:
    assert [measure(v) for v in (1.5, 0.0, 123.456789, 1e-7, 1e9, None)] == [
        "1.5000", "0.0000", "123.4568", "1e-07", "1e+09", "–",
    ]  # fmt: skip


def test_paths_are_shortened_where_they_stay_apart() -> None:
    assert short_names(["trainer.lr", "trainer.a.width", "trainer.b.width"]) == {
        "trainer.lr": "lr",
        "trainer.a.width": "trainer.a.width",
        "trainer.b.width": "trainer.b.width",
    }
