"""Sends through :mod:`orchestrator.notify.sender`, with a limit on the time that it may take."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import Problem, SetupError, SpecError
from orchestrator.notify.sender import NO_APPRISE

LIMIT_S: Final = 30.0
"""A sender that takes longer is ended."""


@dataclass(frozen=True)
class Message:
    """What is sent."""

    title: str
    body: str
    type: str = "info"
    """`info`, `success`, `warning` or `failure`: some services show it as a colour."""


@dataclass(frozen=True)
class Sent:
    """What came of it."""

    arrived: bool
    text: str
    """Why it did not arrive; nothing secret."""
    seconds: float


class Sender:
    """Starts sending processes, and can end them all. Safe to use from several threads."""

    def __init__(self, limit_s: float = LIMIT_S, clock: Clock = SYSTEM) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()

    def send(self, url: str, message: Message) -> Sent:
        """Send one message. Returns after the limit at the latest; never raises for what a service does."""
        began = self._clock.monotonic()
        job = {"url": url, "title": message.title, "body": message.body, "type": message.type}
        arrived, text = self._ask(job)
        return Sent(arrived, text, self._clock.monotonic() - began)

    def check(self, url: str) -> None:
        """SpecError where Apprise does not understand the address, SetupError where there is no Apprise."""
        good, text = self._ask({"url": url, "check": True})
        if text == NO_APPRISE:
            raise SetupError(text, remedy="install orch[server] there")
        if not good:
            raise SpecError(
                [Problem("", 0, 0, "url", text)],
                remedy="write it as Apprise does: ntfy://TOPIC, mailto://USER:PASSWORD@gmail.com, "
                "slack://A/B/C, jsons://HOST/PATH, desktop://; more in docs/notify.md",
            )

    def stop(self) -> None:
        """End what is being sent."""
        with self._lock:
            for process in self._processes:
                process.kill()

    def _ask(self, job: dict[str, Any]) -> tuple[bool, str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.notify.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with self._lock:
            self._processes.add(process)
        try:
            out, _ = process.communicate(json.dumps(job).encode(), timeout=self._limit_s)
            answer = json.loads(out)
            return bool(answer["ok"]), str(answer["text"])
        except subprocess.TimeoutExpired:
            return False, f"it did not answer within {self._limit_s:g} s"
        except (OSError, ValueError):
            return False, "the process that sends ended without a word"
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._processes.discard(process)
