"""Schedules on a real stack: once, every minute while the controller is killed, over work that goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stack import Stack
from tests.support import wait_until


@pytest.fixture(autouse=True)
def _nothing_left(stack: Stack) -> Iterator[None]:
    """No schedule of this test fires in the next."""
    yield
    for schedule in stack.json("schedule", "ls"):
        stack.orch("schedule", "rm", schedule["id"])


def add(stack: Stack, name: str, code: str, *arguments: str) -> dict[str, Any]:
    spec = {
        "name": name,
        "command": {"argv": ["{python}", "-c", code]},
        "placement": [{"pool": "laptop", "cpus": 1}, {"pool": "gpu", "cpus": 1}],
    }
    path = stack.home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return dict(stack.json("schedule", "add", str(path), "--tz", "Europe/Paris", *arguments))


def fires(stack: Stack, name: str) -> list[dict[str, Any]]:
    return list(stack.get(f"/v1/schedules/{name}/fires", limit=1000))


def runs(stack: Stack, name: str) -> list[str]:
    return [run["id"] for run in stack.get("/v1/runs", limit=1000) if run["name"] == name]


def test_schedules_fire_once_though_the_controller_is_killed(stack: Stack, tmp_path: Path) -> None:
    end = tmp_path / "end"
    add(stack, "minutely", "pass", "--cron", "* * * * *", "--overlap", "queue", "--catch-up", "all")
    goes_on = f"import os, time\nwhile not os.path.exists({str(end)!r}): time.sleep(0.1)"
    add(stack, "long", goes_on, "--cron", "* * * * *")
    first = stack.json("schedule", "run", "long")
    stack.wait_state(first["run_id"], "running", timeout=30)
    _sees_one_fire_once(stack)
    minute = _is_killed_around_the_minute(stack)
    fire = wait_until(lambda: _fire_of(stack, "minutely", minute), 30, stack.evidence)
    stack.wait_state(wait_until(lambda: _run_of(stack, "minutely", minute), 30, stack.evidence), "succeeded")
    assert datetime.fromisoformat(fire["due"]) == minute
    assert fire["local"].endswith(("+01:00", "+02:00")), "told in Paris"
    _sees_no_fire_twice(stack)
    skipped = wait_until(lambda: _fire_of(stack, "long", minute), 10, stack.evidence)
    assert (skipped["state"], skipped["run_id"]) == ("skipped", None)
    assert skipped["message"] == f"run {first['run_id']} (long) of an earlier fire had not ended"
    assert runs(stack, "long") == [first["run_id"]]
    end.touch()
    stack.wait_state(first["run_id"], "succeeded", timeout=30)
    assert "skipped" in stack.orch("schedule", "fires", "long")


def _sees_one_fire_once(stack: Stack) -> None:
    at = datetime.now(UTC) + timedelta(seconds=5)
    once = add(stack, "once", "print('at last')", "--at", at.isoformat())
    (fire,) = wait_until(lambda: [f for f in fires(stack, once["id"]) if f["run_id"]], 20, stack.evidence)
    late = (datetime.fromisoformat(fire["decided_at"]) - at).total_seconds()
    print(f"decided {late:.3f} s after it was due")
    assert 0 <= late < 2
    assert runs(stack, "once") == [fire["run_id"]]
    stack.wait_state(fire["run_id"], "succeeded", timeout=30)
    assert stack.get(f"/v1/schedules/{once['id']}")["schedule"]["state"] == "ended"


def _is_killed_around_the_minute(stack: Stack) -> datetime:
    """Kill the controller within half a second of a full minute, and start it again."""
    now = datetime.now(UTC)
    minute = (now + timedelta(seconds=62)).replace(second=0, microsecond=0)
    offset = random.uniform(-0.1, 0.4)
    print(f"the controller is killed {offset:+.3f} s from {minute:%H:%M}")
    time.sleep(max(0.0, (minute - now).total_seconds() + offset - 0.05))
    for process in stack.service("controller"):
        process.kill()
    stack.orch("up", timeout=120)
    return minute


def _fire_of(stack: Stack, name: str, minute: datetime) -> dict[str, Any] | None:
    found = [fire for fire in fires(stack, name) if datetime.fromisoformat(fire["due"]) == minute]
    assert len(found) <= 1
    return found[0] if found else None


def _run_of(stack: Stack, name: str, minute: datetime) -> str | None:
    fire = _fire_of(stack, name, minute)
    return fire["run_id"] if fire else None


def _sees_no_fire_twice(stack: Stack) -> None:
    """Every fire that created has its own run, and there is no run beside them."""
    stack.orch("schedule", "pause", "minutely")
    wait_until(
        lambda: all(fire["state"] != "waiting" for fire in fires(stack, "minutely")), 30, stack.evidence
    )
    found = fires(stack, "minutely")
    assert len({fire["local"] for fire in found}) == len(found)
    assert sorted(fire["run_id"] for fire in found) == sorted(runs(stack, "minutely"))
