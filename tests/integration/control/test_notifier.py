"""Notifications from the end of a run to a webhook, with a real ledger and real sending processes."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.client import Client
from orchestrator.control import notifier as notifying
from orchestrator.control.controller import Controller
from orchestrator.control.notifier import GIVE_UP, Notifier
from orchestrator.domain.notice import NoticeKind
from orchestrator.domain.states import RunState
from orchestrator.domain.sweeps import SweepRecord, SweepState, TrialRecord, TrialState
from orchestrator.errors import NotFoundError, SetupError, SpecError
from orchestrator.messages import NotifyRequest
from orchestrator.notify import texts
from orchestrator.notify.sending import Sender
from orchestrator.notify.targets import Target, TargetFile
from orchestrator.spec.sweep import Budget, Parameter, SweepSpec
from orchestrator.store.ledger import Ledger
from tests.integration.control.conftest import TOKEN, PaperGateway, build
from tests.integration.control.test_api import beat, end, launched, submit
from tests.receivers import Webhook, serving
from tests.support import free_port, wait_until
from tests.unit.records import NOW, run, spec

SECRET = "hook-t0ken-that-nobody-may-see"
SWEEP = SweepRecord(
    "s1",
    0,
    "key",
    SweepSpec(name="s", base=spec(), space={"priority": Parameter(choice=[1])}, budget=Budget(trials=1)),
    "0" * 64,
    "",
    "ada",
    SweepState.RUNNING,
    NOW,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying, "FIRST_S", 0.5)
    monkeypatch.setattr(notifying, "_SETTLE", timedelta(0))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "controller" / "ledger.db")
    yield ledger
    ledger.close()


def targets(tmp_path: Path, **urls: str) -> TargetFile:
    file = TargetFile(tmp_path / "notify.yaml")
    for name, url in urls.items():
        file.add(Target(name=name, url=url, on=tuple(NoticeKind)))
    return file


@contextmanager
def telling(ledger: Ledger, file: TargetFile, limit_s: float = 20.0, clock: Any = None) -> Iterator[Notifier]:
    from orchestrator.clock import SYSTEM

    notifier = Notifier(
        ledger, file, lambda run: texts.ended(texts.Facts(run)), Sender(limit_s), clock or SYSTEM
    )
    notifier.start()
    try:
        yield notifier
    finally:
        notifier.stop()


def finish(ledger: Ledger, run_id: str = "aaaa1111", state: RunState = RunState.SUCCEEDED) -> None:
    record = run(run_id, spec=spec(f"job-{run_id}"), started_at=NOW)
    with ledger.begin() as tx:
        stored = tx.add_run(record)
    with ledger.begin() as tx:
        tx.save_run(replace(stored, state=state, ended_at=NOW + timedelta(seconds=3)))


def backlog(ledger: Ledger) -> dict[str, tuple[int, str]]:
    with ledger.read() as tx:
        return tx.notices.backlog()


class TestDelivery:
    """At least once, and nothing waits."""

    def test_the_end_of_a_run_is_told_once(self, ledger: Ledger, tmp_path: Path) -> None:
        with serving() as hook, telling(ledger, targets(tmp_path, a=hook.url())):
            finish(ledger)
            wait_until(lambda: hook.titles == ["job-aaaa1111: finished"], 20, lambda: str(hook.bodies))
            with ledger.begin() as tx:
                tx.save_run(replace(tx.run("aaaa1111"), message="said again"))
            finish(ledger, "bbbb2222", RunState.CANCELLED)
            wait_until(lambda: len(hook.titles) == 2, 20)
        assert hook.titles == ["job-aaaa1111: finished", "job-bbbb2222: cancelled"]
        assert hook.bodies[0]["type"] == "success"
        assert backlog(ledger) == {}

    def test_a_service_that_is_down_gets_it_later(
        self, ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        hook = Webhook()
        with telling(ledger, targets(tmp_path, a=hook.url(SECRET))):
            finish(ledger)
            wait_until(lambda: backlog(ledger) == {"a": (1, "nobody listens there")}, 20)
            with serving(hook):
                wait_until(lambda: hook.titles == ["job-aaaa1111: finished"], 20)
            wait_until(lambda: backlog(ledger) == {}, 5)
        assert "a was not notified: nobody listens there" in caplog.text
        assert SECRET not in caplog.text

    def test_a_service_that_hangs_delays_nobody(self, ledger: Ledger, tmp_path: Path) -> None:
        with serving(Webhook(hang=True)) as stuck, serving() as hook:
            file = targets(tmp_path, a=stuck.url("?rto=60"), b=hook.url())
            with telling(ledger, file, limit_s=8.0):
                finish(ledger)
                wait_until(lambda: stuck.taken == 1 and len(hook.titles) == 1, 20)
                began = time.monotonic()
                for number in range(20):
                    finish(ledger, f"cccc{number:04}")
                committed = time.monotonic() - began
                wait_until(lambda: len(hook.bodies) >= 2, 20)
                assert backlog(ledger)["a"] == (21, ""), "the first is still being tried"
                wait_until(lambda: backlog(ledger)["a"][1] != "", 20)
                assert backlog(ledger)["a"][1] == "it did not answer within 8 s"
        assert committed < 5

    def test_many_at_once_are_one_message(self, ledger: Ledger, tmp_path: Path) -> None:
        hook = Webhook()
        with telling(ledger, targets(tmp_path, a=hook.url())):
            for number in range(12):
                finish(ledger, f"cccc{number:04}", RunState.FAILED if number < 2 else RunState.SUCCEEDED)
            wait_until(lambda: backlog(ledger).get("a", (0, ""))[0] == 12 and backlog(ledger)["a"][1], 20)
            with serving(hook):
                wait_until(lambda: backlog(ledger) == {}, 20)
        assert hook.titles == ["12 notifications: 2 failed, 10 finished"]

    def test_stopping_does_not_wait_for_a_hung_service(
        self, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(notifying, "_STOP_S", 1.0)
        with serving(Webhook(hang=True)) as hook:
            with telling(ledger, targets(tmp_path, a=hook.url("?rto=60")), limit_s=60.0):
                finish(ledger)
                wait_until(lambda: hook.taken == 1, 20)
                began = time.monotonic()
            assert time.monotonic() - began < 10
        with serving(hook_at(hook)) as again, telling(ledger, TargetFile(tmp_path / "notify.yaml")):
            wait_until(lambda: len(again.titles) == 1, 20)

    def test_what_could_not_be_delivered_for_a_day_is_given_up(
        self, ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = Shifted()
        with telling(ledger, targets(tmp_path, a=Webhook().url(SECRET)), clock=clock) as notifier:
            finish(ledger)
            wait_until(lambda: backlog(ledger).get("a", (0, ""))[1], 20)
            clock.ahead = GIVE_UP + timedelta(minutes=1)
            notifier.wake()
            wait_until(lambda: backlog(ledger) == {}, 20)
        assert "1 notifications for a were given up after 24 h: nobody listens there" in caplog.text
        assert SECRET not in caplog.text

    def test_without_targets_nothing_is_kept(self, ledger: Ledger, tmp_path: Path) -> None:
        with telling(ledger, targets(tmp_path)) as notifier:
            finish(ledger)
            assert not notifier.tell(NoticeKind.SWEEP, "s1", "a sweep has finished")
        with ledger.read() as tx:
            assert tx.notices.unspread() == []

    def test_a_file_that_others_can_read_is_said_and_not_used(
        self, ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with serving() as hook:
            file = targets(tmp_path, a=hook.url(SECRET))
            (tmp_path / "notify.yaml").chmod(0o644)
            with telling(ledger, file):
                for run_id in ("aaaa1111", "bbbb2222"):
                    finish(ledger, run_id)
                assert caplog.text.count("others can read") == 1
                (tmp_path / "notify.yaml").chmod(0o600)
                finish(ledger, "cccc3333")
                wait_until(lambda: hook.titles == ["job-cccc3333: finished"], 20)
        assert SECRET not in caplog.text

    def test_of_trials_only_failures_are_told(self, ledger: Ledger, tmp_path: Path) -> None:
        with serving() as hook, telling(ledger, targets(tmp_path, a=hook.url())):
            with ledger.begin() as tx:
                tx.sweeps.add(SWEEP)
            ends = (RunState.SUCCEEDED, RunState.CANCELLED, RunState.FAILED)
            for number, state in enumerate(ends):
                run_id = f"cccc{number:04}"
                with ledger.begin() as tx:
                    stored = tx.add_run(run(run_id, spec=spec(f"job-{run_id}")))
                    tx.sweeps.add_trial(
                        TrialRecord("s1", number, run_id, number, 0, {}, TrialState.OPEN, NOW)
                    )
                with ledger.begin() as tx:
                    tx.save_run(replace(stored, state=state))
            finish(ledger)
            wait_until(lambda: len(hook.bodies) == 2, 20)
        assert hook.titles == ["job-cccc0002: failed", "job-aaaa1111: finished"]

    def test_what_the_sweeps_tell(self, ledger: Ledger, tmp_path: Path) -> None:
        with serving() as hook:
            file = targets(tmp_path)
            only = {"on": (NoticeKind.SWEEP,), "experiments": ("shake*",)}
            file.add(Target(name="a", url=hook.url(), **only))
            with telling(ledger, file) as notifier:
                links = {"run": "http://m", "loss": "http://l"}
                chosen = (("", "shakespeare"), ("", "shakespeare"), ("2", "bible"))
                what = (NoticeKind.SWEEP, "s1", "lr: finished", "best 1.4", links)
                told = [notifier.tell(*what, key=key, experiment=name) for key, name in chosen]
                assert told == [True, False, False]
                wait_until(lambda: hook.titles == ["lr: finished"], 20)
        assert hook.bodies[0]["message"] == "best 1.4\nMLflow: http://m"


def hook_at(hook: Webhook) -> Webhook:
    return Webhook(port=hook.port)


class Shifted:
    """The machine's clock, ahead of itself."""

    def __init__(self) -> None:
        from orchestrator.clock import SYSTEM

        self._system = SYSTEM
        self.ahead = timedelta(0)

    def now(self) -> Any:
        return self._system.now() + self.ahead

    def monotonic(self) -> float:
        return self._system.monotonic()

    boottime = monotonic

    def sleep(self, seconds: float) -> None:
        self._system.sleep(seconds)


