"""An S3 server whose disk is full. SeaweedFS answers 500 then, as it does for other reasons."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.domain.states import Reason
from orchestrator.errors import StoreError, StoreFullError, StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, restore, verify
from orchestrator.store.objects import ObjectStore, open_store, store_id
from orchestrator.store.runlog import RunLog
from tests.faults.conftest import BUCKET
from tests.faults.test_full_node import mounted
from tests.integration.agent.bench import Bench
from tests.integration.agent.programs import train
from tests.s3 import S3Server, s3_server
from tests.support import wait_until
from tests.unit.store.helpers import RUN, log_keys, make_directory, read_directory, writer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")

MEGABYTE = 1 << 20
LARGE = 17 * MEGABYTE
"""Bytes of a file that takes three parts."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.s3_client._BACKOFF_S", 0.001)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """With room for 64 MB."""
    (tmp_path / "s3").mkdir()
    with mounted(tmp_path / "s3", 64_000), s3_server(tmp_path / "s3") as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture
def store(server: S3Server) -> ObjectStore:
    made = open_store(server.uri(BUCKET, "s"))
    store_id(made, create=True)
    return made


def fill(disk: Path, leave: int = MEGABYTE // 2) -> Path:
    """A file that takes all room but a little, as the server's own books need."""
    ballast = disk / "ballast"
    found = os.statvfs(disk)
    ballast.write_bytes(bytes(found.f_bavail * found.f_frsize - leave))
    return ballast


def large(folder: Path, step: int) -> Path:
    directory = make_directory(folder, step)
    (directory / "model.safetensors").write_bytes(os.urandom(LARGE))
    return directory


def commit(to: CheckpointWriter, directory: Path, step: int) -> None:
    to.commit(directory, step, metrics={}, device="cpu", node="n", points=b"point %d\n" % step)


def uploads(server: S3Server) -> list[str]:
    answer = server.client().list_multipart_uploads(Bucket=BUCKET)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


@pytest.mark.slow
def test_the_last_commit_stays_and_the_next_comes_when_there_is_room(
    server: S3Server, store: ObjectStore, tmp_path: Path
) -> None:
    to = writer(store)
    first, second = make_directory(tmp_path, 10), large(tmp_path, 20)
    commit(to, first, 10)
    ballast = fill(tmp_path / "s3")
    for _ in range(2):
        with pytest.raises(StoreFullError, match="probably it has no space left") as caught:
            commit(to, second, 20)
        assert caught.value.remedy
    assert uploads(server) == []
    (kept,) = checkpoints(store, RUN)
    assert verify(store, kept) == []
    assert {info.key.split("/")[4] for info in store.list(f"runs/{RUN}/data/")} == {kept.data.split("/")[-1]}
    assert len(log_keys(store)) == 2
    restored = restore(store, RUN, None, tmp_path / "while it is full")
    assert read_directory(restored.directory) == read_directory(first)

    ballast.unlink()

    def committed() -> bool:
        with suppress(StoreFullError):
            commit(to, second, 20)
        return len(checkpoints(store, RUN)) == 2

    wait_until(committed, 180, every=1.0)  # SeaweedFS looks for room twice a minute
    restored = restore(store, RUN, None, tmp_path / "out")
    assert read_directory(restored.directory) == read_directory(second)
    assert to.retain(1, 0, "x", "min") == [10]
    assert uploads(server) == []
    RunLog(store, RUN).claim(2, node="n")


@pytest.mark.slow
@pytest.mark.skipif("ORCH_SOAK" not in os.environ, reason="waits for SeaweedFS to look for room: make soak")
def test_a_run_whose_store_is_full(server: S3Server, tmp_path: Path) -> None:
    """The real agent: the run keeps its last commit, says why there is no newer one, and trains on."""
    (tmp_path / "bench").mkdir()
    bench = Bench(tmp_path / "bench", server.uri(BUCKET, "s"))
    try:
        bench.start(bench.script(train(steps=2400, every=100, pause=0.05, size=400_000)))
        wait_until(lambda: bench.steps(), 60, bench.evidence)
        ballast = fill(tmp_path / "s3")
        wait_until(lambda: any("no space left" in e for e in bench.controller.events), 90, bench.evidence)
        assert any("is not stored yet" in e for e in bench.controller.events), bench.evidence()
        assert verify(bench.store, bench.records()[-1]) == []
        step = bench.controller.last_step
        bench.wait_step(step + 50)
        ballast.unlink()
        wait_until(lambda: bench.steps()[-1] > step, 120, bench.evidence)
        outcome = bench.wait_outcome(timeout=180)
        assert outcome.reason is Reason.COMPLETED, bench.evidence()
        assert bench.steps()[-1] == 2400
        assert [p.step for p in bench.controller.points if p.key == "train/loss"] == list(range(2400))
        assert uploads(server) == []
    finally:
        bench.close()


class Broken(BaseHTTPRequestHandler):
    """Answers 500 to everything, or to all but listings."""

    reads = False
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(500, b"<Error><Code>InternalError</Code></Error>")

    def do_GET(self) -> None:
        if self.reads:
            self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        else:
            self._answer(500, b"<Error><Code>InternalError</Code></Error>")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.mark.parametrize(("reads", "error"), [(False, StoreUnavailableError), (True, StoreFullError)])
def test_a_server_that_cannot_be_read_either_is_not_full(
    monkeypatch: pytest.MonkeyPatch, reads: bool, error: type[StoreError]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(Broken, "reads", reads)
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            store = open_store(f"s3://b/x?endpoint=http://127.0.0.1:{http.server_address[1]}")
            with pytest.raises(error, match="InternalError") as caught:
                store.put("k", b"x")
            assert type(caught.value) is error
        finally:
            http.shutdown()
