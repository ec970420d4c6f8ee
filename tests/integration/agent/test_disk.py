"""What is done and said where a node's disk is full."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.agent.disk import FULL, DiskWatch
from tests.clocks import TurnedClock


def test_room_is_made_before_anything_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_frsize=1, f_bavail=FULL)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    said: list[str] = []
    kept = [2 * FULL]
    clock = TurnedClock()

    def make_room() -> None:
        disk.f_bavail += kept.pop() if kept else 0

    watch = DiskWatch(tmp_path, make_room, said.append, clock)
    assert not watch.look()
    disk.f_bavail = 0
    assert not watch.look(), "looked a moment ago"
    assert not watch.look(now=True)
    assert (kept, said) == ([], [])
    disk.f_bavail = 0
    clock.sleep(2.0)
    assert watch.look()
    assert watch.look(now=True)
    disk.f_bavail = FULL
    assert not watch.look(now=True)
    full, again = said
    assert " is full: " in full
    assert again.endswith("has room again")