CRASH = """
    import os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    from orchestrator.clock import SYSTEM
    from orchestrator.control.notifier import Notifier
    from orchestrator.domain.states import RunState
    from orchestrator.notify import texts
    from orchestrator.notify.sending import Sender
    from orchestrator.notify.targets import TargetFile
    from orchestrator.store.ledger import Ledger
    from tests.unit.records import run, spec

    home, when = Path(sys.argv[1]), sys.argv[2]
    ledger = Ledger(home / "controller" / "ledger.db")
    notifier = Notifier(
        ledger, TargetFile(home / "notify.yaml"), lambda run: texts.ended(texts.Facts(run)), Sender(), SYSTEM
    )
    if when == "committed":
        ended = lambda tx: tx.runs_changed["aaaa1111"].state.final
        ledger.watch(lambda tx: os.kill(os.getpid(), signal.SIGKILL) if ended(tx) else None)
    notifier.start()
    with ledger.begin() as tx:
        stored = tx.add_run(run(spec=spec("job-aaaa1111")))
    with ledger.begin() as tx:
        tx.save_run(replace(stored, state=RunState.SUCCEEDED))
        if when == "not committed":
            os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
"""


class TestCrash:
    """A controller that is killed."""

    def child(self, tmp_path: Path, when: str) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-c", textwrap.dedent(CRASH), str(tmp_path), when]
        return subprocess.Popen(program, cwd=Path(__file__).parents[3])

    @pytest.mark.parametrize(("when", "count"), [("committed", 1), ("not committed", 0)])
    def test_between_commit_and_delivery(self, tmp_path: Path, when: str, count: int) -> None:
        with serving() as hook:
            file = targets(tmp_path, a=hook.url())
            assert self.child(tmp_path, when).wait(60) == -signal.SIGKILL
            assert hook.bodies == []
            ledger = Ledger(tmp_path / "controller" / "ledger.db")
            with telling(ledger, file):
                wait_until(lambda: len(hook.bodies) == count and backlog(ledger) == {}, 20)
                time.sleep(2)
            assert hook.titles == ["job-aaaa1111: finished"] * count

    def test_while_sending(self, tmp_path: Path) -> None:
        with serving(Webhook(hang=True)) as hook:
            file = targets(tmp_path, a=hook.url("?rto=60"))
            child = self.child(tmp_path, "later")
            try:
                wait_until(lambda: hook.taken == 1, 60)
            finally:
                child.kill()
            child.wait(10)
        hook = hook_at(hook)
        ledger = Ledger(tmp_path / "controller" / "ledger.db")
        with serving(hook), telling(ledger, file):
            wait_until(lambda: hook.titles == ["job-aaaa1111: finished"], 20)


