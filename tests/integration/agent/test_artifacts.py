from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent import artifacts as module
from orchestrator.agent.artifacts import Artifacts
from orchestrator.agent.link import Link
from tests.integration.agent.controller import TOKEN, StandInController
from tests.support import wait_until


class Setting:
    def __init__(self, root: Path) -> None:
        self.controller = StandInController()
        self.controller.start()
        self.folder = root / "artifacts"
        self.folder.mkdir()
        (root / "token").write_text(TOKEN)
        self.events: list[str] = []
        self.artifacts = Artifacts(
            Link(self.controller.url, root / "token"), "/v1/x/artifacts", self.folder, self.events.append
        )

    @property
    def sent(self) -> dict[str, bytes]:
        return self.controller.artifacts


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    one = Setting(tmp_path)
    yield one
    one.artifacts.finish()
    one.artifacts.complete.set()
    one.controller.stop()


def test_files_that_stand_still_are_sent_while_the_program_runs(setting: Setting) -> None:
    (setting.folder / "deep" / "er").mkdir(parents=True)
    (setting.folder / "deep" / "er" / "plot 1.png").write_bytes(b"png")
    setting.artifacts.start()
    wait_until(lambda: setting.sent == {"deep/er/plot%201.png": b"png"}, 5)


def test_a_file_that_changes_is_sent_again(setting: Setting) -> None:
    file = setting.folder / "sample.txt"
    file.write_text("one")
    setting.artifacts.start()
    wait_until(lambda: setting.sent.get("sample.txt") == b"one", 5)
    file.write_text("other")
    setting.artifacts.finish()
    wait_until(setting.artifacts.complete.is_set, 5)
    assert setting.sent["sample.txt"] == b"other"


def test_links_are_not_followed(setting: Setting) -> None:
    (setting.folder / "stolen").symlink_to(setting.folder.parent / "token")
    (setting.folder / "folder").symlink_to(setting.folder.parent)
    os.mkfifo(setting.folder / "pipe")
    (setting.folder / "good").write_text("x")
    setting.artifacts.start()
    setting.artifacts.finish()
    wait_until(setting.artifacts.complete.is_set, 5)
    assert set(setting.sent) == {"good"}


def test_a_file_that_is_too_large_is_said(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 10)
    (setting.folder / "large").write_bytes(bytes(11))
    (setting.folder / "small").write_bytes(bytes(10))
    setting.artifacts.start()
    setting.artifacts.finish()
    wait_until(setting.artifacts.complete.is_set, 5)
    assert set(setting.sent) == {"small"}
    assert len(setting.events) == 1


def test_artifacts_wait_for_a_controller_that_is_away(setting: Setting) -> None:
    setting.controller.stop()
    (setting.folder / "a").write_text("x")
    setting.artifacts.start()
    setting.artifacts.finish()
    assert not setting.artifacts.complete.wait(0.3)
    setting.controller.start()
    wait_until(setting.artifacts.complete.is_set, 5)
    assert setting.sent == {"a": b"x"}
