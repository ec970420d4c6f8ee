"""`orch notify` against the real API, with real messages to a webhook on loopback."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.cli import notify
from orchestrator.client import Client
from tests.integration.control.conftest import TOKEN, PaperGateway, build
from tests.receivers import Webhook, serving
from tests.unit.cli.conftest import Orch

SECRET = "hook-t0ken-that-nobody-may-see"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "controller-home"


@pytest.fixture(autouse=True)
def real(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands speak to a real controller."""
    home.mkdir()
    with TestClient(create_app(build(home, PaperGateway()), TOKEN, "c")) as api:
        connected = lambda: Client("http://testserver", TOKEN, transport=api._transport)  # noqa: E731
        monkeypatch.setattr(notify, "connect", connected)
        yield


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_from_adding_to_removing(orch: Orch, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nobody is told anything" in orch("notify", "ls").out
    with serving() as hook, serving(Webhook(status=404)) as gone:
        typed(monkeypatch, hook.url(SECRET) + "\n")
        added = orch("notify", "add", "--name", "phone", "--on", "failed, stuck", "--run", "lr-*")
        typed(monkeypatch, gone.url(SECRET))
        orch("notify", "add")
        tried = orch("notify", "test")
    assert added.code == 0
    assert added.out == (
        f"phone (json://127.0.0.1:{hook.port}/…) is told of: failed, stuck; try it: orch notify test phone\n"
    )
    assert tried.code == 1
    first, second = tried.out.splitlines()[1:]
    assert first.split()[:3] == ["phone", f"json://127.0.0.1:{hook.port}/…", "yes"]
    assert second.split()[2] == "no"
    assert "HTTP status 404 (Not Found)" in second
    assert hook.titles == ["orch: it works"]
    listed = orch("notify", "ls")
    assert "lr-*" in listed.out
    assert "finished, failed, stuck, best, sweep" in listed.out
    as_json = orch("notify", "ls", "--json")
    assert [one["name"] for one in as_json.json] == ["phone", "json"]
    file = home / "notify.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    removed = orch("notify", "rm", "phone")
    assert "phone" in removed.out
    assert [one["name"] for one in orch("notify", "ls", "--json").json] == ["json"]
    told = [added, tried, listed, as_json, removed]
    assert SECRET not in "".join(one.out + one.err for one in told)


def test_what_goes_wrong_is_told_with_a_remedy(
    orch: Orch, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, f"https://example.org/{SECRET}\n")
    wrong = orch("notify", "add")
    assert wrong.code == 2
    assert "for a webhook write jsons:// instead of https://" in wrong.err
    assert "ntfy://TOPIC" in wrong.err
    assert SECRET not in wrong.out + wrong.err
    typed(monkeypatch, "")
    assert orch("notify", "add").code == 2
    assert orch("notify", "add", "--on", "success", "--from-env", "X").code == 2
    unset = orch("notify", "add", "--from-env", "NO_SUCH_VARIABLE")
    assert unset.code == 7
    assert "NO_SUCH_VARIABLE is not set in the controller's environment" in unset.err
    assert orch("notify", "rm", "nobody").code == 3
    assert orch("notify", "test").code == 3
    (home / "notify.yaml").write_text("[]\n")
    (home / "notify.yaml").chmod(0o644)
    open_to_all = orch("notify", "ls")
    assert open_to_all.code == 7
    assert f"chmod 600 {home / 'notify.yaml'}" in open_to_all.err
