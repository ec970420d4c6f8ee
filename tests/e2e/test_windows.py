"""A run with a window on a real stack: it saves and ends before the minute strikes, and goes on at the next
opening from where it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.e2e.conftest import WINDOW_GRACE_S
from tests.integration.agent.programs import train
from tests.stack import Stack
from tests.support import wait_until

MINUTE = timedelta(minutes=1)
START = timedelta(seconds=30)
"""What is left of the window at least: a start on a busy machine, and the grace before the end."""
FOREVER = 200_000


def test_a_run_ends_before_the_minute_strikes_and_goes_on_at_the_next_opening(stack: Stack) -> None:
    now = datetime.now(UTC)
    closes = (now + START + MINUTE).replace(second=0, microsecond=0)
    opens = closes + MINUTE
    window = [
        {"hours": f"{now - MINUTE:%H:%M}-{closes:%H:%M}", "tz": "UTC"},
        {"cron": f"{opens:%M %H} * * *", "until": f"{opens + 30 * MINUTE:%H:%M}", "tz": "UTC"},
    ]
    argv = ["{python}", "-c", train(FOREVER, every=FOREVER, pause=0.05)]
    placement = [{"pool": "laptop", "cpus": 1}]
    run_id = stack.submit(
        {"name": "nightly", "command": {"argv": argv}, "placement": placement, "window": window, "retries": 0}
    )
    stack.wait_step(run_id, 20)
    detail = stack.wait_state(run_id, "queued", timeout=140)
    (first,) = detail["attempts"]
    ended = datetime.fromisoformat(first["ended_at"])
    assert first["reason"] == "window"
    told = closes - timedelta(seconds=WINDOW_GRACE_S)
    assert told <= ended < closes, "told to save in time, and ended in time"
    assert "too soon to start" in stack.orch("why", run_id)
    wait_until(lambda: "outside its window" in stack.orch("why", run_id), 30, stack.evidence, every=0.5)
    assert datetime.now(UTC) >= closes
    assert f"at {opens:%H:%M}" in stack.json("ls")[0]["message"]
    wait_until(lambda: len(stack.show(run_id)["attempts"]) == 2, 90, stack.evidence, every=0.5)
    stack.wait_step(run_id, first["last_step"] + 50)
    _, second = stack.show(run_id)["attempts"]
    assert datetime.fromisoformat(second["created_at"]) >= opens
    assert second["first_step"] == first["last_step"], "no step is lost, though none was to be saved by count"
    points = [point["step"] for point in stack.get(f"/v1/runs/{run_id}/points", key="train/loss")]
    assert points == list(range(points[-1] + 1)), "each step once"
    stack.orch("cancel", run_id)
