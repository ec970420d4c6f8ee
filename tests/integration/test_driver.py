"""The parent's side of the Ray gateway, against a driver that is only pretended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.agent.identity import identify
from orchestrator.agent.job import AgentJob
from orchestrator.cluster import gateway as gateway_module
from orchestrator.cluster.gateway import RayGateway
from orchestrator.errors import NotFoundError, UnavailableError
from orchestrator.spec.models import CommandProgram, RunSpec, Variant
from tests.support import wait_until

DRIVER = Path(__file__).with_name("fake_driver.py")
Open = Callable[[str], RayGateway]


@pytest.fixture
def open_gateway(tmp_path: Path) -> Iterator[Open]:
    """A gateway whose driver behaves as the mode says; closed at the end."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{DRIVER}"\n')
    python.chmod(0o755)
    opened: list[RayGateway] = []

    def run(mode: str) -> RayGateway:
        env = {**os.environ, "FAKE_DRIVER": mode}
        gateway = RayGateway("127.0.0.2:1", tmp_path / "gateway.log", python=str(python), env=env)
        opened.append(gateway)
        gateway.start()
        return gateway

    yield run
    for gateway in opened:
        gateway.close()


@pytest.fixture
def gateway(open_gateway: Open) -> RayGateway:
    gateway = open_gateway("fine")
    wait_until(lambda: gateway.connected, 20.0)
    return gateway


def driver_pid(gateway: RayGateway) -> int:
    return int(gateway.nodes()[0].ray_id)


def gone(pid: int) -> bool:
    who = identify(pid)
    return who is None or not who.alive()


def job() -> AgentJob:
    return AgentJob(
        run_id="r",
        attempt=1,
        spec=RunSpec(name="n", command=CommandProgram(argv=["true"]), placement=[Variant(pool="p")]),
        variant=Variant(pool="p"),
        node="a",
        controller_url="http://127.0.0.1:1",
        store_uri="file:///srv",
    )


def test_answers_become_records(gateway: RayGateway) -> None:
    (node,) = gateway.nodes()
    assert (node.name, node.pool, node.alive) == ("a", "p", True)
    assert gateway.probe("x").agent_alive is True
    assert gateway.launch("run-r-a1", "n1", 1, 10, job()) is True
    assert gateway.launch("run-r-a1", "n2", 1, 10, job()) is False


def test_errors_keep_their_kind(gateway: RayGateway) -> None:
    with pytest.raises(NotFoundError, match="no such actor"):
        gateway.kill("x")


def test_a_slow_request_holds_up_nobody(gateway: RayGateway) -> None:
    slow = threading.Thread(target=gateway.probe, args=("slow",))
    slow.start()
    began = time.monotonic()
    gateway.nodes()
    assert time.monotonic() - began < 3.0
    slow.join(20.0)


def test_many_threads_get_their_own_answers(gateway: RayGateway) -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(50):
            if gateway.probe(name).name != name:
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(f"actor-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert wrong == []


def test_a_killed_driver_is_replaced_and_waiting_requests_end(gateway: RayGateway) -> None:
    pid = driver_pid(gateway)
    failures: list[Exception] = []

    def wait_for_ever() -> None:
        try:
            gateway.probe("never", timeout_s=30.0)
        except UnavailableError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait_for_ever)
    waiting.start()
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    waiting.join(20.0)
    assert len(failures) == 1, "a request does not wait for an answer that cannot come"
    wait_until(lambda: gateway.connected and driver_pid(gateway) != pid, 20.0)


def test_one_slow_request_does_not_end_a_driver_that_answers_others(
    gateway: RayGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "SLACK_S", 0.1)
    pid = driver_pid(gateway)
    with pytest.raises(UnavailableError, match="within"):
        gateway.probe("never", timeout_s=0.3)
    assert driver_pid(gateway) == pid


def test_a_hung_driver_is_killed_and_replaced(gateway: RayGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "SLACK_S", 0.1)
    monkeypatch.setattr(gateway_module, "SILENT_S", 0.5)
    pid = driver_pid(gateway)
    with pytest.raises(UnavailableError):
        gateway.probe("hang", timeout_s=0.6)
    with pytest.raises(UnavailableError):
        gateway.nodes(timeout_s=0.6)
    wait_until(lambda: gone(pid), 5.0)
    wait_until(lambda: gateway.connected and driver_pid(gateway) != pid, 20.0)


def test_a_stopped_driver_is_killed_and_replaced(
    gateway: RayGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "SLACK_S", 0.1)
    monkeypatch.setattr(gateway_module, "SILENT_S", 0.5)
    pid = driver_pid(gateway)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(UnavailableError):
        gateway.nodes(timeout_s=0.6)
    wait_until(lambda: gateway.connected and driver_pid(gateway) != pid, 20.0)
    assert gone(pid)


def test_the_reason_is_told_while_ray_cannot_be_reached(open_gateway: Open) -> None:
    gateway = open_gateway("refuse")

    def why() -> str:
        with pytest.raises(UnavailableError) as caught:
            gateway.nodes()
        return caught.value.message

    wait_until(lambda: "nothing answers at 127.0.0.2:1" in why(), 20.0, why)
    assert not gateway.connected


def test_a_driver_that_never_connects_is_given_up(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "READY_S", 0.5)
    gateway = open_gateway("mute")

    def why() -> str:
        with pytest.raises(UnavailableError) as caught:
            gateway.nodes()
        return caught.value.message

    wait_until(lambda: "took too long" in why(), 20.0, why)


def test_a_request_to_a_driver_that_ends_is_unavailable(open_gateway: Open) -> None:
    gateway = open_gateway("die")
    wait_until(lambda: gateway.connected, 20.0)
    with pytest.raises(UnavailableError):
        gateway.nodes()


def test_closing_ends_the_driver(gateway: RayGateway) -> None:
    pid = driver_pid(gateway)
    gateway.close()
    assert gone(pid)
    assert not gateway.connected
