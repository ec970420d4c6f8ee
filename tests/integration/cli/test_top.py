"""`orch top`: one picture, JSON, and the live one in a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from orchestrator.cli.keyboard import Keyboard
from orchestrator.cli.top import Looker
from orchestrator.client import Client
from orchestrator.errors import UnauthorizedError
from orchestrator.messages_top import TopView
from tests.clocks import TurnedClock
from tests.support import wait_until
from tests.unit.cli import views
from tests.unit.cli.conftest import Orch
from tests.unit.cli.fake import TOKEN, FakeController, break_connection, unavailable

PROGRAM = "from orchestrator.cli.main import main; main()"
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


# ---- once


def test_one_picture(fake: FakeController, orch: Orch) -> None:
    fake.top = views.busy()
    shown = orch("top", "--once")
    assert shown.code == 0
    assert "shakespeare-gpu" in shown.out
    assert "\x1b" not in shown.out
    assert [path.partition("?")[0] for _, path, _ in fake.requests] == ["/v1/top"]


def test_the_energy_is_that_of_the_day_here(
    fake: FakeController, orch: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    fake.top = views.busy()
    orch("top", "--once")
    assert "T00%3A00%3A00%2B09%3A00" in fake.requests[0][1]
    monkeypatch.undo()
    time.tzset()


def test_json_is_one_value(fake: FakeController, orch: Orch) -> None:
    fake.top = views.busy()
    assert TopView.model_validate(orch("top", "--json").json) == views.busy()


def test_a_controller_that_is_not_there_is_an_error(fake: FakeController, orch: Orch) -> None:
    fake.failures = [unavailable]
    shown = orch("top", "--once")
    assert shown.code == 5
    assert "the controller is starting" in shown.err


# ---- looking again and again


@pytest.fixture
def looker(fake: FakeController, client: Client, clock: TurnedClock) -> Iterator[Looker]:
    fake.top = views.busy()
    keys = Keyboard(None)
    yield Looker(client, views.busy(), 1.0, keys, clock)
    keys.close()


def test_a_restart_of_the_controller_is_said_and_forgotten(
    fake: FakeController, looker: Looker, clock: TurnedClock
) -> None:
    fake.failures = [unavailable, break_connection]
    for seconds in (3, 4):
        clock.sleep(seconds)
        looker.look()
        assert "trying again" in looker.picture().trouble
    assert looker.picture().trouble.startswith("no answer for 7 s, trying again: the connection")
    looker.look()
    assert looker.picture().trouble == ""


def test_what_cannot_pass_ends_it(fake: FakeController, client: Client, clock: TurnedClock) -> None:
    fake.refusal = UnauthorizedError("the token has changed")
    keys = Keyboard(None)
    looker = Looker(client, views.busy(), 0.001, keys, clock)
    looker.start()
    wait_until(lambda: looker.error, 10)
    assert isinstance(looker.error, UnauthorizedError)
    keys.close()


def test_waking_a_keyboard_that_is_closed_does_nothing() -> None:
    keys = Keyboard(None)
    keys.wake()
    assert keys.wait(5.0) == ""
    keys.wake(b"q")
    assert keys.wait(5.0) == "q"
    keys.close()
    keys.wake()


def test_a_keyboard_that_nobody_reads_does_not_block() -> None:
    keys = Keyboard(None)
    for _ in range(100_000):
        keys.wake()
    keys.close()


# ---- in a terminal


@dataclass
class Terminal:
    """A pseudo-terminal with `orch top` in it; all that it has written."""

    main: int
    other: int
    process: subprocess.Popen[bytes]
    written: bytes = b""
    modes: list[object] = field(default_factory=list)

    def read_until(self, there: Callable[[bytes], bool]) -> bytes:
        """Read until what has been written since the last call satisfies this; what that was."""
        begin, deadline = len(self.written), time.monotonic() + 30
        while not there(self.written[begin:]):
            assert time.monotonic() < deadline, self.written[begin:]
            if select.select([self.main], [], [], 0.1)[0]:
                self.written += os.read(self.main, 65536)
        return self.written[begin:]

    def type(self, keys: bytes) -> None:
        os.write(self.main, keys)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def end(self) -> int:
        """Read to the end; the exit code."""
        self.read_until(lambda new: self.process.poll() is not None)
        while select.select([self.main], [], [], 0.2)[0]:
            self.written += os.read(self.main, 65536)
        return self.process.wait(10)

    def restored(self) -> bool:
        """Whether the terminal is as it was: modes, screen and cursor."""
        screen = self.written.rindex(LEAVE) > self.written.rindex(ENTER)
        cursor = self.written.rindex(SHOW) > self.written.rindex(HIDE)
        return screen and cursor and termios.tcgetattr(self.other) == self.modes


@contextmanager
def terminal(fake: FakeController, *arguments: str, width: int = 80, height: int = 24) -> Iterator[Terminal]:
    main, other = pty.openpty()
    modes = termios.tcgetattr(other)
    fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    env |= {"ORCH_URL": fake.url, "ORCH_TOKEN": TOKEN, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "top", "--every", "0.2", *arguments],
        stdin=other,
        stdout=other,
        stderr=other,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        yield Terminal(main, other, process, modes=modes)
    finally:
        process.kill()
        process.wait(10)
        os.close(main)
        os.close(other)


@pytest.mark.parametrize(("keys", "code"), [(b"q", 0), (b"Q", 0), (b"\x03", 130)], ids=["q", "Q", "ctrl-c"])
def test_keys_end_it_and_the_terminal_is_as_it_was(fake: FakeController, keys: bytes, code: int) -> None:
    fake.top = views.busy()
    with terminal(fake) as shown:
        shown.read_until(lambda new: b"q ends it" in new)
        assert termios.tcgetattr(shown.other) != shown.modes
        shown.type(b"x\x1a")  # neither another key nor Ctrl-Z does anything
        shown.read_until(lambda new: new.count(b"q ends it") >= 2)
        shown.type(keys)
        assert shown.end() == code
        assert shown.restored()
        assert b"Traceback" not in shown.written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_the_terminal_is_as_it_was(fake: FakeController, number: int) -> None:
    fake.top = views.busy()
    with terminal(fake) as shown:
        shown.read_until(lambda new: b"q ends it" in new)
        shown.process.send_signal(number)
        assert shown.end() == 0
        assert shown.restored()


def test_it_goes_on_while_the_controller_is_away(fake: FakeController) -> None:
    fake.top = views.busy()
    with terminal(fake) as shown:
        shown.read_until(lambda new: b"q ends it" in new)
        fake.failures = [unavailable] * 10
        shown.read_until(lambda new: b"trying again: the controller is" in new)
        shown.read_until(well_again)
        shown.type(b"q")
        assert shown.end() == 0


def well_again(written: bytes) -> bool:
    """Whether the newest whole picture says nothing of trouble."""
    *whole, _ = written.split(b"\x1b[H")
    return bool(whole) and b" controller" in whole[-1] and b"trying again" not in whole[-1]


def test_it_follows_the_size_of_the_window(fake: FakeController) -> None:
    fake.top = views.busy()
    with terminal(fake, "--every", "3600") as shown:
        shown.read_until(lambda new: b"q ends it" in new)
        assert b"LOSS \x1b" not in shown.written
        shown.resize(200, 50)
        bigger = shown.read_until(lambda new: b"q ends it" in new)
        assert bigger.count(b"\n") == 49
        assert "⠑".encode() in bigger
        shown.type(b"q")
        assert shown.end() == 0
        assert shown.restored()


def test_a_token_that_is_wrong_now_is_an_error_on_the_restored_terminal(fake: FakeController) -> None:
    fake.top = views.busy()
    with terminal(fake) as shown:
        shown.read_until(lambda new: b"q ends it" in new)
        fake.refusal = UnauthorizedError("the token has changed")
        assert shown.end() == 6
        assert shown.restored()
        assert b"the token has changed" in shown.written[shown.written.rindex(LEAVE) :]
