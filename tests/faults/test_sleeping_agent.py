"""A machine sleeps, its run goes on elsewhere, and it wakes up: the agent there ends and leaves no trace."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.agent.waking import SLEPT_S
from orchestrator.domain.states import Reason
from orchestrator.store.checkpoints import checkpoints, restore
from orchestrator.store.objects import read_bytes
from tests.faults.conftest import BUCKET
from tests.integration.agent.bench import RUN, Bench
from tests.integration.agent.programs import train
from tests.s3 import S3Server
from tests.support import wait_until
from tests.unit.store.helpers import commit, contents, log_keys, read_directory, writer

LARGE = 40_000_000


@pytest.fixture
def bench(tmp_path: Path, place: str) -> Iterator[Bench]:
    one = Bench(tmp_path, place)
    yield one
    one.close()


def test_between_commits(bench: Bench) -> None:
    bench.start(bench.script(train(steps=10_000, every=20, pause=0.02)))
    wait_until(lambda: len(bench.steps()) >= 2, 30, bench.evidence)
    send_all(bench, signal.SIGSTOP)
    taken_over_and_woken(bench)


def test_in_the_middle_of_an_upload(bench: Bench, request: pytest.FixtureRequest) -> None:
    uploads = s3_uploads(request.getfixturevalue("s3")) if bench.store_uri[0] == "s" else file_uploads(bench)
    spec = bench.script(train(steps=10_000, every=20, pause=0.02, size=LARGE))
    bench.start({**spec, "checkpoint": {"keep_last": 1, "keep_best": 0}})
    wait_until(lambda: stopped_while(bench, uploads), 60, bench.evidence, every=0.002)
    taken_over_and_woken(bench)
    assert not uploads()


def test_it_goes_on_though_ray_has_given_the_machine_up(bench: Bench) -> None:
    """Ray ends its actors when a machine wakes that it has declared dead meanwhile."""
    gate = bench.root / "gate"
    bench.start(bench.script(train(steps=150, every=20, pause=0.02, gate=gate)))
    wait_until(lambda: len(bench.steps()) >= 2, 30, bench.evidence)
    send_all(bench, signal.SIGSTOP)
    bench.actor.kill()
    reached = bench.steps()[-1]
    gate.touch()
    time.sleep(SLEPT_S + 0.5)  # the sleep itself
    send_all(bench, signal.SIGCONT)
    outcome = bench.wait_outcome(timeout=60)
    assert outcome.reason is Reason.COMPLETED
    assert bench.records()[-1].step == 150 > reached
    said = " ".join(bench.controller.events)
    assert "nothing ran on this machine for" in said
    assert "Ray had given this machine up while it slept" in said


def s3_uploads(server: S3Server) -> Callable[[], bool]:
    return lambda: "Uploads" in server.client().list_multipart_uploads(Bucket=BUCKET)


def file_uploads(bench: Bench) -> Callable[[], bool]:
    def under_way() -> bool:
        found = False
        for path in (bench.store_path / ".tmp").iterdir():
            with suppress(FileNotFoundError):
                found |= path.stat().st_size > 1_000_000
        return found

    return under_way


def stopped_while(bench: Bench, condition: Callable[[], bool]) -> bool:
    """Whether everything on the node was stopped while the condition held; else it runs on."""
    if not condition():
        return False
    send_all(bench, signal.SIGSTOP)
    if condition():
        return True
    send_all(bench, signal.SIGCONT)
    return False


def send_all(bench: Bench, number: signal.Signals) -> None:
    """To everything that runs on the node."""
    for pid in bench.processes():
        os.kill(pid, number)


def taken_over_and_woken(bench: Bench) -> None:
    """The rest of each of these tests."""
    to = writer(bench.store, 2, RUN)
    commit(to, bench.root, 500_000)
    to.retain(9, 0, "x", "min")
    log = {key: read_bytes(bench.store, key) for key in log_keys(bench.store, RUN)}
    send_all(bench, signal.SIGCONT)
    outcome = bench.wait_outcome(timeout=60)
    assert outcome.reason is Reason.FENCED
    assert not bench.processes()
    assert {key: read_bytes(bench.store, key) for key in log_keys(bench.store, RUN)} == log
    kept = {record.data for record in checkpoints(bench.store, RUN) if not record.retired}
    assert {"/".join(info.key.split("/")[:5]) for info in bench.store.list(f"runs/{RUN}/data/")} == kept
    restored = restore(bench.store, RUN, None, bench.root / "out")
    assert read_directory(restored.directory) == contents(500_000)
