"""Following a run: what is shown, when, and what Ctrl-C does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.follow import summary, watch
from orchestrator.cli.screen import LiveScreen, News, PlainScreen, bar, path
from orchestrator.client import Client
from orchestrator.domain.states import RunState
from orchestrator.messages import RunDetail
from tests.clocks import TurnedClock
from tests.support import wait_until
from tests.unit.cli.fake import (
    TOKEN,
    FakeController,
    attempt,
    checkpoint,
    detail,
    handed_over,
    unavailable,
    waiting,
)


def plain(clock: TurnedClock) -> tuple[PlainScreen, StringIO]:
    text = StringIO()
    return PlainScreen(Console(file=text, width=200, soft_wrap=True, highlight=False), clock), text


def test_lines_come_at_a_calm_rate(fake: FakeController, quick: Client, clock: TurnedClock) -> None:
    fake.add(waiting(), *[detail("wait2345", step=step) for step in range(60)], handed_over("wait2345"))
    screen, text = plain(clock)
    assert watch(quick, "wait2345", screen).run.state == RunState.SUCCEEDED
    lines = text.getvalue().splitlines()
    assert lines[0] == "queued: every GPU of pool gpu is in use"
    assert lines[1] == "attempt 1 runs on laptop"
    progress = [line for line in lines if line.startswith("running")]
    assert 4 <= len(progress) <= 5
    assert progress[0] == "running  laptop  step 0/2000  loss 2.123  val 2.200  21.4k tok/s"
    assert lines[-1] == "attempt 2 runs on gpu from step 1000"


def test_a_restart_of_the_controller_is_said_once(
    fake: FakeController, quick: Client, clock: TurnedClock
) -> None:
    fake.add(detail(step=1), detail(step=2), handed_over())
    screen, text = plain(clock)

    def cut(now: RunDetail) -> None:
        if now.run.step == 1:
            fake.failures = [unavailable] * 5

    watch(quick, "demo", screen, act=cut)
    assert text.getvalue().count("the controller is starting; trying again") == 1
    assert text.getvalue().count("the controller answers again") == 1


def test_the_picture_survives_a_handover_and_a_restart(clock: TurnedClock) -> None:
    text = StringIO()
    console = Console(file=text, width=70, height=20, force_terminal=True, color_system=None, soft_wrap=True)
    screen = LiveScreen(console, clock)
    screen.show(waiting())
    screen.show(detail())
    moved = handed_over(state=RunState.RUNNING, step=1500, eta_s=12.0, tokens_per_s=154_000.0)
    screen.show(moved)
    screen.close()
    shown = text.getvalue()
    for part in (
        "night    queued: every GPU of pool gpu is in use",
        "demo  laptop  running",
        "500/2000  25 %  1:23 left",
        "laptop → gpu  running",
        "1500/2000  75 %  0:12 left",
        "154.0k tok/s",
        "attempt 2 runs on gpu from step 1000",
    ):
        assert part in shown
    assert shown.count("attempt 1 runs on laptop") == 1


def test_the_picture_fits_a_narrow_terminal(clock: TurnedClock) -> None:
    text = StringIO()
    console = Console(file=text, width=40, height=20, force_terminal=True, color_system=None, soft_wrap=True)
    screen = LiveScreen(console, clock)
    screen.show(waiting())
    screen.close()
    plain_text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    lines = [line for line in plain_text.splitlines() if "night" in line]
    assert lines
    assert all(len(line) <= 40 for line in lines)


def test_news_are_told_once_and_without_what_the_picture_says() -> None:
    news = News()
    assert [event.text for event in news.of(detail())] == ["attempt 1 runs on laptop"]
    assert [event.text for event in news.of(handed_over())][1:] == ["attempt 2 runs on gpu from step 1000"]
    assert news.of(handed_over()) == []


@pytest.mark.parametrize(
    ("step", "target", "done"),
    [(None, 100, 0), (0, 100, 0), (50, 100, 5), (100, 100, 10), (150, 100, 10), (5, 0, 0)],
)
def test_the_bar(step: int | None, target: int, done: int) -> None:
    text = bar(step, target, cells=10).plain
    assert len(text) == 10
    assert text.count("━") == done


def test_a_path_names_each_stay_once() -> None:
    stays = [attempt(1), attempt(2), attempt(3, "gpu"), attempt(4)]
    assert path(detail().model_copy(update={"attempts": stays})) == "laptop → gpu → laptop"


def test_the_summary_has_what_matters() -> None:
    text = summary(handed_over(message="the program finished"), checkpoint(2000)).plain
    for part in (
        "succeeded: the program finished",
        "2000/2000",
        "1.760",
        "1.889",
        "2:30",
        "laptop → gpu (2",
        "9.3 MiB",
    ):
        assert part in text
    assert "none" in summary(waiting(), None).plain


def _heed_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_ctrl_c_only_detaches(fake: FakeController, tmp_path: Path, extra: list[str]) -> None:
    fake.add(detail())
    env = {**os.environ, "ORCH_URL": fake.url, "ORCH_TOKEN": TOKEN}
    argv = [sys.executable, "-m", "orchestrator.cli.main", "follow", "demo", *extra]
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        # Tests that were started in the background ignore SIGINT, and so would what they start.
        child = subprocess.Popen(
            argv, stdout=out, stderr=err, env=env, start_new_session=True, preexec_fn=_heed_sigint
        )
        try:
            wait_until(lambda: len(fake.requests) >= 1, 20)
            time.sleep(0.2)
            child.send_signal(signal.SIGINT)
            assert child.wait(10) == 130
        finally:
            child.kill()
            child.wait(20)
        err.seek(0)
        said = err.read()
    assert "detached; the run goes on" in said
    assert "orch cancel demo" in said
    assert "Traceback" not in said
    assert not any(method == "POST" for method, _, _ in fake.requests)
