"""What is not sent again: files that have not changed, and what was sent before the store went away."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import FencedError, StoreUnavailableError
from orchestrator.store import upload
from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, restore, verify
from orchestrator.store.gc import collect, stored_runs
from tests.unit.store.helpers import RUN, read_directory, writer
from tests.unit.store.log_records import AT
from tests.unit.store.memory_store import MemoryStore

BASE = 100_000


def noise(seed: str, size: int) -> bytes:
    digest = hashlib.sha256(seed.encode()).digest()
    return (digest * (size // 32 + 1))[:size]


class Traffic:
    """A store in memory that counts the bytes put, and whose next operations can fail."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.put: list[str] = []
        self.got: list[str] = []
        self.fail: Callable[[str, str], bool] = lambda operation, key: False
        self.store = MemoryStore(self.objects, self._hook)

    def _hook(self, operation: str, key: str, act: Any) -> object:
        if self.fail(operation, key):
            raise StoreUnavailableError("away")
        if operation == "put":
            self.put.append(key)
        if operation == "get" and "/data/" in key:
            self.got.append(key)
        return act()

    def names_put(self) -> list[str]:
        names = [key.rpartition("/")[2] for key in self.put if "/data/" in key]
        self.put.clear()
        return names


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


def directory(tmp_path: Path, step: int, **files: bytes) -> Path:
    folder = tmp_path / f"step-{step}"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def commit(to: CheckpointWriter, folder: Path, step: int, **more: Any) -> Any:
    return to.commit(folder, step, metrics={}, device="cpu", node="n", **more)


class TestUnchangedFiles:
    """They are referred to."""

    def test_only_what_has_changed_is_sent(self, traffic: Traffic, tmp_path: Path) -> None:
        to = writer(traffic.store)
        base = noise("base", BASE)
        commit(to, directory(tmp_path, 1, base=base, head=noise("1", BASE), small=b"s"), 1)
        assert traffic.names_put() == ["base", "head", "small"]
        second = commit(to, directory(tmp_path, 2, base=base, head=noise("2", BASE), small=b"s"), 2)
        assert traffic.names_put() == ["head", "small"]
        third = commit(to, directory(tmp_path, 3, base=base, head=noise("2", BASE), small=b"s"), 3)
        assert traffic.names_put() == ["small"]
        assert third.key(third.files[0]) == second.key(second.files[0])
        assert third.sha256 == second.sha256
        out = restore(traffic.store, RUN, 3, tmp_path / "out").directory
        assert read_directory(out) == {"base": base, "head": noise("2", BASE), "small": b"s"}

    def test_one_byte_between_the_samples_is_a_change(self, traffic: Traffic, tmp_path: Path) -> None:
        to = writer(traffic.store)
        base = bytearray(noise("base", 1_000_000))
        commit(to, directory(tmp_path, 1, base=bytes(base)), 1)
        base[999_999] ^= 1
        traffic.names_put()
        commit(to, directory(tmp_path, 2, base=bytes(base)), 2)
        assert traffic.names_put() == ["base"]
        assert restore(traffic.store, RUN, None, tmp_path / "out").record.step == 2

    def test_what_is_shared_outlives_the_checkpoint_that_sent_it(
        self, traffic: Traffic, tmp_path: Path
    ) -> None:
        base = noise("base", BASE)
        to = writer(traffic.store)
        for step in (1, 2, 3):
            commit(to, directory(tmp_path, step, base=base, head=noise(f"{step}", BASE)), step)
            to.retain(1, 0, "x", "min")
        (kept,) = [record for record in checkpoints(traffic.store, RUN) if not record.retired]
        assert verify(traffic.store, kept) == []
        data = sorted(key.rpartition("/")[2] for key in traffic.objects if "/data/" in key)
        assert data == ["base", "head"]
        later = writer(traffic.store, 2)
        commit(later, directory(tmp_path, 4, base=noise("other", BASE)), 4)
        later.retain(1, 0, "x", "min")
        assert [key.rpartition("/")[2] for key in traffic.objects if "/data/" in key] == ["base"]

    @pytest.mark.parametrize("damage", ["missing", "flipped", "shorter"])
    def test_a_damaged_one_is_sent_again(self, traffic: Traffic, tmp_path: Path, damage: str) -> None:
        base = noise("base", BASE)
        first = commit(writer(traffic.store), directory(tmp_path, 1, base=base), 1)
        key = first.key(first.files[0])
        if damage == "missing":
            del traffic.objects[key]
        else:
            traffic.objects[key] = base[:-1] + (b"" if damage == "shorter" else b"?")
        second = commit(writer(traffic.store, 2), directory(tmp_path, 2, base=base), 2)
        assert verify(traffic.store, second) == []
        assert second.key(second.files[0]) != key

    def test_it_is_read_back_once_by_each_attempt(self, traffic: Traffic, tmp_path: Path) -> None:
        base = noise("base", 3 << 20)
        first = commit(writer(traffic.store), directory(tmp_path, 1, base=base), 1)
        key = first.key(first.files[0])
        to = writer(traffic.store, 2)
        traffic.got.clear()
        commit(to, directory(tmp_path, 2, base=base), 2)
        assert traffic.got == [key]
        traffic.objects[key] = base[:-1]
        commit(to, directory(tmp_path, 3, base=base), 3)
        assert traffic.names_put() == ["base", "base"], "its size is looked at every time"


