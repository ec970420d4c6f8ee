"""What can go wrong with a folder, and what the user is told."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import (
    NotFoundError,
    OrchError,
    SetupError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from orchestrator.store.file_store import FileStore
from orchestrator.store.objects import open_store, read_bytes, store_id
from tests.unit.store.helpers import failing, new_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> FileStore:
    made = new_store(root)
    assert isinstance(made, FileStore)
    return made


def temporaries(root: Path) -> list[str]:
    return os.listdir(root / ".tmp")


@pytest.mark.parametrize("create_only", [True, False])
@pytest.mark.parametrize(
    ("call", "number", "expected"),
    [
        ("write", errno.ENOSPC, StoreFullError),
        ("write", errno.EDQUOT, StoreFullError),
        ("write", errno.EFBIG, StoreFullError),
        ("write", errno.EIO, StoreUnavailableError),
        ("fsync", errno.ENOSPC, StoreFullError),
        ("fsync", errno.EIO, StoreUnavailableError),
        ("open", errno.EACCES, StoreUnavailableError),
        ("open", errno.EROFS, StoreUnavailableError),
        ("open", errno.EMFILE, StoreUnavailableError),
        ("stat", errno.ESTALE, StoreUnavailableError),
        ("mkdir", errno.EDQUOT, StoreFullError),
    ],
)
def test_errors_of_the_system_are_translated(
    store: FileStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    expected: type[OrchError],
    create_only: bool,
) -> None:
    with (
        failing(monkeypatch, call, OSError(number, os.strerror(number))) as calls,
        pytest.raises(StoreError) as caught,
    ):
        store.put("new/key", b"x" * 100, create_only=create_only)
    assert calls[0]
    assert type(caught.value) is expected
    assert caught.value.remedy
    assert isinstance(caught.value.__cause__, OSError)
    assert os.strerror(number) in caught.value.message
    assert temporaries(root) == []
    with pytest.raises(NotFoundError):
        store.get("new/key")


@pytest.mark.parametrize(
    ("call", "number"), [("preadv", errno.EIO), ("preadv", errno.ESTALE), ("open", errno.EIO)]
)
def test_reading_errors_are_not_absence(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    store.put("k", b"x")
    with failing(monkeypatch, call, OSError(number, "bad")), pytest.raises(StoreUnavailableError):
        list(store.get("k"))
    assert read_bytes(store, "k") == b"x"


class TestAnswersThatGetLost:
    """A server may carry a request out and fail to say so; NFS repeats it then, and the repetition fails."""

    @pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO, errno.ETIMEDOUT, errno.ENOENT])
    def test_link_that_succeeded(
        self, store: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        with failing(monkeypatch, "link", OSError(number, "lost"), after=True):
            assert store.put("a/k", b"mine", create_only=True)
        assert read_bytes(store, "a/k") == b"mine"
        assert temporaries(root) == []

    @pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO])
    def test_link_that_came_too_late(
        self, store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        real = os.link

        def link(source: str, target: Path) -> None:
            target.write_bytes(b"theirs")
            monkeypatch.setattr(os, "link", real)
            raise OSError(number, "lost")

        monkeypatch.setattr(os, "link", link)
        assert not store.put("k", b"mine", create_only=True)
        assert read_bytes(store, "k") == b"theirs"

    def test_link_that_failed(self, store: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with (
            failing(monkeypatch, "link", OSError(errno.EIO, "bad")),
            pytest.raises(StoreUnavailableError),
        ):
            store.put("k", b"mine", create_only=True)
        assert temporaries(root) == []
        assert store.put("k", b"mine", create_only=True)

    def test_replace_that_succeeded(self, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
        with failing(monkeypatch, "replace", OSError(errno.ENOENT, "lost"), after=True):
            store.put("a/k", b"mine")
        assert read_bytes(store, "a/k") == b"mine"

    def test_the_folder_is_synced_for_losers_too(
        self, store: FileStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """False says that the other one's object is durable, even if its writer has not got that far."""
        store.put("a/k", b"theirs", create_only=True)
        synced: list[str] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        assert not store.put("a/k", b"mine", create_only=True)
        assert str(store.root / "a") in synced


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV])
def test_a_filesystem_without_hard_links(
    store: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with (
        failing(monkeypatch, "link", OSError(number, os.strerror(number))),
        pytest.raises(SetupError, match="hard links"),
    ):
        store.put("k", b"x", create_only=True)
    assert temporaries(root) == []


class TestMounts:
    """A folder can be taken away under a running program."""

    def test_missing(self, root: Path) -> None:
        store = open_store(root)
        for use in (
            lambda: store.put("k", b""),
            lambda: store.get("k"),
            lambda: store.list(""),
            lambda: store.delete("k"),
            lambda: store_id(store),
        ):
            with pytest.raises(StoreUnavailableError, match="No such file") as caught:
                use()
            assert str(root) in str(caught.value.remedy)
        assert not root.exists(), "a mount point that is missing must not become a store"

    def test_a_file_in_its_place(self, root: Path) -> None:
        root.write_text("")
        with pytest.raises(StoreUnavailableError):
            open_store(root).get("k")

    def test_swapped_for_an_empty_folder(self, store: FileStore, root: Path) -> None:
        store.put("k", b"x")
        root.rename(root.with_name("unmounted"))
        root.mkdir()
        for use in (
            lambda: store.get("k"),
            lambda: store.put("k", b"y", create_only=True),
            lambda: store.list(""),
            lambda: store.delete("k"),
        ):
            with pytest.raises(StoreUnavailableError, match="not the store any more"):
                use()
        assert list(root.iterdir()) == []
        root.rmdir()
        root.with_name("unmounted").rename(root)
        assert read_bytes(store, "k") == b"x"

    def test_swapped_for_another_store(self, store: FileStore, root: Path, tmp_path: Path) -> None:
        store.put("k", b"x")
        new_store(tmp_path / "other").put("k", b"other")
        root.rename(root.with_name("unmounted"))
        (tmp_path / "other").rename(root)
        with pytest.raises(StoreUnavailableError, match="not the store any more"):
            store.get("k")

    def test_mounted_again_elsewhere(self, store: FileStore, root: Path) -> None:
        store.put("k", b"x")
        shutil.copytree(root, root.with_name("again"))
        shutil.rmtree(root)
        root.with_name("again").rename(root)
        assert read_bytes(store, "k") == b"x"

    def test_gone_between_the_look_and_the_write(
        self, store: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The record went to the folder below the mount point: that must not be reported as written."""
        real = os.link

        def link(source: Path, target: Path) -> None:
            root.rename(root.with_name("unmounted"))
            (root / ".tmp").mkdir(parents=True)
            target.parent.mkdir(exist_ok=True)
            monkeypatch.setattr(os, "link", real)
            target.write_bytes(b"")
            real(target, source)

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(StoreUnavailableError, match="not the store any more"):
            store.put("k", b"x", create_only=True)

    def test_gone_while_looking(self, store: FileStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store.put("k", b"x")
        real = os.open

        def swap(path: object, *args: object, **kwargs: object) -> int:
            monkeypatch.setattr(os, "open", real)
            root.rename(root.with_name("unmounted"))
            root.mkdir()
            return real(path, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", swap)
        with pytest.raises(StoreUnavailableError, match="not the store any more"):
            store.get("k")


class TestThingsInTheFolder:
    """Others can put things there that are no objects."""

    def test_links_are_not_objects(self, store: FileStore, root: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (root / "a").mkdir()
        (root / "a" / "link").symlink_to(tmp_path / "secret")
        (root / "a" / "loop").symlink_to(root)
        with pytest.raises(NotFoundError):
            store.get("a/link")
        assert list(store.list("a/")) == []
        store.delete("a/link")
        assert (tmp_path / "secret").read_text() == "secret"

    def test_pipes_do_not_block(self, store: FileStore, root: Path) -> None:
        os.mkfifo(root / "pipe")
        with pytest.raises(NotFoundError):
            store.get("pipe")
        assert [info.key for info in store.list("")] == ["store.json"]

    def test_a_key_below_another_key(self, store: FileStore) -> None:
        store.put("a", b"x")
        with pytest.raises(StoreError, match="Not a directory") as caught:
            store.put("a/b", b"x")
        assert "folder of another" in str(caught.value.remedy)
        store.put("c/d", b"x")
        with pytest.raises(StoreError, match="Is a directory"):
            store.put("c", b"x")

    def test_a_folder_that_others_remove(self, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.replace
        left = [3]

        def replace(source: Path, target: Path) -> None:
            if left[0]:
                left[0] -= 1
                target.parent.rmdir()
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        store.put("a/b/c", b"x")
        assert read_bytes(store, "a/b/c") == b"x"

    def test_leftovers_of_killed_writers(self, store: FileStore, root: Path) -> None:
        old, new = root / ".tmp" / "old", root / ".tmp" / "new"
        old.write_bytes(b"")
        new.write_bytes(b"")
        os.utime(old, (1, 1))
        store.prepare()
        assert temporaries(root) == ["new"]


def test_damaged_identity(store: FileStore, root: Path) -> None:
    for text in ("", "{}", "[]", '{"id": 3}', '{"id": "x"}', "null"):
        (root / "store.json").write_text(text)
        with pytest.raises(StoreError, match=r"store\.json cannot be read"):
            store_id(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


def test_full_disk(small_disk: Path) -> None:
    store = new_store(small_disk)
    store.put("first", b"x" * 300_000)
    with pytest.raises(StoreFullError) as caught:
        store.put("second", b"x" * 1_000_000)
    assert "Free space" in str(caught.value.remedy)
    assert os.listdir(small_disk / ".tmp") == []
    assert [info.key for info in store.list("")] == ["first", "store.json"]
    store.delete("first")
    assert store.put("second", b"x" * 900_000)


def test_size_limit_of_the_process(store: FileStore, root: Path) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreFullError, match="File too large"):
            store.put("k", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert temporaries(root) == []
