"""The file of targets: who may read it, what it may say, and that it never says its secrets elsewhere."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orchestrator.domain.notice import USUAL, NoticeKind
from orchestrator.errors import ConflictError, NotFoundError, SetupError
from orchestrator.notify.targets import Target, TargetFile, free_name, masked

SECRET = "xoxb-hunter2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "notify.yaml"


def written(path: Path, text: str, mode: int = 0o600) -> TargetFile:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return TargetFile(path)


def test_targets_come_back_and_nobody_else_can_read_them(path: Path) -> None:
    file = TargetFile(path)
    assert file.read() == ()
    first = Target(name="phone", url=f"ntfy://{SECRET}", on=(NoticeKind.FAILED,), runs=("lr-*",))
    second = Target(name="mail", url_env="MAIL_URL")
    file.add(first)
    file.add(second)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert file.read() == TargetFile(path).read() == (first, second)
    assert second.on == USUAL
    with pytest.raises(ConflictError, match="called phone"):
        file.add(first)
    assert file.remove("phone") == first
    assert TargetFile(path).read() == (second,)
    with pytest.raises(NotFoundError) as caught:
        file.remove("phone")
    assert caught.value.remedy == "there are: mail"
    file.remove("mail")
    assert TargetFile(path).read() == ()


def test_a_change_by_hand_counts(path: Path) -> None:
    file = written(path, "- {name: a, url: 'ntfy://x'}\n")
    assert [one.name for one in file.read()] == ["a"]
    written(path, "- {name: a, url: 'ntfy://x'}\n- {name: b, url: 'ntfy://x', on: [best]}\n")
    assert [one.name for one in file.read()] == ["a", "b"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_can_read_is_not_used(path: Path, mode: int) -> None:
    file = written(path, "- {name: a, url: 'ntfy://x'}\n", mode)
    with pytest.raises(SetupError, match="others can read") as caught:
        file.read()
    assert caught.value.remedy is not None
    assert f"chmod 600 {path}" in caught.value.remedy
    path.chmod(0o600)
    assert len(file.read()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"- name: a\n  url: 'ntfy://{SECRET}\n", "notify.yaml:"),
        (f"- {{name: A b, url: 'ntfy://{SECRET}'}}\n", "0.name: "),
        (f"- {{name: a, url: 'ntfy://{SECRET}', url_env: X}}\n", "either url or url_env"),
        (f"- {{name: a, urll: 'ntfy://{SECRET}'}}\n", "0.urll: "),
        (f"- {{name: a, url: ['ntfy://{SECRET}']}}\n", "0.url: "),
        (f"- {{name: a, url: 'ntfy://{SECRET}', on: [success]}}\n", "0.on.0: "),
        (f"- {{name: a, url: 'x://{SECRET}'}}\n- {{name: a, url: 'x://{SECRET}'}}\n", "same name"),
        (f"url: ntfy://{SECRET}\n", "valid tuple"),
        ("\x00\x01", "is not YAML"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(path: Path, text: str, told: str) -> None:
    with pytest.raises(SetupError) as caught:
        written(path, text).read()
    assert told in str(caught.value)
    assert SECRET not in f"{caught.value} {caught.value.__cause__} {caught.value.remedy}"


def test_an_address_from_the_environment(path: Path) -> None:
    target = Target(name="a", url_env="HOOK")
    assert target.address({"HOOK": " json://x/y\n"}) == "json://x/y"
    assert target.shown == "$HOOK"
    with pytest.raises(SetupError, match="HOOK is not set in the controller's environment"):
        target.address({})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"json://user:{SECRET}@127.0.0.1:80/{SECRET}?x={SECRET}", "json://127.0.0.1:80/…"),
        (f"mailtos://ada:{SECRET}@gmail.com", "mailtos://gmail.com/…"),
        (f"mmosts://chat.example.org/{SECRET}", "mmosts://chat.example.org/…"),
        (f"slack://{SECRET}/{SECRET}/{SECRET}", "slack://…"),
        (f"ntfy://{SECRET}", "ntfy://…"),
        (f"ntfys://{SECRET}@ntfy.example.org/{SECRET}", "ntfys://ntfy.example.org/…"),
        (f"tgram://{SECRET}/12", "tgram://…"),
        (f"https://hooks.slack.com/services/{SECRET}", "https://…"),
        (SECRET, "…"),
    ],
)
def test_masks(url: str, shown: str) -> None:
    assert masked(url) == shown
    assert SECRET not in repr(Target(name="a", url=url))


def test_names_for_new_ones() -> None:
    there = [Target(name="ntfy", url="x"), Target(name="ntfy-2", url="x")]
    assert free_name(there, "ntfy://topic") == "ntfy-3"
    assert free_name([], "slack://a/b/c") == "slack"
    assert free_name([], None) == "target"


def test_who_wants_what() -> None:
    target = Target(
        name="a", url="x", on=(NoticeKind.FAILED,), runs=("lr-*", "base"), experiments=("shake*",)
    )
    assert target.wants(NoticeKind.FAILED, "lr-3", "shakespeare")
    assert target.wants(NoticeKind.FAILED, "base", "shakespeare")
    assert not target.wants(NoticeKind.FINISHED, "lr-3", "shakespeare")
    assert not target.wants(NoticeKind.FAILED, "wd-3", "shakespeare")
    assert not target.wants(NoticeKind.FAILED, "lr-3", "bible")
