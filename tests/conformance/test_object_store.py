"""What every object store has to do. A new backend adds a fixture parameter, nothing else."""

from __future__ import annotations

import hashlib
import io
import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import NotFoundError, SetupError, StoreError
from orchestrator.store.objects import ObjectStore, open_store, probe, read_bytes, store_id
from orchestrator.store.protocol import CHUNK
from tests.s3 import s3_server
from tests.unit.store.memory_store import MemoryStore

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/..",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    ".tmp/x",
    ".hidden",
    "a\0b",
    "a\nb",
    "a b",
    "a\\b",
    "a*b",
    "a:b",
    "é",
    "a/" + "n" * 256,
    "/".join(["n" * 200] * 6),
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a bucket on a real S3 server, whose keys are in the environment meanwhile."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        server.client().create_bucket(Bucket="stores")
        yield server.uri("stores", "PREFIX")


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "memory":
        made: ObjectStore = MemoryStore()
    elif request.param == "file":
        made = open_store(f"file://{tmp_path}/store")
    else:
        made = open_store(request.getfixturevalue("bucket").replace("PREFIX", uuid.uuid4().hex))
    made.prepare()
    return made


class TestObjectStore:
    """The protocol's promises."""

    def test_what_was_put_is_got(self, store: ObjectStore, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"from a file")
        assert store.put("a/bytes", b"from bytes")
        assert store.put("a/file", tmp_path / "source")
        assert store.put("a/reader", io.BytesIO(b"from a reader"))
        assert store.put("a/none", b"")
        read = {info.key: read_bytes(store, info.key) for info in store.list("a/")}
        assert read == {
            "a/bytes": b"from bytes",
            "a/file": b"from a file",
            "a/none": b"",
            "a/reader": b"from a reader",
        }

    def test_put_replaces(self, store: ObjectStore) -> None:
        store.put("k", b"long first value")
        assert store.put("k", b"second")
        assert read_bytes(store, "k") == b"second"

    def test_create_only_keeps_the_first(self, store: ObjectStore) -> None:
        assert store.put("k", b"first", create_only=True)
        assert not store.put("k", b"second", create_only=True)
        assert not store.put("k", b"first", create_only=True)
        assert read_bytes(store, "k") == b"first"
        store.delete("k")
        assert store.put("k", b"third", create_only=True)

    def test_one_of_many_creators_wins(self, store: ObjectStore) -> None:
        for number in range(20):
            won: list[int] = []
            barrier = threading.Barrier(8)

            def race(me: int, key: str = f"race/{number}", won: list[int] = won) -> None:
                barrier.wait(10)  # noqa: B023
                if store.put(key, str(me).encode(), create_only=True):
                    won.append(me)

            threads = [threading.Thread(target=race, args=(me,)) for me in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert len(won) == 1
            assert read_bytes(store, f"race/{number}") == str(won[0]).encode()

    def test_put_all(self, store: ObjectStore) -> None:
        taken: list[str] = []

        def objects() -> Iterator[tuple[str, bytes | io.BytesIO]]:
            for name in ("x/1", "x/2", "y/3"):
                reader = io.BytesIO(name.encode())
                yield name, reader
                assert reader.read() == b"", "the next item was asked for before this one was read"
                taken.append(name)

        store.put_all(objects())
        assert taken == ["x/1", "x/2", "y/3"]
        assert read_bytes(store, "y/3") == b"y/3"

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (0, 4, b"0123"),
            (3, 4, b"3"),
            (4, 4, b""),
            (8, 99, b"89"),
            (10, None, b""),
            (99, None, b""),
            (99, 100, b""),
        ],
    )
    def test_ranges(self, store: ObjectStore, start: int, end: int | None, expected: bytes) -> None:
        store.put("k", b"0123456789")
        assert b"".join(store.get("k", start=start, end=end)) == expected

    def test_range_over_chunks(self, store: ObjectStore) -> None:
        data = bytes(range(256)) * (CHUNK // 128)
        store.put("k", data)
        assert b"".join(store.get("k", start=CHUNK - 3, end=CHUNK + 7)) == data[CHUNK - 3 : CHUNK + 7]
        assert b"".join(store.get("k")) == data

    def test_missing_is_said_at_once(self, store: ObjectStore) -> None:
        store.put("a/b", b"")
        for key in ("nothing", "a/c", "a", "a/b/c"):
            with pytest.raises(NotFoundError):
                store.get(key)

    def test_a_failing_source_leaves_nothing(self, store: ObjectStore) -> None:
        class Broken:
            def __init__(self) -> None:
                self.chunks = [b"x" * 10]

            def read(self, size: int, /) -> bytes:
                if self.chunks:
                    return self.chunks.pop()
                raise OSError(5, "source broke")

        with pytest.raises(OSError, match="source broke"):
            store.put("k", Broken())
        with pytest.raises(NotFoundError):
            store.get("k")
        assert list(store.list("")) == []

    def test_list_is_sorted_by_key(self, store: ObjectStore) -> None:
        keys = ["a-b/x", "a.b", "a/b", "a/b.c", "a/c/d", "a0", "ab", "b", "a/b-1/z", "A/z", "a/~"]
        for number, key in enumerate(keys):
            store.put(key, b"x" * number)
        assert [info.key for info in store.list("")] == sorted(keys)
        assert [info.size for info in store.list("a-b/")] == [0]

    def test_list_by_prefix(self, store: ObjectStore) -> None:
        for key in ("runs/r1/log/1", "runs/r1/log/2", "runs/r10/log/1", "runs/r2/x"):
            store.put(key, b"")
        assert [info.key for info in store.list("runs/r1/")] == ["runs/r1/log/1", "runs/r1/log/2"]
        assert [info.key for info in store.list("runs/r1")] == [
            "runs/r1/log/1",
            "runs/r1/log/2",
            "runs/r10/log/1",
        ]
        assert [info.key for info in store.list("runs/r1/log/2")] == ["runs/r1/log/2"]
        assert list(store.list("nothing/")) == []
        assert list(store.list("runs/r2/x/")) == []

    def test_delete(self, store: ObjectStore) -> None:
        store.put("a/b/c", b"")
        store.put("a/d", b"")
        store.delete("a/b/c")
        store.delete("a/b/c")
        store.delete("never/was")
        assert [info.key for info in store.list("")] == ["a/d"]
        assert store.put("a/b", b"a name that was a folder")

    @pytest.mark.parametrize("key", HOSTILE_KEYS)
    def test_hostile_keys(self, store: ObjectStore, key: str) -> None:
        for use in (
            lambda: store.put(key, b"x"),
            lambda: store.put(key, b"x", create_only=True),
            lambda: store.put_all([(key, b"x")]),
            lambda: store.get(key),
            lambda: store.delete(key),
        ):
            with pytest.raises(StoreError, match="cannot be the key"):
                use()

    @pytest.mark.parametrize("prefix", ["/", "..", "../", "a/../", "a//", ".tmp/", "a b"])
    def test_hostile_prefixes(self, store: ObjectStore, prefix: str) -> None:
        with pytest.raises(StoreError):
            list(store.list(prefix))

    def test_identity(self, store: ObjectStore) -> None:
        with pytest.raises(NotFoundError, match=r"store\.json"):
            store_id(store)
        made = store_id(store, create=True)
        assert store_id(store) == store_id(store, create=True) == made

    def test_identity_is_raced_safely(self, store: ObjectStore) -> None:
        barrier = threading.Barrier(8)
        found: list[str] = []

        def identify() -> None:
            barrier.wait(10)
            found.append(store_id(store, create=True))

        threads = [threading.Thread(target=identify) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 8
        assert len(set(found)) == 1

    def test_probe_accepts_and_leaves_nothing(self, store: ObjectStore) -> None:
        probe(store)
        assert list(store.list("")) == []


def test_big_files_stream(tmp_path: Path) -> None:
    """200 MB pass through a few chunks of memory, in both directions."""
    store = open_store(tmp_path / "store")
    store.prepare()
    block = bytes(range(256)) * 4096
    source = tmp_path / "big"
    with source.open("wb") as file:
        for _ in range(200):
            file.write(block)
    tracemalloc.start()
    try:
        store.put("big", source)
        digest = hashlib.sha256()
        for chunk in store.get("big"):
            digest.update(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * CHUNK
    assert digest.digest() == hashlib.sha256(block * 200).digest()


class _Careless(MemoryStore):
    """Ignores the condition, as some S3-compatible servers do."""

    def put(self, key: str, source: object, *, create_only: bool = False) -> bool:
        return super().put(key, source)  # type: ignore[arg-type]


class _Forgetful(MemoryStore):
    """Lets one of several writers at once win, but a later one replaces what is there."""

    def __init__(self) -> None:
        super().__init__()
        self._late: set[str] = set()

    def put(self, key: str, source: object, *, create_only: bool = False) -> bool:
        if source == b"late":
            return super().put(key, b"late")
        return super().put(key, source, create_only=create_only)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [_Careless, _Forgetful])
def test_probe_refuses_a_store_that_ignores_create_only(kind: type[MemoryStore]) -> None:
    bad = kind()
    with pytest.raises(SetupError, match="create-only") as caught:
        probe(bad)
    assert caught.value.remedy
    assert bad.objects == {}


def test_probe_is_bounded() -> None:
    release = threading.Event()

    def hang(operation: str, key: str, act: object) -> object:
        if operation == "create":
            release.wait(30)
        return act()  # type: ignore[operator]

    try:
        with pytest.raises(StoreError, match="did not answer"):
            probe(MemoryStore(hook=hang), timeout=1.0)
    finally:
        release.set()


@pytest.mark.parametrize("uri", ["s3x://bucket/x", "http://host/x", "://x", "gs://b"])
def test_unknown_kinds_of_store(uri: str) -> None:
    with pytest.raises(SetupError, match="not supported") as caught:
        open_store(uri)
    assert "file://" in str(caught.value.remedy)


def test_secrets_in_a_uri_are_not_repeated() -> None:
    with pytest.raises(SetupError) as caught:
        open_store("ftp://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["file://host/x", "file://relative"])
def test_file_uris_of_other_machines(uri: str) -> None:
    with pytest.raises(SetupError, match="does not name a folder"):
        open_store(uri)


def test_ways_to_name_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    identity = store_id(open_store(folder), create=True)
    monkeypatch.chdir(tmp_path)
    for uri in (str(folder), f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b", "a b"):
        assert store_id(open_store(uri)) == identity
        assert open_store(uri).uri == f"file://{tmp_path}/a%20b"
