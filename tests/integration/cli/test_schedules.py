"""`orch schedule`: the command line against a real controller over HTTP, with a cluster on paper."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import uvicorn

from orchestrator.api.app import create_app
from orchestrator.cli import schedules as commands
from orchestrator.client import Client
from orchestrator.messages_schedules import ComingView, FireView, ScheduleDetail, ScheduleView
from tests.integration.control.conftest import TOKEN, PaperGateway, build
from tests.support import free_port, wait_until
from tests.unit.cli.conftest import Orch

SPEC = """\
name: nightly
command:
  argv: ["true"]
placement:
  - pool: laptop
"""
SWEEP = """\
name: search
base:
  trainer: {max_steps: 10}
space:
  trainer.learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
budget: {trials: 2}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A controller that answers."""
    port = free_port()
    app = create_app(build(tmp_path_factory.mktemp("home"), PaperGateway()), TOKEN, "cluster-1")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, 20)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(autouse=True)
def _real(url: str, orch: Orch, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`orch` speaks to it; the next test finds no schedule that can fire."""
    monkeypatch.setenv("ORCH_URL", url)
    monkeypatch.setenv("ORCH_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "160")
    yield
    with Client(url, TOKEN) as client:
        for schedule in client.schedules():
            client.remove_schedule(schedule.id)


@pytest.fixture
def spec_file(tmp_path: Path) -> str:
    (tmp_path / "nightly.yaml").write_text(SPEC)
    return str(tmp_path / "nightly.yaml")


def added(orch: Orch, *arguments: str) -> ScheduleView:
    result = orch("schedule", "add", *arguments, "--json")
    assert result.code == 0, result.err
    return ScheduleView.model_validate(result.json)


def detail(orch: Orch, name: str) -> ScheduleDetail:
    return ScheduleDetail.model_validate(orch("schedule", "show", name, "--json").json)


def test_a_window_every_night(orch: Orch, spec_file: str) -> None:
    line = ("--cron", "0 22 * * mon-fri", "--until", "7:00", "--tz", "Europe/Paris")
    view = added(orch, spec_file, *line, "--set", "priority=3")
    assert (view.name, view.creates, view.state) == ("nightly", "run", "active")
    spec = detail(orch, "nightly").spec
    assert spec is not None
    assert spec.priority == 3
    assert spec.window is not None
    (rule,) = spec.window
    assert (rule.cron, rule.until, rule.tz) == ("0 22 * * mon-fri", "07:00", "Europe/Paris")
    coming = [ComingView.model_validate(one) for one in orch("schedule", "next", "-n", "12", "--json").json]
    assert len(coming) == 12
    for one in coming:
        local = datetime.fromisoformat(one.local)
        assert (local.hour, local.weekday() < 5) == (22, True)
        assert one.opens == one.at
        assert one.closes is not None
        assert one.closes - one.at in [timedelta(hours=hours) for hours in (8, 9, 10)], (
            "10 and 8 in two nights"
        )
    shown = orch("schedule", "show", "nightly").out
    assert "`0 22 * * mon-fri` until 07:00 (Europe/Paris)" in shown
    assert coming[0].local[:16].replace("T", " ") in shown
    assert "nightly" in orch("schedule", "ls").out
    assert "22:00" in orch("schedule", "next", "nightly").out


def test_a_sweep_is_scheduled_with_the_window_in_its_base(orch: Orch, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    view = added(
        orch, str(tmp_path / "sweep.yaml"), "--cron", "0 22 * * *", "--until", "07:00", "--tz", "UTC"
    )
    assert view.creates == "sweep"
    assert view.window == "`0 22 * * *` until 07:00 (UTC)"
    sweep = detail(orch, "search").sweep
    assert sweep is not None
    assert sweep.base.window is not None
    assert sweep.base.window[0].until == "07:00"


def test_once(orch: Orch, spec_file: str) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=3)).replace(microsecond=0)
    view = added(orch, spec_file, "--at", at.isoformat(), "--tz", "Asia/Tokyo")
    assert (view.cron, view.at) == (None, at)
    run = wait_until(lambda: [one for one in detail(orch, view.id).fires if one.run_id], 10)[0]
    assert (run.local, run.state) == (at.astimezone(ZoneInfo("Asia/Tokyo")).isoformat(), "created")
    assert f"run {run.run_id}" in orch("schedule", "fires", "nightly").out
    assert "created by schedule nightly" in orch("show", str(run.run_id)).out
    assert orch("schedule", "ls", "--json").json == []
    ended = {one["id"]: one["state"] for one in orch("schedule", "ls", "--all", "--json").json}
    assert ended[view.id] == "ended"
    assert "no schedules" in orch("schedule", "ls").out


