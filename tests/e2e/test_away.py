"""A node falls asleep: everything on it is stopped, and continued later."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.stack import Stack, tiny_gpt
from tests.support import wait_until


def family(stack: Stack, name: str) -> list[psutil.Process]:
    """Every process of a node: Ray, agents, programs."""
    home, found = str(stack.home / "nodes" / name), set[psutil.Process]()
    for process in psutil.process_iter(["pid"]):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("ORCH_NODE_HOME") == home:
                found |= {process, *process.children(recursive=True)}
    assert found
    return list(found)


@contextmanager
def asleep(stack: Stack, name: str) -> Iterator[None]:
    """The node sleeps within the block."""
    stopped: dict[int, psutil.Process] = {}
    try:
        for _ in range(2):  # what was started while the first round went on is found by the second
            for process in family(stack, name):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
                    stopped[process.pid] = process
        yield
    finally:
        for process in stopped.values():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def assert_one_of_each(stack: Stack, run_id: str, steps: int) -> None:
    """One point for each step, and one checkpoint that counts."""
    points = stack.get(f"/v1/runs/{run_id}/points", key="train/loss")
    assert [p["step"] for p in points] == list(range(0, steps + 1, 5))
    kept = [c["step"] for c in stack.json("checkpoints", run_id)]
    assert len(kept) == len(set(kept))
    assert max(kept) == steps


def kinds(stack: Stack, run_id: str) -> list[str]:
    return [event["kind"] for event in stack.show(run_id)["events"]]


def test_a_node_that_sleeps_for_a_short_time_goes_on(stack: Stack, text: Path) -> None:
    steps = 1200
    run_id = stack.submit(tiny_gpt("dozes", text, steps, migrate="never", away=300))
    stack.wait_step(run_id, 100)
    with asleep(stack, "laptop"):
        reached = stack.show(run_id)["run"]["step"]
        detail = stack.wait_state(run_id, "unreachable", timeout=60)
        assert "laptop cannot be reached" in detail["run"]["message"]
    stack.wait_state(run_id, "running", timeout=60)
    detail = stack.wait_state(run_id, "succeeded", timeout=240)
    (attempt,) = detail["attempts"]
    assert (attempt["reason"], attempt["node"]) == ("completed", "laptop")
    assert attempt["last_step"] == steps > reached
    assert {"unreachable", "back"} <= set(kinds(stack, run_id))
    assert "left" not in kinds(stack, run_id)
    assert_one_of_each(stack, run_id, steps)


def test_a_node_that_sleeps_for_too_long_is_fenced_when_it_wakes(stack: Stack, text: Path) -> None:
    wait_until(lambda: node_state(stack, "laptop") == "ready", 60, stack.evidence)
    steps = 1200
    run_id = stack.submit(tiny_gpt("oversleeps", text, steps, migrate="never", away=15, retries=0))
    stack.wait_step(run_id, 100)
    with asleep(stack, "laptop"):
        detail = wait_until(lambda: second_attempt_at(stack, run_id, 200), 120, stack.evidence)
        assert [a["node"] for a in detail["attempts"]] == ["laptop", "gpu"]
    ended = wait_until(lambda: stack.show(run_id)["attempts"][0]["phase"] == "ended", 60, stack.evidence)
    assert ended
    detail = stack.wait_state(run_id, "succeeded", timeout=240)
    zombie, successor = detail["attempts"]
    assert (zombie["reason"], successor["reason"]) == ("fenced", "completed")
    assert successor["first_step"] >= 50
    wait_until(lambda: stack.agents() == {}, 30, stack.evidence)
    assert_one_of_each(stack, run_id, steps)
    wait_until(lambda: node_state(stack, "laptop") == "ready", 60, stack.evidence)


def second_attempt_at(stack: Stack, run_id: str, step: int) -> dict[str, object] | None:
    detail = stack.show(run_id)
    there = len(detail["attempts"]) == 2 and (detail["attempts"][1]["last_step"] or 0) >= step
    return detail if there else None


def node_state(stack: Stack, name: str) -> str:
    return str({n["name"]: n["state"] for n in stack.json("nodes")}[name])