class TestInterruption:
    """The same commit goes on with what was sent."""

    def test_large_files_are_not_sent_twice(
        self, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upload, "_LARGE", BASE)
        to = writer(traffic.store)
        folder = directory(tmp_path, 1, a=noise("a", BASE), b=noise("b", BASE), c=b"c")
        traffic.fail = lambda operation, key: operation == "put" and key.endswith("/b")
        with pytest.raises(StoreUnavailableError):
            commit(to, folder, 1, points=b"p")
        traffic.fail = lambda operation, key: False
        commit(to, folder, 1, points=b"p")
        assert traffic.names_put() == ["a", "b", "c"]
        assert restore(traffic.store, RUN, None, tmp_path / "out").record.step == 1

    def test_what_was_sent_for_a_replaced_checkpoint_goes(
        self, traffic: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upload, "_LARGE", BASE)
        to = writer(traffic.store)
        traffic.fail = lambda operation, key: operation == "put" and key.endswith("/b")
        with pytest.raises(StoreUnavailableError):
            commit(to, directory(tmp_path, 1, a=noise("a", BASE), b=noise("b", BASE)), 1)
        traffic.fail = lambda operation, key: False
        record = commit(to, directory(tmp_path, 2, a=noise("a2", BASE)), 2)
        assert {key for key in traffic.objects if "/data/" in key} == {record.key(record.files[0])}

    def test_a_takeover_meanwhile_is_noticed(self, traffic: Traffic, tmp_path: Path) -> None:
        to = writer(traffic.store)
        folder = directory(tmp_path, 1, a=b"a")
        traffic.fail = lambda operation, key: operation == "put" and "/data/" in key
        with pytest.raises(StoreUnavailableError):
            commit(to, folder, 1)
        traffic.fail = lambda operation, key: False
        writer(traffic.store, 2)
        with pytest.raises(FencedError):
            commit(to, folder, 1)


class TestCollect:
    """Garbage of runs that nobody works on."""

    def sleeper(self, traffic: Traffic, tmp_path: Path) -> tuple[CheckpointWriter, Path]:
        """A writer whose commit of step 2 fell asleep before its record."""
        to = writer(traffic.store)
        commit(to, directory(tmp_path, 1, a=noise("1", BASE)), 1, points=b"one")
        folder = directory(tmp_path, 2, a=noise("2", BASE))
        traffic.fail = lambda operation, key: operation == "create" and key.endswith("3.json")
        with pytest.raises(StoreUnavailableError):
            commit(to, folder, 2, points=b"two")
        traffic.fail = lambda operation, key: False
        return to, folder

    def test_uncommitted_data_of_an_ended_run_goes(self, traffic: Traffic, tmp_path: Path) -> None:
        self.sleeper(traffic, tmp_path)
        before = dict(traffic.objects)
        assert collect(traffic.store, RUN, ended=False, retired_before=AT).objects == 0
        would = collect(traffic.store, RUN, ended=True, retired_before=AT, dry_run=True)
        assert (would.objects, would.size) == (2, BASE + 3)
        assert traffic.objects == before
        assert collect(traffic.store, RUN, ended=True, retired_before=AT) == would
        assert len([key for key in traffic.objects if "/log/" not in key]) == 2
        assert collect(traffic.store, RUN, ended=True, retired_before=AT).objects == 0
        assert len([key for key in traffic.objects if "/log/" in key]) == 3, "nothing is discarded twice"
        assert stored_runs(traffic.store) == [RUN]

    def test_a_commit_that_wakes_up_afterwards_sends_again(self, traffic: Traffic, tmp_path: Path) -> None:
        to = writer(traffic.store)
        commit(to, directory(tmp_path, 1, a=noise("1", BASE)), 1)
        asleep = [True]

        def collected(operation: str, key: str) -> bool:
            if operation == "create" and key.endswith("3.json") and asleep:
                asleep.clear()
                plain = MemoryStore(traffic.objects)
                assert collect(plain, RUN, ended=True, retired_before=AT).objects == 1
            return False

        folder = directory(tmp_path, 2, a=noise("2", BASE))
        traffic.fail = collected
        with pytest.raises(StoreUnavailableError, match="collected as garbage"):
            commit(to, folder, 2)
        assert [record.step for record in checkpoints(traffic.store, RUN)] == [1]
        record = commit(to, folder, 2)
        assert verify(traffic.store, record) == []

    def test_data_that_was_collected_is_no_damage_though_the_log_cannot_be_read(
        self, traffic: Traffic, tmp_path: Path
    ) -> None:
        to = writer(traffic.store)
        folder, away = directory(tmp_path, 1, a=noise("1", BASE)), []

        def collected(operation: str, key: str) -> bool:
            if "/data/" in key and operation == "get" and not away:
                away.append(True)
                assert collect(MemoryStore(traffic.objects), RUN, ended=True, retired_before=AT).objects == 1
            return bool(away) and "/log/" in key

        traffic.fail = collected
        with pytest.raises(StoreUnavailableError) as caught:
            commit(to, folder, 1)
        assert "a is missing" in str(caught.value.__cause__)
        traffic.fail = lambda operation, key: False
        assert verify(traffic.store, commit(to, folder, 1)) == []

    def test_what_arrives_late_below_a_checkpoint_goes(self, traffic: Traffic, tmp_path: Path) -> None:
        to = writer(traffic.store)
        record = commit(to, directory(tmp_path, 1, a=noise("1", BASE)), 1)
        MemoryStore(traffic.objects).put(f"{record.data}/b", b"late")
        found = collect(traffic.store, RUN, ended=False, retired_before=AT)
        assert (found.objects, found.size) == (1, 4)
        assert verify(traffic.store, record) == []

    def test_a_run_of_nobody(self, traffic: Traffic) -> None:
        traffic.objects["runs/x/data/1/1-x/a"] = b"a"
        assert collect(traffic.store, "x", ended=True, retired_before=AT).objects == 0
