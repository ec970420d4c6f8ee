"""A page in headless Chromium, spoken to over its debugging pipe: no port and no library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-extensions",
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter,Translate",
    # What the browser wants for itself all the same finds nobody.
    "--proxy-server=127.0.0.1:9",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
DEADLINE_S = 60.0
_BROKEN = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
_LOUD = frozenset({"error", "warning", "assert"})


@dataclass
class Page:
    """One tab."""

    _to: int
    _from: int
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Everything that the browser has told by itself."""
    _context: str = ""
    _number: int = 0
    _rest: bytes = b""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something; AssertionError with its words where it refuses."""
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            asked["sessionId"] = self.session
        data = json.dumps(asked).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                return dict(told["result"])
            self.events.append(told)

    def renew(self, proxy: int | None = None) -> None:
        """An empty tab that knows nothing of the one before, which is closed."""
        self.session = ""
        if self._context:
            self.call("Target.disposeBrowserContext", browserContextId=self._context)
        through = {"proxyServer": f"127.0.0.1:{proxy}", "proxyBypassList": "<-loopback>"} if proxy else {}
        self._context = self.call("Target.createBrowserContext", **through)["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=self._context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")
        self.events.clear()

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._from, 1 << 20) if ready else b""
            assert piece, "the browser says nothing, or has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address: str, ready: str) -> None:
        """Load a page, and wait until an expression is true in it."""
        before = len(self.events)
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[before:]):
            self.events.append(self._next())
        end = time.monotonic() + DEADLINE_S
        while not self.value(ready):
            assert time.monotonic() < end, f"not ready: {self.complaints()}"
            time.sleep(0.05)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the window's size in CSS pixels, and which colours its user prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def picture(self) -> bytes:
        """A PNG of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings of the page, what its policy has refused included."""
        self.value("0")
        found = [event for event in self.events if event["method"] in _BROKEN]
        return [json.dumps(event["params"]) for event in found if _is_loud(event)]

    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]


def _is_loud(event: dict[str, Any]) -> bool:
    told = event["params"]
    level = told.get("entry", {}).get("level") or told.get("type") or "error"
    # WebGL on a processor says that it is slow.
    return level in _LOUD and "GL Driver Message (OpenGL, Performance" not in json.dumps(told)


@contextmanager
def page(folder: Path, proxy: int | None = None) -> Iterator[Page]:
    """A fresh browser with one empty tab. What that asks for goes to a proxy at this port, loopback included.

    It is ended gently, so that its log of requests, `net.json`, is whole.
    """
    assert CHROMIUM is not None
    (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    script = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"'
    argv = [
        "bash",
        "-c",
        script,
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={folder / 'net.json'}",
        "about:blank",
    ]
    with (folder / "chromium.log").open("wb") as log:
        child = subprocess.Popen(
            argv, stdout=log, stderr=log, pass_fds=(theirs_in, theirs_out), start_new_session=True
        )
    os.close(theirs_in)
    os.close(theirs_out)
    tab = Page(ours_out, ours_in)
    try:
        tab.renew(proxy)
        yield tab
        tab.session = ""
        tab.call("Browser.close")
        child.wait(20)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        if child.poll() is None:
            os.killpg(child.pid, 9)
            child.wait(10)


@contextmanager
def recording_proxy() -> Iterator[tuple[int, list[bytes]]]:
    """A port that takes every connection, remembers the first bytes of each, and answers nothing."""
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    heard.append(connection.recv(4096))
                except OSError:
                    heard.append(b"")

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], heard
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)
