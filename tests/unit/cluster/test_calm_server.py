"""A server that waits calmly still answers, and ends in time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from orchestrator.agent.ports import pick_port
from tests.support import wait_until

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"].removeprefix("lifespan.")
            await send({"type": f"lifespan.{kind}.complete"})
            if kind == "shutdown":
                open("shut-down", "w").close()
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})
"""


def answer(port: int) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
            return bytes(response.read())
    except OSError:
        return b""


def test_it_answers_and_ends_within_a_second_or_two(tmp_path: Path) -> None:
    (tmp_path / "calm_app.py").write_text(APP)
    port = pick_port("127.0.0.1")
    argv = [sys.executable, "-m", "orchestrator.cluster.calm_server", "127.0.0.1", str(port), "calm_app:app"]
    server = subprocess.Popen(argv, cwd=tmp_path)
    try:
        wait_until(lambda: answer(port) == b"here", 30.0)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == -signal.SIGTERM
        assert (tmp_path / "shut-down").exists()
        assert time.monotonic() - began < 5.0
    finally:
        server.kill()
        server.wait()
