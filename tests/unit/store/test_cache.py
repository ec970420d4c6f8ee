"""The node's cache of checkpoints: what is here is not fetched, nothing damaged is used, the size is kept."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from orchestrator.errors import DamagedError, StoreError, StoreUnavailableError
from orchestrator.store.cache import CheckpointCache
from orchestrator.store.checkpoints import CheckpointRecord, checkpoints, restore
from orchestrator.store.objects import store_id
from orchestrator.store.protocol import CHUNK
from orchestrator.store.records import FileEntry
from tests.unit.store.helpers import RUN, commit, contents, read_directory, writer
from tests.unit.store.memory_store import MemoryStore


class Counting(MemoryStore):
    """Counts the bytes of checkpoints that are fetched; breaks off after `lasts` of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched = 0
        self.lasts: int | None = None

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        chunks = super().get(key, start=start, end=end)
        return self._counted(chunks) if "/data/" in key else chunks

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self.lasts is not None and self.fetched + len(chunk) > self.lasts:
                raise StoreUnavailableError("it went away")
            self.fetched += len(chunk)
            yield chunk


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    """A store with a checkpoint of step 10."""
    made = Counting()
    store_id(made, create=True)
    commit(writer(made), tmp_path, 10)
    made.fetched = 0
    return made


@pytest.fixture
def cache(tmp_path: Path) -> CheckpointCache:
    return CheckpointCache(tmp_path / "node" / "cache", 1_000_000)


def record_of(store: Counting) -> CheckpointRecord:
    return checkpoints(store, RUN)[0]


def names(cache: CheckpointCache) -> list[str]:
    return sorted(os.listdir(cache.folder)) if cache.folder.exists() else []


def digests(record: CheckpointRecord) -> list[str]:
    return sorted(file.sha256 for file in record.files if file.size)


def test_the_second_time_nothing_is_fetched(store: Counting, cache: CheckpointCache, tmp_path: Path) -> None:
    moved: list[int] = []
    restore(store, RUN, None, tmp_path / "a", cache=cache, on_bytes=moved.append)
    record = record_of(store)
    assert store.fetched == sum(moved) == record.size
    assert names(cache) == digests(record)
    moved.clear()
    (tmp_path / "a" / "model.safetensors").unlink()
    restore(store, RUN, None, tmp_path / "b", cache=cache, on_bytes=moved.append)
    assert store.fetched == sum(moved) == record.size
    assert read_directory(tmp_path / "b") == contents(10)


def test_what_was_committed_here_is_not_fetched(
    store: Counting, cache: CheckpointCache, tmp_path: Path
) -> None:
    record = record_of(store)
    directory = tmp_path / "step-00000010"
    cache.take_in(directory, record.files)
    assert [path for path in directory.rglob("*") if path.is_file()] == [directory / "empty"]
    restore(store, RUN, None, tmp_path / "a", cache=cache)
    assert store.fetched == 0
    assert read_directory(tmp_path / "a") == contents(10)


def test_only_what_is_missing_or_damaged_is_fetched(
    store: Counting, cache: CheckpointCache, tmp_path: Path
) -> None:
    restore(store, RUN, None, tmp_path / "a", cache=cache)
    files = {file.path: file for file in record_of(store).files}
    kept = cache.folder / files["model.safetensors"].sha256
    for damage in (
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
    ):
        kept.write_bytes(damage(contents(10)["model.safetensors"]))
        store.fetched = 0
        into = tmp_path / f"b{len(os.listdir(tmp_path))}"
        restore(store, RUN, None, into, cache=cache)
        assert store.fetched == 3000
        assert read_directory(into) == contents(10)
        assert kept.read_bytes() == contents(10)["model.safetensors"]


def test_a_copy_is_a_file_of_its_own(store: Counting, cache: CheckpointCache, tmp_path: Path) -> None:
    cache.take_in(tmp_path / "step-00000010", record_of(store).files)
    restore(store, RUN, None, tmp_path / "a", cache=cache)
    (tmp_path / "a" / "model.safetensors").write_bytes(b"the program writes here")
    store.fetched = 0
    restore(store, RUN, None, tmp_path / "b", cache=cache)
    assert store.fetched == 0


# ---------------------------------------------------------------------- downloads that were interrupted