class TestApi:
    """By the client against the real API, with a controller whose loop runs."""

    @pytest.fixture
    def controller(self, tmp_path: Path, gateway: PaperGateway) -> Controller:
        return build(tmp_path, gateway)

    @pytest.fixture
    def api(self, controller: Controller) -> Iterator[TestClient]:
        app = create_app(controller, TOKEN, "cluster-1")
        with TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            yield client

    @pytest.fixture
    def client(self, api: TestClient) -> Iterator[Client]:
        with Client("http://testserver", TOKEN, transport=api._transport) as client:
            yield client

    def test_a_run_from_submit_to_the_message(
        self, api: TestClient, client: Client, gateway: PaperGateway, tmp_path: Path
    ) -> None:
        with serving() as hook:
            view = client.add_notify(NotifyRequest(url=hook.url(SECRET)))
            assert (view.name, view.shown) == ("json", f"json://127.0.0.1:{hook.port}/…")
            run_id = submit(api, experiment="shakespeare")
            launched(gateway, run_id)
            values = {10: 1.9, 20: 1.7, 30: 1.8}
            points = [{"key": "val/loss", "step": s, "time_ms": s, "value": v} for s, v in values.items()]
            beat(api, run_id, device="cpu", first_step=0, step=30, points=points)
            end(api, run_id, 1, "completed", exit_code=0, last_step=30)
            wait_until(lambda: hook.bodies, 20)
        (body,) = hook.bodies
        assert body["title"] == "shakespeare/job: finished, val/loss 1.8000 at step 30"
        assert body["message"].splitlines()[1:] == ["best val/loss 1.7000 at step 20"]
        assert "on laptop (cpu)" in body["message"]
        assert_nowhere(tmp_path)

    def test_a_failure_names_its_cause(self, api: TestClient, client: Client, gateway: PaperGateway) -> None:
        with serving() as hook:
            client.add_notify(NotifyRequest(name="b", url=hook.url(), on=[NoticeKind.FAILED]))
            run_id = submit(api)
            launched(gateway, run_id)
            beat(api, run_id)
            end(api, run_id, 1, "user-error", message="it said:\nValueError: no such file", last_step=3)
            wait_until(lambda: hook.bodies, 20)
        (body,) = hook.bodies
        assert body["title"] == "job: failed at step 3"
        assert body["message"].splitlines()[0] == "ValueError: no such file"
        assert body["message"].splitlines()[-1] == f"log: orch logs {run_id}"
        assert body["type"] == "failure"

    def test_targets_are_managed(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOOK", "json://127.0.0.1:9/x")
        assert client.notify_targets() == []
        with pytest.raises(NotFoundError, match="nobody is told anything"):
            client.test_notify()
        client.add_notify(NotifyRequest(url_env="HOOK", name="env", runs=["lr-*"], experiments=["e"]))
        (view,) = client.notify_targets()
        assert (view.shown, view.runs, view.experiments, view.waiting) == ("$HOOK", ["lr-*"], ["e"], 0)
        for request, error, text in [
            (NotifyRequest(url="foo://x"), SpecError, "no service foo"),
            (NotifyRequest(url="json://x", name="No Name"), SpecError, "name"),
            (NotifyRequest(), SpecError, "either url or url_env"),
            (NotifyRequest(url_env="NOT_SET"), SetupError, "NOT_SET is not set"),
        ]:
            with pytest.raises(error, match=text):
                client.add_notify(request)
        with pytest.raises(NotFoundError, match="no target is called"):
            client.remove_notify("other")
        assert client.remove_notify("env").name == "env"
        assert client.notify_targets() == []

    def test_trying_says_what_came_back_from_each(self, client: Client, tmp_path: Path) -> None:
        with serving() as hook, serving(Webhook(status=403)) as refuses:
            client.add_notify(NotifyRequest(name="a", url=hook.url(SECRET)))
            client.add_notify(NotifyRequest(name="b", url=refuses.url(SECRET)))
            client.add_notify(NotifyRequest(name="c", url=f"json://127.0.0.1:{free_port()}/{SECRET}"))
            sent = client.test_notify()
            only = client.test_notify(["b"])
        assert [(one.name, one.arrived, one.text) for one in sent] == [
            ("a", True, ""),
            ("b", False, "it answered with HTTP status 403 (Forbidden)"),
            ("c", False, "nobody listens there"),
        ]
        assert [one.name for one in only] == ["b"]
        assert hook.titles == ["orch: it works"]
        assert_nowhere(tmp_path)

    def test_no_address_in_logs_arguments_or_the_ledger(
        self,
        api: TestClient,
        client: Client,
        gateway: PaperGateway,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with serving(Webhook(hang=True)) as hook:
            client.add_notify(NotifyRequest(url=hook.url(f"{SECRET}?rto=60")))
            run_id = submit(api)
            launched(gateway, run_id)
            end(api, run_id, 1, "user-error")
            wait_until(lambda: hook.taken, 20)
            commands = arguments()
            assert any("orchestrator.notify.sender" in command for command in commands)
            assert not any(SECRET in command for command in commands)
            hook.let_go.set()
            wait_until(lambda: client.notify_targets()[0].error, 20)
            answers = [api.get("/v1/notify").text, api.post("/v1/notify/test", json={}).text]
            assert_nowhere(tmp_path)
        assert "the connection broke" in answers[0]
        assert SECRET not in "".join(answers)
        assert SECRET not in caplog.text


def arguments() -> list[str]:
    """Command lines of all processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


def assert_nowhere(home: Path) -> None:
    """The secret is in the file of targets and nowhere else below the state folder."""
    holding = [
        path.name for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert holding == ["notify.yaml"]
