"""How bytes travel to and from a real S3 server: uploads go on after an interruption, limits are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import StoreUnavailableError
from orchestrator.store.objects import ObjectStore, open_store
from orchestrator.store.s3_store import S3Store
from orchestrator.store.s3_upload import PART
from orchestrator.store.throttle import Paces, TokenBucket
from tests.relay import Relay, most_within, relay
from tests.s3 import S3Server, s3_server

BUCKET = "transfers"
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(autouse=True)
def impatient(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The access key in the environment; requests are repeated at once, and three times at most."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("orchestrator.store.s3_client._ATTEMPTS", 3)
    monkeypatch.setattr("orchestrator.store.s3_client._BACKOFF_S", 0.001)


@pytest.fixture
def way(server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with relay(server.endpoint) as running:
        yield running


@pytest.fixture
def store(way: Relay, server: S3Server) -> Iterator[ObjectStore]:
    """A store behind the relay. At the end no upload may be left over."""
    yield open_store(f"s3://{BUCKET}/x?endpoint={way.url}")
    assert uploads(server) == []


def uploads(server: S3Server) -> list[str]:
    """Keys of multipart uploads that were begun and not ended."""
    answer = server.client().list_multipart_uploads(Bucket=BUCKET)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def interrupted(store: ObjectStore, way: Relay, source: Path, after: int) -> None:
    """Begin to store it; the server goes away in the middle, and comes back when it is too late."""
    way.away_after = way.sent + after
    with pytest.raises(StoreUnavailableError):
        store.put("k", source)
    way.away = False


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """64 MiB."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(64 * MIB))
    return path


def test_an_interrupted_upload_goes_on(
    store: ObjectStore, way: Relay, server: S3Server, source: Path
) -> None:
    interrupted(store, way, source, 33 * MIB)
    assert uploads(server) == ["x/k"]
    assert store.put("k", source)
    assert way.sent < 1.3 * 64 * MIB
    assert b"".join(store.get("k")) == source.read_bytes()


def test_what_has_changed_meanwhile_is_sent_again(store: ObjectStore, way: Relay, source: Path) -> None:
    interrupted(store, way, source, 60 * MIB)
    changed = bytearray(source.read_bytes())
    changed[5] ^= 1
    changed[PART] ^= 1
    changed = changed[: 50 * MIB]
    source.write_bytes(changed)
    before = way.sent
    assert store.put("k", source)
    assert 2 * PART < way.sent - before < 6.5 * PART
    assert b"".join(store.get("k")) == changed


def test_an_upload_that_the_server_has_forgotten_begins_anew(
    store: ObjectStore, way: Relay, server: S3Server, source: Path
) -> None:
    interrupted(store, way, source, 33 * MIB)
    client = server.client()
    [upload] = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    client.abort_multipart_upload(Bucket=BUCKET, Key="x/k", UploadId=upload["UploadId"])
    assert store.put("k", source)
    assert b"".join(store.get("k")) == source.read_bytes()


def test_deleting_gives_an_interrupted_upload_up(
    store: ObjectStore, way: Relay, server: S3Server, source: Path
) -> None:
    interrupted(store, way, source, 20 * MIB)
    way.away = True
    with pytest.raises(StoreUnavailableError):
        store.delete("k")
    way.away = False
    assert uploads(server) == ["x/k"]
    store.delete("k")
    assert uploads(server) == []
    interrupted(store, way, source, 20 * MIB)
    assert store.put("k", b"small")  # in its place
    assert uploads(server) == []
    store.delete("k")


def test_few_interrupted_uploads_are_remembered(
    store: ObjectStore, way: Relay, server: S3Server, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.s3_upload.REMEMBERED", 1)
    interrupted(store, way, source, 10 * MIB)
    client = server.client()
    way.away_after = way.sent + 10 * MIB
    with pytest.raises(StoreUnavailableError):
        store.put("l", source)
    way.away = False
    # The older one could not be aborted while the server was away.
    left = {
        upload["Key"]: upload["UploadId"]
        for upload in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    }
    assert store.put("l", source)
    before = way.sent
    assert store.put("k", source)
    assert way.sent - before > 64 * MIB
    client.abort_multipart_upload(Bucket=BUCKET, Key="x/k", UploadId=left["x/k"])


# ---------------------------------------------------------------------- limits

LIMIT = 4_000_000


def limited(way: Relay) -> ObjectStore:
    """A store that may send and fetch 4 MB/s."""
    paces = Paces(TokenBucket(LIMIT), TokenBucket(LIMIT))
    return S3Store(f"s3://{BUCKET}/x?endpoint={way.url}", paces)


@pytest.mark.parametrize("size", [8_000_000, PART + 400_000])
def test_limits_are_kept_and_used(way: Relay, server: S3Server, size: int) -> None:
    """In one request, and in parts side by side."""
    store, data = limited(way), os.urandom(size)
    store.put("warm", b"")
    way.up.clear()
    store.put("k", data)
    assert size / LIMIT == pytest.approx(lasted(way.up), rel=0.2)
    assert most_within(way.up, 0.25) < 2 * 0.25 * LIMIT
    way.down.clear()
    assert b"".join(store.get("k")) == data
    assert size / LIMIT == pytest.approx(lasted(way.down), rel=0.2)
    assert most_within(way.down, 0.25) < 2 * 0.25 * LIMIT
    assert uploads(server) == []


def lasted(passed: list[tuple[float, int]]) -> float:
    """Seconds from the first to the last byte."""
    return passed[-1][0] - passed[0][0]
