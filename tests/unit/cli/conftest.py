"""A fake controller, and `orch` called in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.cli import common
from orchestrator.cli.main import main
from orchestrator.client import Client
from tests.clocks import TurnedClock
from tests.unit.cli.fake import NOW, TOKEN, FakeController, serve


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn must not depend on the terminal that the tests are started from."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, as JSON."""
        return json.loads(self.out)


Orch = Callable[..., Result]


@pytest.fixture
def fake() -> Iterator[FakeController]:
    """A controller without runs."""
    with serve(FakeController()) as controller:
        yield controller


@pytest.fixture
def client(fake: FakeController) -> Iterator[Client]:
    """A client of the fake controller."""
    with Client(fake.url, TOKEN) as client:
        yield client


@pytest.fixture
def clock() -> TurnedClock:
    """A clock that nobody waits for."""
    return TurnedClock(0.0, wall=NOW)


@pytest.fixture
def quick(fake: FakeController, clock: TurnedClock) -> Iterator[Client]:
    """A client for which waiting takes no time."""
    with Client(fake.url, TOKEN, clock=clock) as client:
        yield client


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No settings of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("ORCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(common, "_json_wanted", False)


@pytest.fixture
def orch(fake: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Orch:
    """Call the command line against the fake controller."""
    monkeypatch.setenv("ORCH_URL", fake.url)
    monkeypatch.setenv("ORCH_TOKEN", TOKEN)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["orch", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return call