@pytest.fixture
def large(tmp_path: Path) -> Counting:
    """A store whose only checkpoint is one file of 5 MiB and a bit, of which 2.5 can be fetched."""
    made = Counting()
    store_id(made, create=True)
    directory = tmp_path / "large"
    directory.mkdir()
    (directory / "model").write_bytes(os.urandom(5 * CHUNK + 5))
    writer(made).commit(directory, 10, metrics={}, device="cpu", node="n")
    made.fetched = 0
    made.lasts = 2 * CHUNK + CHUNK // 2
    return made


@pytest.fixture
def roomy(tmp_path: Path) -> CheckpointCache:
    return CheckpointCache(tmp_path / "node" / "cache", 10 * CHUNK)


def test_an_interrupted_download_goes_on(large: Counting, roomy: CheckpointCache, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        restore(large, RUN, None, tmp_path / "a", cache=roomy)
    assert not (tmp_path / "a").exists()
    assert [path.stat().st_size for path in roomy.folder.iterdir()] == [2 * CHUNK]
    large.lasts = None
    moved: list[int] = []
    again = CheckpointCache(roomy.folder, roomy.limit)  # another process
    restore(large, RUN, None, tmp_path / "a", cache=again, on_bytes=moved.append)
    assert large.fetched == sum(moved) == 5 * CHUNK + 5
    assert read_directory(tmp_path / "a") == read_directory(tmp_path / "large")
    assert names(roomy) == digests(record_of(large))


def test_a_whole_part_is_used(large: Counting, roomy: CheckpointCache, tmp_path: Path) -> None:
    """Its download was killed in the last moment."""
    [file] = record_of(large).files
    roomy.folder.mkdir(parents=True)
    (tmp_path / "large" / "model").rename(roomy.folder / f"{file.sha256}.part")
    restore(large, RUN, None, tmp_path / "a", cache=roomy)
    assert large.fetched == 0
    assert names(roomy) == [file.sha256]


@pytest.mark.parametrize("left", [b"x" * CHUNK, b"x" * 6 * CHUNK])
def test_a_damaged_part_is_thrown_away(
    large: Counting, roomy: CheckpointCache, tmp_path: Path, left: bytes
) -> None:
    large.lasts = None
    [file] = record_of(large).files
    roomy.folder.mkdir(parents=True)
    (roomy.folder / f"{file.sha256}.part").write_bytes(left)
    restore(large, RUN, None, tmp_path / "a", cache=roomy)
    assert read_directory(tmp_path / "a") == read_directory(tmp_path / "large")
    assert names(roomy) == [file.sha256]


def test_nothing_is_kept_of_a_damaged_checkpoint(
    large: Counting, roomy: CheckpointCache, tmp_path: Path
) -> None:
    large.lasts = None
    [key] = [key for key in large.objects if "/data/" in key]
    large.objects[key] = large.objects[key][:-1] + b"?"
    with pytest.raises(DamagedError):
        restore(large, RUN, None, tmp_path / "a", cache=roomy)
    assert names(roomy) == []


def test_two_fetch_the_same_file(large: Counting, roomy: CheckpointCache, tmp_path: Path) -> None:
    """One fills the part, the other does without."""
    large.lasts = None
    [file] = record_of(large).files
    with roomy.partial(file) as held:
        assert held is not None
        held.write(b"not its beginning")
        restore(large, RUN, None, tmp_path / "a", cache=roomy)
        assert held.tell() == 17
        roomy.limit = 0
        roomy.trim()
        assert roomy.free(1) == 0
        assert names(roomy) == [f"{file.sha256}.part"]
    assert read_directory(tmp_path / "a") == read_directory(tmp_path / "large")
    roomy.trim()  # nobody holds it any more
    assert names(roomy) == []


def test_many_restore_at_once(store: Counting, cache: CheckpointCache, tmp_path: Path) -> None:
    def one(number: int) -> dict[str, bytes]:
        mine = CheckpointCache(
            cache.folder, 5000 if number % 2 else cache.limit
        )  # some remove what others add
        restore(store, RUN, None, tmp_path / f"r{number}", cache=mine)
        return read_directory(tmp_path / f"r{number}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [contents(10)] * 40


# ---------------------------------------------------------------------- size


def entry(cache: CheckpointCache, folder: Path, number: int, size: int) -> FileEntry:
    """A kept file that was last used at this time."""
    data = bytes([number]) * size
    file = FileEntry(path="f", size=size, sha256=hashlib.sha256(data).hexdigest())
    folder.mkdir(exist_ok=True)
    (folder / "f").write_bytes(data)
    cache.take_in(folder, (file,))
    if (cache.folder / file.sha256).exists():
        os.utime(cache.folder / file.sha256, (number, number))
    return file


def test_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache", 1000)
    files = [entry(cache, tmp_path / "d", number, 300) for number in (1, 2, 3)]
    assert cache.copy_out(files[0], tmp_path / "out")
    newest = entry(cache, tmp_path / "d", 4, 300)
    assert names(cache) == sorted(file.sha256 for file in (files[0], files[2], newest))
    entry(cache, tmp_path / "d", 5, 1001)  # would be all there is
    assert len(names(cache)) == 3
    assert cache.free(301) == 600
    assert names(cache) == [files[0].sha256]


def test_what_another_name_holds_frees_nothing(
    store: Counting, cache: CheckpointCache, tmp_path: Path
) -> None:
    restore(store, RUN, None, tmp_path / "a", cache=cache)
    assert cache.free(1) == 0
    assert len(names(cache)) == 3
    (tmp_path / "a" / "model.safetensors").unlink()
    assert cache.free(1) == 3000


def test_no_cache_keeps_nothing(store: Counting, tmp_path: Path) -> None:
    none = CheckpointCache(tmp_path / "cache", 0)
    restore(store, RUN, None, tmp_path / "a", cache=none)
    none.take_in(tmp_path / "step-00000010", record_of(store).files)
    assert names(none) == []
    assert read_directory(tmp_path / "a") == contents(10)


def test_a_full_disk_is_freed(
    store: Counting, cache: CheckpointCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for one checkpoint as long as the cache keeps another one."""
    old = entry(cache, tmp_path / "d", 1, 4000)

    class Full:
        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if old.sha256 in names(cache):
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    def append(self: object, file: FileEntry, out: BinaryIO, *rest: object) -> None:
        original(self, file, Full(out), *rest)

    from orchestrator.store.fetch import Fetch

    original = Fetch._append  # type: ignore[assignment]
    monkeypatch.setattr(Fetch, "_append", append)
    restore(store, RUN, None, tmp_path / "a", cache=cache)
    assert old.sha256 not in names(cache)
    assert read_directory(tmp_path / "a") == contents(10)
    monkeypatch.setattr(Full, "write", lambda self, data: _fail())
    with pytest.raises(StoreError, match="No space left"):
        restore(store, RUN, None, tmp_path / "b", cache=CheckpointCache(tmp_path / "other", 1_000_000))


def _fail() -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_size_of_a_nodes_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_CACHE_SIZE", raising=False)
    disk = os.statvfs(tmp_path)
    made = CheckpointCache.of_node(tmp_path)
    assert made.limit == min(10**10, disk.f_blocks * disk.f_frsize // 10)
    assert made.folder == tmp_path / "cache" / "checkpoints"
    monkeypatch.setenv("ORCH_CACHE_SIZE", "3GB")
    assert CheckpointCache.of_node(tmp_path).limit == 3 * 10**9


def test_large_files_are_brought_side_by_side(
    store: Counting, cache: CheckpointCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.fetch._LARGE", 1)
    barrier = threading.Barrier(2)
    real = store.get

    def get(key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if key.endswith(".safetensors"):
            barrier.wait(20)  # both are under way
        return real(key, start=start, end=end)

    store.get = get  # type: ignore[method-assign]
    moved: list[int] = []
    restore(store, RUN, None, tmp_path / "a", cache=cache, on_bytes=moved.append)
    assert read_directory(tmp_path / "a") == contents(10)
    assert sum(moved) == record_of(store).size
    [key] = [key for key in store.objects if key.endswith("model.safetensors")]
    store.objects[key] = store.objects[key][:-1] + b"?"
    with pytest.raises(DamagedError, match="model"):
        restore(store, RUN, None, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_room_is_left_to_others(
    cache: CheckpointCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 100,000 bytes shall have 5,000 free, and has 4,000."""
    cache.folder.mkdir(parents=True)
    for number in range(4):
        (cache.folder / f"{number}").write_bytes(bytes(600))
        os.utime(cache.folder / f"{number}", (number, number))
    disk = SimpleNamespace(f_blocks=100, f_frsize=1000, f_bavail=5)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    cache.trim()
    assert len(os.listdir(cache.folder)) == 4
    disk.f_bavail = 4
    cache.trim()
    assert sorted(os.listdir(cache.folder)) == ["2", "3"]