def test_a_one_time_window_opens_every_day_until_the_work_has_ended(orch: Orch, spec_file: str) -> None:
    view = added(orch, spec_file, "--at", "2099-03-01T22:30", "--until", "07:00", "--tz", "Europe/Paris")
    assert view.window == "`30 22 * * *` until 07:00 (Europe/Paris)"
    assert view.at == datetime(2099, 3, 1, 21, 30, tzinfo=UTC)


def test_the_time_zone_of_this_machine(orch: Orch, spec_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Australia/Lord_Howe")
    assert added(orch, spec_file, "--cron", "0 22 * * *").tz == "Australia/Lord_Howe"
    monkeypatch.setattr("orchestrator.spec.hours.local_zone", lambda: None)
    result = orch("schedule", "add", spec_file, "--cron", "0 22 * * *", "--name", "other")
    assert "UTC is taken" in result.err
    assert "(UTC)" in result.out


def test_pause_resume_run_and_remove(orch: Orch, spec_file: str) -> None:
    view = added(orch, spec_file, "--cron", "0 22 1 1 *", "--tz", "UTC", "--name", "yearly")
    assert "is paused" in orch("schedule", "pause", "yearly").out
    assert orch("schedule", "next").out.startswith("nothing is due")
    fire = FireView.model_validate(orch("schedule", "run", "yearly", "--json").json)
    assert (fire.state, fire.by_hand, fire.schedule) == ("created", True, view.id)
    again = orch("schedule", "run", "yearly")
    assert again.code == 4
    assert "had not ended" in again.err
    assert "by hand" in orch("schedule", "fires", "yearly").out
    assert "fires again, next at" in orch("schedule", "resume", "yearly").out
    assert "is removed" in orch("schedule", "rm", "yearly").out
    assert orch("schedule", "pause", "yearly").code == 4
    assert orch("schedule", "show", view.id).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cron", "0 25 * * *"), "--cron: in the hour '25': expected 0 to 23, not '25'"),
        (("--cron", "0 22 * *"), "--cron: expected the 5 fields of cron"),
        (("--cron", "0 22 * * *", "--tz", "Mars/Phobos"), "--tz: expected a time zone such as Europe/Paris"),
        (("--cron", "0 22 * * *", "--until", "25:00"), "--until: expected a time of day"),
        (("--at", "tomorrow"), "--at: expected a time such as 2027-03-01T22:00, got 'tomorrow'"),
        (("--at", "2020-01-01T22:00", "--tz", "UTC"), "--at 2020-01-01T22:00:00+00:00 is over"),
        ((), "give one of --cron and --at"),
        (("--cron", "0 22 * * *", "--at", "2099-01-01"), "give one of --cron and --at"),
        (("--cron", "0 22 * * *", "--overlap", "both"), "overlap"),
        (("--cron", "0 22 * * *", "--set", "deadline=2027-01-01T00:00:00Z"), "later fires would be past"),
        (
            ("--cron", "0 22 * * *", "--until", "7:00", "--set", "window=[{hours: 20:00-23:00}]"),
            "window of its own",
        ),
        (("--cron", "0 22 * * *", "--set", "priorty=1"), "did you mean `priority`?"),
    ],
)
def test_what_is_wrong_is_said_and_where(
    orch: Orch, spec_file: str, arguments: tuple[str, ...], message: str
) -> None:
    result = orch("schedule", "add", spec_file, *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert orch("schedule", "ls", "--json").json == []


def test_errors_as_json(orch: Orch, spec_file: str) -> None:
    result = orch("schedule", "add", spec_file, "--cron", "0 25 * * *", "--json")
    assert json.loads(result.err)["details"]["problems"][0]["file"] == "--cron"


def test_one_name_one_schedule(orch: Orch, spec_file: str) -> None:
    added(orch, spec_file, "--cron", "0 22 * * *")
    result = orch("schedule", "add", spec_file, "--cron", "0 23 * * *")
    assert result.code == 4
    assert "orch schedule rm nightly" in result.err
    for command in ("show", "fires", "pause", "resume", "rm", "run"):
        assert orch("schedule", command, "nobody").code == 3


def test_names_are_completed(orch: Orch, spec_file: str) -> None:
    added(orch, spec_file, "--cron", "0 22 * * *", "--tz", "UTC")
    assert commands.complete_schedule("ni") == [("nightly", "0 22 * * * (UTC)")]
    assert commands.complete_schedule("x") == []


def test_the_same_key_is_the_same_fire(orch: Orch, spec_file: str) -> None:
    added(orch, spec_file, "--cron", "0 22 * * *")
    with Client.from_settings() as client:
        assert client.fire("nightly", "k").run_id == client.fire("nightly", "k").run_id
