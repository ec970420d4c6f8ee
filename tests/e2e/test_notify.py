"""Somebody is told of what happens on a real stack: the service is down, the controller is killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.receivers import Webhook, serving
from tests.stack import Stack, tiny_gpt
from tests.support import wait_until

SECRET = "hook-t0ken-that-nobody-may-see"


@pytest.fixture
def hook(stack: Stack) -> Iterator[Webhook]:
    """Nobody listens there yet."""
    hook = Webhook()
    done = subprocess.run(
        stack.command("notify", "add", "--name", "e2e"),
        env=stack.env,
        input=hook.url(SECRET) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    yield hook
    stack.orch("notify", "rm", "e2e")


def waiting(stack: Stack) -> dict[str, Any]:
    (view,) = stack.json("notify", "ls")
    return dict(view)


def test_told_after_a_killed_controller(stack: Stack, text: Path, hook: Webhook) -> None:
    good = stack.submit(tiny_gpt("told-of", text, 200))
    bad = stack.submit(
        {
            "name": "told-too",
            "experiment": "tests",
            "command": {"argv": ["sh", "-c", "echo no such dataset >&2; exit 78"]},
            "placement": [{"pool": "gpu", "cpus": 1}],
        }
    )
    stack.wait_state(good, "succeeded")
    stack.wait_state(bad, "failed")
    wait_until(lambda: waiting(stack)["error"] == "nobody listens there", 60, stack.evidence)
    # The second one may wait for its next look.
    wait_until(lambda: waiting(stack)["waiting"] == 2, 60, stack.evidence)
    assert not any(SECRET in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    refused = stack.orch("notify", "test", code=1)
    assert "nobody listens there" in refused
    for process in stack.service("controller"):
        process.kill()
    with serving(hook):
        wait_until(lambda: len(hook.bodies) == 2, 120, stack.evidence)
        stack.orch("notify", "test")
    told = {body["title"].partition(":")[0]: body for body in hook.bodies}
    assert len(hook.bodies) == len(told) == 3
    finished, failed = told["tests/told-of"], told["tests/told-too"]
    metrics = stack.show(good)["metrics"]
    assert finished["title"] == f"tests/told-of: finished, val/loss {metrics['val/loss']:.4f} at step 200"
    (link,) = [line for line in finished["message"].splitlines() if line.startswith("MLflow: ")]
    assert link == f"MLflow: {stack.show(good)['links']['run']}"
    assert f" on {stack.show(good)['run']['node']} (" in finished["message"].splitlines()[0]
    assert failed["message"].splitlines()[0] == "no such dataset"
    assert f"log: orch logs {bad}" in failed["message"]
    assert waiting(stack)["waiting"] == 0
    holding = [path for path in stack.home.rglob("*") if _contains(path, SECRET.encode())]
    assert holding == [stack.home / "notify.yaml"]


def _contains(path: Path, secret: bytes) -> bool:
    try:
        return path.is_file() and secret in path.read_bytes()
    except OSError:  # sockets of Ray, files that have gone
        return False
