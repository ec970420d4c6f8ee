"""Single keys, changes of the window's size and news from a thread, waited for together."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

QUIT = "q"
"""What a signal to end says, too."""
INTERRUPT = "\x03"
"""What Ctrl-C says."""
_WAKE = b"."


class Keyboard:
    """What there is to wait for. :meth:`wake` may be called from any thread and from signal handlers."""

    def __init__(self, keys: int | None) -> None:
        """`keys`: where keys are read from; None: nowhere."""
        self._keys = keys
        self._closed = False
        self._lock = threading.Lock()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._closed = True
            for end in (self._read, self._write):
                os.close(end)

    def wake(self, said: bytes = _WAKE) -> None:
        """Let who waits go on, as if this had been typed."""
        with self._lock, suppress(BlockingIOError):  # there would be enough in it to wake somebody
            if not self._closed:
                os.write(self._write, said)

    def wait(self, seconds: float) -> str:
        """What was typed within that time; empty where nothing was. Ends early when it is woken."""
        sources = [source for source in (self._keys, self._read) if source is not None]
        ready, _, _ = select.select(sources, [], [], seconds)
        said = b"".join(os.read(source, 1024) for source in ready)
        if self._keys in ready and not said:
            return QUIT  # the terminal has gone
        return said.replace(_WAKE, b"").decode(errors="replace")


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Keys come as they are typed and are not shown; at the end the terminal is as it was.

    A changed size of the window wakes; SIGTERM and SIGHUP say `q`. Ctrl-C is said as well: an exception would
    be lost where it is raised while Python tidies up. There is no Ctrl-Z, which would leave the terminal as
    it is.
    """
    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    found = Keyboard(keys)
    before = termios.tcgetattr(keys) if keys is not None else None

    said = {
        signal.SIGWINCH: _WAKE,
        signal.SIGTERM: QUIT.encode(),
        signal.SIGHUP: QUIT.encode(),
        signal.SIGINT: INTERRUPT.encode(),
    }

    def handle(number: int, frame: FrameType | None) -> None:
        found.wake(said[signal.Signals(number)])

    handlers = [signal.signal(number, handle) for number in said]
    try:
        if keys is not None:
            _set_keys(keys)
        yield found
    finally:
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
        for number, handler in zip(said, handlers, strict=True):
            signal.signal(number, handler)
        found.close()


def _set_keys(keys: int) -> None:
    tty.setcbreak(keys, termios.TCSADRAIN)
    mode = termios.tcgetattr(keys)
    mode[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(keys, termios.TCSADRAIN, mode)
