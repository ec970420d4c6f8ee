"""Getting checkpoints back, and never a damaged one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConflictError, DamagedError, NotFoundError, StoreError, StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointRecord, checkpoints, restore, restore_path, verify
from orchestrator.store.objects import ObjectStore
from tests.unit.store.helpers import (
    RUN,
    commit,
    contents,
    failing,
    log_keys,
    make_directory,
    new_store,
    read_directory,
    stored_file,
    writer,
)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """A store with checkpoints of steps 10 and 20."""
    made = new_store(tmp_path / "store")
    to = writer(made)
    commit(to, tmp_path, 10)
    commit(to, tmp_path, 20)
    return made


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "work" / "restored"


def nothing_left(into: Path) -> bool:
    return not into.parent.exists() or list(into.parent.iterdir()) == []


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def change(name: str, how: Callable[[Path], Any]) -> Callable[[ObjectStore, CheckpointRecord], None]:
    return lambda store, record: how(stored_file(store, record, name))


def swap_files(store: ObjectStore, record: CheckpointRecord) -> None:
    one = stored_file(store, record, "model.safetensors")
    two = stored_file(store, record, "optimizer.safetensors")
    one.rename(one.with_name("x"))
    two.rename(one)
    one.with_name("x").rename(two)


def swap_steps(store: ObjectStore, record: CheckpointRecord) -> None:
    """The same file of the other checkpoint, of equal size."""
    other = checkpoints(store, RUN)[0]
    name = "model.safetensors"
    shutil.copy(stored_file(store, other, name), stored_file(store, record, name))


def remove_all(store: ObjectStore, record: CheckpointRecord) -> None:
    shutil.rmtree(stored_file(store, record, "empty").parent)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[ObjectStore, CheckpointRecord], None]] = {
    "first bit": change("model.safetensors", lambda path: flip(path, 0)),
    "last bit": change("model.safetensors", lambda path: flip(path, 3000 * 8 - 1)),
    "bit of a small file": change("extra/état 1.json", lambda path: flip(path, 77)),
    "one byte short": change("model.safetensors", lambda path: os.truncate(path, 2999)),
    "one byte long": change("model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"x")),
    "empty": change("optimizer.safetensors", lambda path: os.truncate(path, 0)),
    "zeros": change("optimizer.safetensors", lambda path: path.write_bytes(bytes(2000))),
    "no longer empty": change("empty", lambda path: path.write_bytes(b"x")),
    "missing": change("optimizer.safetensors", lambda path: path.unlink()),
    "missing empty file": change("empty", lambda path: path.unlink()),
    "a link": change("model.safetensors", replace_by_link),
    "a folder": change("model.safetensors", replace_by_folder),
    "swapped files": swap_files,
    "file of another checkpoint": swap_steps,
    "all gone": remove_all,
}


@pytest.mark.parametrize("damage", DAMAGES)
class TestDamage:
    """Every damage is noticed, by every way to read a checkpoint."""

    def test_the_one_before_is_used(
        self, store: ObjectStore, into: Path, tmp_path: Path, damage: str
    ) -> None:
        newest = checkpoints(store, RUN)[1]
        DAMAGES[damage](store, newest)
        restored = restore(store, RUN, None, into)
        assert restored.record.step == 10
        assert read_directory(into) == contents(10)
        assert [record.step for record, _ in restored.skipped] == [20]
        assert restored.skipped[0][1]
        assert list(into.parent.iterdir()) == [into]

    def test_named_explicitly(self, store: ObjectStore, into: Path, damage: str) -> None:
        DAMAGES[damage](store, checkpoints(store, RUN)[1])
        with pytest.raises(DamagedError, match="step 20: ") as caught:
            restore(store, RUN, 20, into)
        assert caught.value.remedy
        assert nothing_left(into)
        assert restore(store, RUN, 10, into).skipped == []

    def test_verify(self, store: ObjectStore, damage: str) -> None:
        newest = checkpoints(store, RUN)[1]
        assert verify(store, newest) == []
        DAMAGES[damage](store, newest)
        assert verify(store, newest)


def test_newest_and_named(store: ObjectStore, into: Path) -> None:
    restored = restore(store, RUN, None, into)
    assert restored.record.step == 20
    assert restored.directory == into
    assert restored.skipped == []
    assert restored.unreadable == ()
    assert read_directory(into) == contents(20)
    earlier = restore(store, RUN, 10, into.with_name("other"))
    assert read_directory(earlier.directory) == contents(10)


def test_all_damaged(store: ObjectStore, into: Path) -> None:
    for record in checkpoints(store, RUN):
        remove_all(store, record)
    with pytest.raises(DamagedError, match=r"step 20: .* step 10: ") as caught:
        restore(store, RUN, None, into)
    assert caught.value.remedy
    assert nothing_left(into)


def test_no_checkpoint(store: ObjectStore, into: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="run unknown has no checkpoint"):
        restore(store, "unknown", None, into)
    with pytest.raises(NotFoundError, match=r"no checkpoint of step 15 \(steps it has: 10, 20"):
        restore(store, RUN, 15, into)
    to = writer(store, 2)
    commit(to, tmp_path, 30)
    to.retain(1, 0, "x", "min")
    with pytest.raises(NotFoundError, match="steps it has: 30"):
        restore(store, RUN, 10, into)
    assert nothing_left(into)


def test_uncommitted_data_is_not_offered(store: ObjectStore, into: Path, tmp_path: Path) -> None:
    newest = checkpoints(store, RUN)[1]
    folder = stored_file(store, newest, "empty").parent
    shutil.copytree(folder, folder.with_name("30-1234"))
    assert restore(store, RUN, None, into).record.step == 20


def test_files_that_are_not_in_the_manifest_are_not_restored(store: ObjectStore, into: Path) -> None:
    newest = checkpoints(store, RUN)[1]
    stored_file(store, newest, "empty").with_name("extra.pkl").write_bytes(b"hostile")
    restore(store, RUN, None, into)
    assert read_directory(into) == contents(20)


@pytest.mark.parametrize("slot", [1, 2, 3])
def test_damaged_log_records(store: ObjectStore, into: Path, tmp_path: Path, slot: int) -> None:
    path = tmp_path / "store" / log_keys(store)[slot - 1]
    flip(path, 300)
    restored = restore(store, RUN, None, into)
    assert restored.record.step == (10 if slot == 3 else 20)
    assert [found.slot for found in restored.unreadable] == [slot]
    if slot > 1:
        with pytest.raises(NotFoundError, match="1 log records are damaged"):
            restore(store, RUN, 20 if slot == 3 else 10, into.with_name("x"))


def test_an_existing_directory_is_not_touched(store: ObjectStore, into: Path) -> None:
    into.mkdir(parents=True)
    with pytest.raises(ConflictError):
        restore(store, RUN, None, into)
    into.rmdir()
    into.symlink_to("dangling")
    with pytest.raises(ConflictError):
        restore(store, RUN, None, into)


@pytest.mark.parametrize("call", ["preadv", "open"])
def test_an_unreachable_store_is_not_damage(
    store: ObjectStore, into: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with failing(monkeypatch, call, OSError(errno.EIO, "bad")), pytest.raises(StoreUnavailableError):
        restore(store, RUN, None, into)
    assert nothing_left(into)


def test_a_mount_that_goes_away_is_not_damage(
    store: ObjectStore, into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def unmount(path: Any, *args: Any, **kwargs: Any) -> int:
        if "optimizer" in str(path) and str(path).startswith(str(tmp_path / "store")):
            monkeypatch.setattr(os, "open", real)
            (tmp_path / "store").rename(tmp_path / "unmounted")
            (tmp_path / "store").mkdir()
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", unmount)
    with pytest.raises(StoreUnavailableError):
        restore(store, RUN, None, into)
    assert nothing_left(into)


def test_retention_during_a_restore(
    store: ObjectStore, into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run reads this one's newest checkpoint when it is no longer the newest, and goes."""
    real = os.open
    owner = writer(store, 2)

    def advance(path: Any, *args: Any, **kwargs: Any) -> int:
        if "optimizer" in str(path) and "/20-" in str(path):
            monkeypatch.setattr(os, "open", real)
            commit(owner, tmp_path, 30)
            owner.retain(1, 0, "x", "min")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", advance)
    restored = restore(store, RUN, None, into)
    assert restored.record.step == 30
    assert read_directory(into) == contents(30)
    assert restored.skipped == [], "what was retired meanwhile is not damaged"


def test_a_full_local_disk_is_said(store: ObjectStore, into: Path) -> None:
    into.parent.write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot write"):
        restore(store, RUN, None, into)


class TestRestorePath:
    """A plain directory of this machine."""

    def test_copy(self, tmp_path: Path, into: Path) -> None:
        restore_path(make_directory(tmp_path, 7), into)
        assert read_directory(into) == contents(7)

    def test_missing(self, tmp_path: Path, into: Path) -> None:
        with pytest.raises(NotFoundError):
            restore_path(tmp_path / "missing", into)

    def test_occupied(self, tmp_path: Path, into: Path) -> None:
        into.mkdir(parents=True)
        with pytest.raises(ConflictError):
            restore_path(make_directory(tmp_path, 7), into)

    def test_links(self, tmp_path: Path, into: Path) -> None:
        directory = make_directory(tmp_path, 7)
        (directory / "link").symlink_to("model.safetensors")
        with pytest.raises(StoreError, match="not a regular file"):
            restore_path(directory, into)
        assert nothing_left(into)
