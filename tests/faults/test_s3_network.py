"""Commits to a real S3 server over a bad network: none is lost, none counts twice, nothing is left over."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from orchestrator.errors import StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, verify
from orchestrator.store.objects import open_store, read_bytes, store_id
from orchestrator.store.runlog import RunLog
from orchestrator.store.s3_store import PART
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.s3 import S3Server, s3_server

FAULTS = {"busy": 0.10, "slow_down": 0.05, "reset": 0.10, "reply_lost": 0.05, "cut": 0.03, "stall": 0.002}
RUNS = 8
COMMITS = int(os.environ.get("ORCH_SOAK_COMMITS", "28"))
"""In all. `make soak` makes 500."""
LARGE = 2 * PART + 1000
"""A file that takes a multipart upload; every tenth commit has one."""
BUCKET = "lab"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        running.client().create_bucket(Bucket=BUCKET)
        yield running


def test_a_lost_answer_is_no_lost_race(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was carried out counts as done, although only a repeated request was answered."""
    monkeypatch.setattr("orchestrator.store.s3_client._BACKOFF_S", 0.001)
    direct = open_store(server.uri(BUCKET, "s"))
    with fault_proxy(server.endpoint, {"reply_lost": 0.4}) as proxy:
        store = open_store(f"s3://{BUCKET}/s?endpoint={proxy.url}")
        for number in range(8):
            assert store.put(f"own/{number}", b"mine", create_only=True)
            direct.put(f"theirs/{number}", b"theirs")
            assert not store.put(f"theirs/{number}", b"mine", create_only=True)
        for number in range(4):
            store.put(f"large/{number}", bytes(LARGE))
        assert proxy.counts["reply_lost"] > 8
    assert [info.size for info in direct.list("large/")] == [LARGE] * 4
    assert read_bytes(direct, "theirs/7") == b"theirs"
    assert "Uploads" not in server.client().list_multipart_uploads(Bucket=BUCKET)


@pytest.mark.timeout(1800)
def test_commits_over_a_bad_network(server: S3Server, tmp_path: Path) -> None:
    direct = open_store(server.uri(BUCKET, "s"))
    store_id(direct, create=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with fault_proxy(server.endpoint, FAULTS) as proxy, ThreadPoolExecutor(RUNS) as pool:
        again = sum(pool.map(lambda run: commit_all(proxy, tmp_path, run), range(RUNS)))
    print(f"\n{COMMITS} commits, {again} of them tried again; {dict(proxy.counts)}")
    for run in range(RUNS):
        made = checkpoints(direct, f"run-{run}")
        assert [record.step for record in made] == steps_of(run)
        assert [problem for record in made for problem in verify(direct, record)] == []
        named = {record.key(file) for record in made for file in record.files}
        stored = {info.key for info in direct.list(f"runs/run-{run}/")}
        assert named <= stored
        assert {key for key in stored - named if "/data/" in key} == set()
    answer = server.client().list_multipart_uploads(Bucket=BUCKET)
    assert [upload["Key"] for upload in answer.get("Uploads", [])] == []
    assert min(proxy.counts[name] for name in ("busy", "slow_down", "reset", "reply_lost", "cut")) > 0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < RUNS * 12 * PART


T = TypeVar("T")


def patiently(act: Callable[[], T]) -> tuple[T, int]:
    """Do it until its outcome is known, as an agent does; the result and the number of tries."""
    for tries in range(1, 20):
        try:
            return act(), tries
        except StoreUnavailableError:
            continue
    raise AssertionError("the store was never there")


def steps_of(run: int) -> list[int]:
    return [step for step in range(1, COMMITS + 1) if step % RUNS == run]


def commit_all(proxy: FaultProxy, folder: Path, run: int) -> int:
    """All commits of one run; how many had to be tried again after an unknown outcome."""
    store = open_store(f"s3://{BUCKET}/s?endpoint={proxy.url}")
    log = RunLog(store, f"run-{run}")
    writer = CheckpointWriter(store, patiently(lambda: log.claim(1, node="n"))[0])
    again = 0
    for step in steps_of(run):
        directory = folder / f"run-{run}" / f"step-{step}"
        directory.mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(os.urandom(LARGE if step % 10 == 0 else 3000))
        (directory / "state.json").write_bytes(os.urandom(100))
        record, tries = patiently(
            lambda directory=directory, step=step: writer.commit(  # type: ignore[misc]
                directory, step, metrics={"val": 1.0}, device="cpu", node="n", points=b""
            )
        )
        assert record.step == step
        again += tries > 1
    return again
