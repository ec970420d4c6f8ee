"""Stores on a real S3 server: large objects, races, what errors say; and on one that cannot be trusted."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.errors import NotFoundError, SetupError, StoreError, StoreUnavailableError
from orchestrator.store.objects import ObjectInfo, ObjectStore, open_store, probe, read_bytes
from orchestrator.store.s3_store import PART, S3Store
from tests.s3 import SECRET_KEY, S3Server, s3_server
from tests.support import free_port

BUCKET = "stores"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.client().create_bucket(Bucket=BUCKET)
        yield running


@pytest.fixture(autouse=True)
def access(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The access key in the environment, and no other configuration of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def store(server: S3Server, request: pytest.FixtureRequest) -> ObjectStore:
    return open_store(server.uri(BUCKET, re.sub(r"\W", "-", request.node.name)))


def uploads(server: S3Server) -> list[str]:
    """Keys of multipart uploads that were begun and not ended."""
    answer = server.client().list_multipart_uploads(Bucket=BUCKET)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def test_large_objects_pass_in_parts(store: ObjectStore, server: S3Server, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 27 + b"tail"
    (tmp_path / "file").write_bytes(data)
    assert store.put("file", tmp_path / "file")
    assert store.put("reader", io.BytesIO(data), create_only=True)
    for key in ("file", "reader"):
        assert hashlib.sha256(b"".join(store.get(key))).digest() == hashlib.sha256(data).digest()
    begin, end = PART - 5, 3 * PART + 5
    assert b"".join(store.get("file", start=begin, end=end)) == data[begin:end]
    assert b"".join(store.get("file", start=len(data) - 3)) == data[-3:]
    etag = server.client().head_object(Bucket=BUCKET, Key=f"{store_prefix(store)}file")["ETag"]
    assert etag.strip('"').endswith("-4")  # of four parts
    assert uploads(server) == []


def store_prefix(store: ObjectStore) -> str:
    return store.uri.removeprefix(f"s3://{BUCKET}/") + "/"


@pytest.mark.parametrize("size", [PART - 1, PART, PART + 1, 2 * PART])
def test_sizes_around_a_part(store: ObjectStore, size: int) -> None:
    data = os.urandom(1 << 10) * (size // 1024 + 1)
    store.put("k", data[:size])
    assert b"".join(store.get("k")) == data[:size]
    assert [info.size for info in store.list("")] == [size]


def test_one_of_many_large_creators_wins(store: ObjectStore, server: S3Server) -> None:
    bodies = [bytes([number]) * (PART + 1) for number in range(6)]
    barrier = threading.Barrier(len(bodies))
    for key in ("a", "b", "c"):

        def create(body: bytes, key: str = key) -> bool:
            barrier.wait(20)
            return store.put(key, body, create_only=True)

        with ThreadPoolExecutor(len(bodies)) as pool:
            won = list(pool.map(create, bodies))
        assert sum(won) == 1
        assert b"".join(store.get(key)) == bodies[won.index(True)]
    assert uploads(server) == []


def test_what_is_created_has_its_limit(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.s3_store._CREATED_MOST", 100)
    assert store.put("k", bytes(100), create_only=True)
    with pytest.raises(StoreError, match="too many to be create-only"):
        store.put("l", bytes(101), create_only=True)
    assert [info.key for info in store.list("")] == ["k"]


def test_a_source_that_fails_late_leaves_no_parts(store: ObjectStore, server: S3Server) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 2 * PART:
                raise OSError(5, "source broke")
            return super().read(size)

    with pytest.raises(OSError, match="source broke"):
        store.put("k", Broken(bytes(4 * PART)))
    assert list(store.list("")) == []
    assert uploads(server) == []


def test_memory_is_bounded(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "big"
    with source.open("wb") as file:
        file.truncate(20 * PART)
    tracemalloc.start()
    try:
        store.put("big", source)
        total = sum(len(chunk) for chunk in store.get("big"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 20 * PART
    assert peak < 14 * PART


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(store: ObjectStore) -> None:
    store.put("k", b"a" * (20 * PART))
    chunks = store.get("k")
    assert next(chunks)
    store.put("k", b"b" * (20 * PART))
    with pytest.raises(StoreError, match="was replaced while it was read"):
        for _ in chunks:
            pass


def test_more_than_one_page_is_listed_in_order(store: ObjectStore) -> None:
    keys = sorted(f"{name}{number}" for number in range(400) for name in ("a/", "a-", "b/c/"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [info.key for info in store.list("")] == keys


def test_later_parts_of_a_huge_object_are_larger(
    store: ObjectStore, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.s3_upload._SMALL_PARTS", 2)
    data = os.urandom(1 << 20) * 90
    store.put("huge", data)
    assert b"".join(store.get("huge")) == data
    head = server.client().head_object(Bucket=BUCKET, Key=f"{store_prefix(store)}huge")
    assert head["ETag"].strip('"').endswith("-4")  # 8, 8, 64 and 10 MiB


def test_unfinished_uploads_of_yesterday_are_removed(
    store: ObjectStore, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{store_prefix(store)}k"
    client = server.client()
    number = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    client.upload_part(Bucket=BUCKET, Key=key, UploadId=number, PartNumber=1, Body=b"abc")
    store.prepare()
    assert store.tidy(SYSTEM.now() + timedelta(hours=1), dry_run=True) == [ObjectInfo("k", 3)]
    assert uploads(server) == [key]
    monkeypatch.setattr("orchestrator.store.s3_store.LEFTOVER", timedelta(hours=-1))
    store.prepare()
    assert uploads(server) == []


# ---------------------------------------------------------------------- what errors say


def test_no_bucket(server: S3Server) -> None:
    with pytest.raises(StoreUnavailableError, match=r"has no bucket nowhere") as caught:
        open_store(server.uri("nowhere", "x")).prepare()
    assert "aws s3 mb s3://nowhere" in str(caught.value.remedy)


def test_an_unknown_access_key(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone-else")
    with pytest.raises(StoreUnavailableError, match="does not accept the access key") as caught:
        open_store(server.uri(BUCKET)).put("k", b"")
    assert SECRET_KEY not in f"{caught.value} {caught.value.remedy}"


def test_a_wrong_secret(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(StoreUnavailableError, match="does not accept the access key") as caught:
        open_store(server.uri(BUCKET)).get("k")
    assert "hunter2" not in f"{caught.value} {caught.value.remedy}"


def test_no_access_key(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in server.env:
        monkeypatch.delenv(name)
    with pytest.raises(StoreUnavailableError, match="there is no access key") as caught:
        list(open_store(server.uri(BUCKET)).list(""))
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.remedy)


def test_a_profile_is_used(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in server.env:
        monkeypatch.delenv(name)
    lines = ["[lab]", *(f"{name.lower()} = {value}" for name, value in server.env.items())]
    (tmp_path / "credentials").write_text("\n".join(lines) + "\n")
    store = open_store(f"{server.uri(BUCKET, 'profile')}&profile=lab")
    assert store.put("k", b"x")
    with pytest.raises(StoreUnavailableError, match="other"):
        open_store(f"{server.uri(BUCKET)}&profile=other").put("k", b"x")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.s3_client._ATTEMPTS", 2)
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailableError, match=f"{endpoint} does not answer"):
        open_store(f"s3://{BUCKET}/x?endpoint={endpoint}").put("k", b"")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://key:hunter2@bucket/x", "may not contain an access key"),
        ("s3:///x", "names no bucket"),
        ("s3://b/x?endpont=http://h", "cannot say endpont"),
        ("s3://b/x?secret=hunter2", "cannot say secret"),
        ("s3://b/../x", "cannot be the key"),
    ],
)
def test_uris_that_are_wrong(uri: str, said: str) -> None:
    with pytest.raises((SetupError, StoreError), match=said) as caught:
        open_store(uri)
    assert "hunter2" not in str(caught.value)


def test_ways_to_write_a_place_are_one() -> None:
    uris = {S3Store(uri).uri for uri in ("s3://b/a/c/", "s3://b/a/c", "s3://b/a/c?region=x")}
    assert uris == {"s3://b/a/c"}
    assert S3Store("s3://b").uri == "s3://b"


# ---------------------------------------------------------------------- a server that cannot be trusted


class Careless(BaseHTTPRequestHandler):
    """Enough of S3 for small objects, except that it ignores conditions, as some servers do."""

    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "chunked" in self.headers.get("Content-Encoding", ""):  # sizes and checksums around the body
            size, _, rest = body.partition(b"\r\n")
            body = rest[: int(size.split(b";")[0], 16)]
        self.objects[self.key] = body
        self._answer(200, b"", ETag='"x"')

    def do_GET(self) -> None:
        if "list-type" in parse_qs(urlsplit(self.path).query):
            self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        elif self.key in self.objects:
            self._answer(200, self.objects[self.key], ETag='"x"')
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        self._answer(404, b"")

    def do_DELETE(self) -> None:
        self.objects.pop(self.key, None)
        self._answer(204, b"")

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def test_the_probe_refuses_a_server_that_ignores_conditions() -> None:
    Careless.objects = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            careless = open_store(f"s3://b/x?endpoint=http://127.0.0.1:{http.server_address[1]}")
            careless.put("k", b"it stores")
            assert read_bytes(careless, "k") == b"it stores"
            with pytest.raises(SetupError, match="does not honour create-only writes"):
                probe(careless)
        finally:
            http.shutdown()


def test_a_missing_object_on_a_server_that_is_there(store: ObjectStore) -> None:
    with pytest.raises(NotFoundError):
        store.get("k")
    with pytest.raises(NotFoundError):
        store.get("k", start=3, end=3)
