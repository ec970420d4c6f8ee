"""`orch report` writes the page that the controller makes."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Orch
from tests.unit.cli.fake import FakeController, detail


@pytest.fixture(autouse=True)
def _here(fake: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, and an empty folder to write to."""
    fake.add(detail("aaaa0001", "laptop"))
    fake.add(detail("bbbb0002", "pc"))
    monkeypatch.chdir(tmp_path)


def test_it_is_written_beside_where_it_was_asked_for(orch: Orch, tmp_path: Path) -> None:
    done = orch("report", "aaaa0001", "bbbb0002")
    assert (done.code, done.out) == (0, "wrote report-aaaa0001-bbbb0002.html (0.0 MB)\n")
    page = (tmp_path / "report-aaaa0001-bbbb0002.html").read_text(encoding="utf-8")
    assert "<title>aaaa0001 bbbb0002 – ü</title>" in page


def test_where_it_goes_can_be_said(orch: Orch, tmp_path: Path) -> None:
    done = orch("report", "aaaa0001", "-o", "x.html", "--json")
    assert done.json == {"file": "x.html", "bytes": (tmp_path / "x.html").stat().st_size}
    assert orch("report", "aaaa0001", "-o", "-").out.startswith("<!doctype html>")
    assert [file.name for file in tmp_path.glob("*.html")] == ["x.html"]


def test_it_is_opened_where_that_is_wanted(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    orch("report", "aaaa0001", "--open")
    assert opened == [(tmp_path / "report-aaaa0001.html").as_uri()]


def test_what_cannot_be_written_or_found_is_said(orch: Orch, tmp_path: Path) -> None:
    done = orch("report", "aaaa0001", "-o", "nowhere/x.html")
    assert done.code == 4
    assert "cannot write nowhere/x.html: No such file or directory" in done.err
    assert orch("report", "nobody").code == 3
    assert list(tmp_path.glob("*.html")) == []
