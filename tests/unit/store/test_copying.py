"""What is hashed beside is what is written, all of it, whichever of the two is slower."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from orchestrator.errors import DamagedError, StoreUnavailableError
from orchestrator.store import copying
from orchestrator.store.cache import NO_CACHE, CheckpointCache
from orchestrator.store.checkpoints import checkpoints, restore
from orchestrator.store.copying import copy_hashed, write_whole
from orchestrator.store.file_store import FileStore
from orchestrator.store.objects import ObjectStore
from orchestrator.store.protocol import CHUNK
from orchestrator.store.throttle import Paces, Unlimited
from tests.unit.store.helpers import RUN, new_store, read_directory, stored_file, writer
from tests.unit.store.memory_store import MemoryStore

if TYPE_CHECKING:
    from hashlib import _Hash

SIZES = [0, 1, copying._SMALL - 1, copying._SMALL, CHUNK, CHUNK + 1, 7 * CHUNK + 5]


class Digest:
    """SHA-256 that first does something else."""

    def __init__(self, before: Callable[[], object]) -> None:
        self.real, self.before = hashlib.sha256(), before

    def update(self, data: bytes | memoryview) -> None:
        self.before()
        self.real.update(data)


def copied(source: Iterator[bytes] | io.BytesIO, target: Path, digest: object) -> list[int]:
    """Copy; what was told meanwhile."""
    told: list[int] = []
    with target.open("xb", buffering=0) as out:
        moved = copy_hashed(source, out, cast("_Hash", digest), told.append)
    assert moved == sum(told)
    return told


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slow_s", [0, 0.003])
def test_every_byte_is_copied_and_hashed(tmp_path: Path, size: int, slow_s: float) -> None:
    """A buffer is filled again only when it was hashed."""
    data = os.urandom(size)
    digest = Digest(lambda: time.sleep(slow_s))
    assert sum(copied(io.BytesIO(data), tmp_path / "a", digest)) == size
    assert (tmp_path / "a").read_bytes() == data
    assert digest.real.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("step", [1000, copying._SMALL, CHUNK])
def test_chunks_of_a_store_that_fills_no_buffers(tmp_path: Path, step: int) -> None:
    data = os.urandom(3 * CHUNK + 77)
    chunks = [data[place : place + step] for place in range(0, len(data), step)]
    digest = hashlib.sha256()
    assert copied(iter(chunks), tmp_path / "a", digest) == [len(chunk) for chunk in chunks]
    assert (tmp_path / "a").read_bytes() == data
    assert digest.digest() == hashlib.sha256(data).digest()


def test_a_block_is_written_while_it_is_hashed(tmp_path: Path) -> None:
    written = threading.Event()
    digest = Digest(lambda: written.wait(20) or pytest.fail("nothing was written meanwhile"))

    class Out(FileIO):
        def write(self, data: object, /) -> int:
            written.set()
            return super().write(data)  # type: ignore[arg-type]

    with Out(tmp_path / "a", "xb") as out:
        copy_hashed(io.BytesIO(bytes(CHUNK)), out, cast("_Hash", digest), lambda count: None)


def broken() -> Iterator[bytes]:
    yield from [bytes(CHUNK)] * 3
    raise StoreUnavailableError("it went away")


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_errors_are_passed_on_and_no_thread_stays(tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(StoreUnavailableError):
        copied(broken(), tmp_path / "source", hashlib.sha256())
    with pytest.raises(OSError, match="Input/output"):
        copied(io.BytesIO(bytes(CHUNK)), tmp_path / "hash", Digest(lambda: fail(errno.EIO)))

    class Full(FileIO):
        def write(self, data: object, /) -> int:
            if self.tell() >= 2 * CHUNK:
                fail(errno.ENOSPC)
            return super().write(data)  # type: ignore[arg-type]

    with Full(tmp_path / "full", "xb") as out, pytest.raises(OSError, match="No space"):
        copy_hashed(io.BytesIO(bytes(5 * CHUNK)), out, hashlib.sha256(), lambda count: None)
    assert threading.active_count() == threads


def test_what_a_disk_takes_in_parts_is_written_whole(tmp_path: Path) -> None:
    class Grudging(FileIO):
        def write(self, data: object, /) -> int:
            return super().write(memoryview(data)[:1000])  # type: ignore[arg-type]

    data = os.urandom(4321)
    with Grudging(tmp_path / "a", "xb") as out:
        write_whole(out, data)
        copy_hashed(io.BytesIO(data), out, hashlib.sha256(), lambda count: None)
    assert (tmp_path / "a").read_bytes() == 2 * data


# ---------------------------------------------------------------------- large files of checkpoints

SIZE = 5 * CHUNK + 5


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """A store in a folder with a checkpoint of one large file."""
    made = new_store(tmp_path / "store")
    return filled(made, tmp_path)


def filled(made: ObjectStore, tmp_path: Path) -> ObjectStore:
    directory = tmp_path / "large"
    directory.mkdir()
    (directory / "model").write_bytes(os.urandom(SIZE))
    writer(made).commit(directory, 10, metrics={}, device="cpu", node="n")
    return made


def flipped(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


PLACES = [0, CHUNK - 1, CHUNK, 3 * CHUNK + 17, SIZE - 1]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kept", [False, True])
def test_one_bit_of_a_large_file(store: ObjectStore, tmp_path: Path, place: int, kept: bool) -> None:
    """In the store it is damage; in the node's cache the store's file is used."""
    cache = CheckpointCache(tmp_path / "cache", 10 * CHUNK)
    [record] = checkpoints(store, RUN)
    stored = stored_file(store, record, "model")
    restore(store, RUN, None, tmp_path / "a", cache=cache)
    assert read_directory(tmp_path / "a") == read_directory(tmp_path / "large")
    flipped(cache.folder / record.files[0].sha256 if kept else stored, place)
    if kept:
        restore(store, RUN, None, tmp_path / "b", cache=cache)
        assert read_directory(tmp_path / "b") == read_directory(tmp_path / "large")
        return
    with pytest.raises(DamagedError, match="SHA-256"):
        restore(store, RUN, None, tmp_path / "b", cache=NO_CACHE)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("have", [1, CHUNK, 2 * CHUNK + 9, SIZE])
def test_a_part_is_gone_on_with_from_a_folder(store: ObjectStore, tmp_path: Path, have: int) -> None:
    cache = CheckpointCache(tmp_path / "cache", 10 * CHUNK)
    cache.folder.mkdir()
    [file] = checkpoints(store, RUN)[0].files
    data = (tmp_path / "large" / "model").read_bytes()
    (cache.folder / f"{file.sha256}.part").write_bytes(data[:have])
    moved: list[int] = []
    restore(store, RUN, None, tmp_path / "a", cache=cache, on_bytes=moved.append)
    assert (moved[0], sum(moved)) == (have, SIZE)
    assert read_directory(tmp_path / "a") == {"model": data}


def test_a_restore_from_a_folder_keeps_the_limit(store: ObjectStore, tmp_path: Path) -> None:
    taken: list[int] = []

    class Counting(Unlimited):
        block = 1 << 16

        def take(self, size: int) -> None:
            taken.append(size)

    slow = FileStore(tmp_path / "store", Paces(Unlimited(), Counting()))
    restore(slow, RUN, None, tmp_path / "a")
    assert sum(taken) > SIZE
    assert max(taken) == Counting.block


def test_an_object_that_goes_while_it_is_read_is_damage(tmp_path: Path) -> None:
    """A large object of S3 is asked for part by part."""
    made = MemoryStore()
    filled(made, tmp_path)
    real = made.get

    def get(key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        chunks = real(key, start=start, end=end)
        return cut(chunks, key) if "/data/" in key else chunks

    def cut(chunks: Iterator[bytes], key: str) -> Iterator[bytes]:
        yield next(chunks)
        made.delete(key)
        yield from real(key)

    made.get = get  # type: ignore[method-assign]
    with pytest.raises(DamagedError, match="model is missing"):
        restore(made, RUN, None, tmp_path / "a")
