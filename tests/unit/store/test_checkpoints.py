"""Committing and retiring checkpoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import DamagedError, FencedError, StoreError, StoreFullError, StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointWriter, checkpoints, points, restore, verify
from orchestrator.store.objects import ObjectStore, open_store
from orchestrator.store.runlog import RunLog
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
from tests.unit.store.memory_store import MemoryStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return new_store(tmp_path / "store")


def data_steps(store: ObjectStore) -> set[int]:
    """Steps that have data in the store."""
    keys = [info.key.split("/") for info in store.list(f"runs/{RUN}/data/")]
    return {int(parts[4].partition("-")[0]) for parts in keys}


class TestCommit:
    """A finished directory becomes a checkpoint."""

    def test_record(self, store: ObjectStore, tmp_path: Path) -> None:
        record = commit(
            writer(store),
            tmp_path,
            10,
            metrics={"val/loss": 1.5, "bad": float("nan"), "worse": float("inf")},
            device="cuda",
            node="gpu-box",
            points=b'{"step": 3}\n',
        )
        assert (record.run, record.attempt, record.step, record.device) == (RUN, 1, 10, "cuda")
        assert record.node == "gpu-box"
        assert record.metrics == {"val/loss": 1.5}
        assert record.size == 5040
        assert {file.path for file in record.files} == set(contents(10))
        assert record.at.tzinfo is not None
        assert checkpoints(store, RUN) == [record]
        assert verify(store, record) == []
        assert list(points(store, RUN)) == [b'{"step": 3}\n']

    def test_parent(self, store: ObjectStore, tmp_path: Path) -> None:
        first = commit(writer(store), tmp_path, 10)
        second = commit(writer(store, 2), tmp_path, 20, parent=first)
        assert second.parent is not None
        assert (second.parent.run, second.parent.step, second.parent.id) == (RUN, 10, first.id)
        assert checkpoints(store, RUN)[1].parent == second.parent

    def test_the_same_step_again_by_the_same_attempt(self, store: ObjectStore, tmp_path: Path) -> None:
        to = writer(store)
        first = commit(to, tmp_path, 10)
        before = list(store.list(""))
        assert commit(to, tmp_path, 10, salt="changed") == first
        assert list(store.list("")) == before

    def test_the_same_step_again_by_a_later_attempt(self, store: ObjectStore, tmp_path: Path) -> None:
        """A program resumed from step 10 may publish step 10 before it goes on."""
        first = commit(writer(store), tmp_path, 10)
        to = writer(store, 2)
        assert commit(to, tmp_path, 10, salt="other") == first
        commit(to, tmp_path, 20)
        assert [record.step for record in checkpoints(store, RUN)] == [10, 20]

    def test_a_damaged_step_of_an_earlier_attempt_is_replaced(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        first = commit(writer(store), tmp_path, 10)
        stored_file(store, first, "model.safetensors").write_bytes(b"")
        second = commit(writer(store, 2), tmp_path, 10, salt="again")
        assert second.id != first.id
        assert [(c.id, c.retired) for c in checkpoints(store, RUN)] == [(first.id, True), (second.id, False)]
        restored = restore(store, RUN, None, tmp_path / "out")
        assert read_directory(restored.directory) == contents(10, "again")

    def test_points_of_a_step_that_counts_already_come_later(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        to = writer(store)
        commit(to, tmp_path, 10, points=b"a\n")
        commit(to, tmp_path, 10, points=b"b\n")
        commit(to, tmp_path, 20, points=b"c\n")
        commit(to, tmp_path, 30)
        assert list(points(store, RUN)) == [b"a\n", b"b\nc\n"]

    def test_points_by_attempt(self, store: ObjectStore, tmp_path: Path) -> None:
        commit(writer(store), tmp_path, 10, points=b"a\n")
        commit(writer(store, 2), tmp_path, 20, points=b"b\n")
        assert list(points(store, RUN, attempt=2)) == [b"b\n"]
        assert list(points(store, RUN, attempt=3)) == []
        assert list(points(store, "unknown")) == []

    def test_damaged_points_are_left_out_and_said(self, store: ObjectStore, tmp_path: Path) -> None:
        to = writer(store)
        first = commit(to, tmp_path, 10, points=b"a\n")
        commit(to, tmp_path, 20, points=b"b\n")
        assert first.points is not None
        store.put(first.points.key, b"x\n")
        said: list[str] = []
        assert list(points(store, RUN, on_damage=said.append)) == [b"b\n"]
        assert "step 10" in said[0]

    def test_fenced(self, store: ObjectStore, tmp_path: Path) -> None:
        zombie = writer(store)
        commit(zombie, tmp_path, 10)
        writer(store, 2)
        before = list(store.list(""))
        with pytest.raises(FencedError):
            commit(zombie, tmp_path, 20, points=b"x")
        with pytest.raises(FencedError):
            commit(zombie, tmp_path, 10)
        with pytest.raises(FencedError):
            zombie.retain(1, 0, "x", "min")
        assert list(store.list("")) == before

    def test_fenced_while_uploading(self, store: ObjectStore, tmp_path: Path) -> None:
        """Whenever the next attempt claims, the earlier one's record does not come after its fence."""
        objects: dict[str, bytes] = {}
        directory = make_directory(tmp_path, 10)
        for moment in range(20):
            objects.clear()
            left = [moment]

            def hook(operation: str, key: str, act: Any, left: list[int] = left) -> object:
                if left[0] == 0:
                    RunLog(MemoryStore(objects), RUN).claim(2, node="n")
                left[0] -= 1
                return act()

            claim = RunLog(MemoryStore(objects), RUN).claim(1, node="n")
            claim.log.store = MemoryStore(objects, hook)
            fenced = False
            try:
                CheckpointWriter(claim.log.store, claim).commit(
                    directory, 10, metrics={}, device="cpu", node="n", points=b"x"
                )
            except FencedError:
                fenced = True
            records = RunLog(MemoryStore(objects), RUN).records()
            kinds = [(record.kind, record.attempt) for record in records]
            if fenced:
                assert kinds == [("fence", 1), ("fence", 2)]
                assert len(objects) == 2, "what was uploaded is removed"
            else:
                assert kinds[:2] == [("fence", 1), ("checkpoint", 1)]
        assert kinds == [("fence", 1), ("checkpoint", 1)]

    def test_a_newer_attempt_cleans_up_under_an_upload(self, store: ObjectStore, tmp_path: Path) -> None:
        """The failure of the earlier one says that it is fenced, not that the disk is broken."""
        directory = make_directory(tmp_path, 10)
        armed = [True]

        class Rude:
            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            def put_all(self, objects: Any) -> None:
                store.put_all(objects)
                if armed.pop():
                    newer = writer(store, 2)
                    newer.retain(1, 0, "x", "min")

        zombie = CheckpointWriter(Rude(), RunLog(store, RUN).claim(1, node="n"))  # type: ignore[arg-type]
        with pytest.raises(FencedError):
            zombie.commit(directory, 10, metrics={}, device="cpu", node="n")
        assert data_steps(store) == set()

    def test_a_disk_that_does_not_keep_what_is_written(self, tmp_path: Path) -> None:
        def hook(operation: str, key: str, act: Any) -> object:
            result = act()
            if operation == "put" and "optimizer" in key:
                objects[key] = objects[key][:-1] + b"?"
            return result

        objects: dict[str, bytes] = {}
        store = MemoryStore(objects, hook)
        to = writer(store)
        with pytest.raises(DamagedError, match="did not keep what was written: optimizer"):
            commit(to, tmp_path, 10)
        assert checkpoints(store, RUN) == []
        assert len(objects) == 1

    @pytest.mark.parametrize(
        ("number", "expected"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreUnavailableError)]
    )
    @pytest.mark.parametrize("call", ["write", "fsync", "replace", "mkdir"])
    def test_a_failing_upload_leaves_nothing_that_is_not_used_later(
        self,
        store: ObjectStore,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        expected: type[StoreError],
        call: str,
    ) -> None:
        to = writer(store)
        directory = make_directory(tmp_path, 10)
        before = list(store.list(""))
        with failing(monkeypatch, call, OSError(number, "bad")), pytest.raises(expected):
            to.commit(directory, 10, metrics={}, device="cpu", node="n", points=b"p")
        if expected is StoreFullError:
            assert list(store.list("")) == before
        assert os.listdir(tmp_path / "store" / ".tmp") == []
        record = to.commit(directory, 10, metrics={}, device="cpu", node="n", points=b"p")
        assert record.step == 10
        assert list(points(store, RUN)) == [b"p"]
        assert record.points is not None
        used = {*(record.key(file) for file in record.files), record.points.key, log_keys(store)[-1]}
        assert {info.key for info in store.list("")} == used | {info.key for info in before}

    def test_data_stays_where_the_outcome_is_unknown(
        self, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The record arrives after its writer was told that the store is gone."""
        to = writer(store)
        kept: list[tuple[Any, Any]] = []

        def link(source: Path, target: Path) -> None:
            kept.append((source.read_bytes(), target))
            raise OSError(errno.EIO, "gone")

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            with pytest.raises(StoreUnavailableError):
                commit(to, tmp_path, 10)
        kept[0][1].write_bytes(kept[0][0])
        assert restore(store, RUN, None, tmp_path / "out").record.step == 10
        assert to.retain(1, 0, "x", "min") == []
        assert commit(to, tmp_path, 10) == checkpoints(store, RUN)[0]

    def test_the_disk_fills_at_the_record(
        self, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        to = writer(store)
        with (
            failing(monkeypatch, "link", OSError(errno.ENOSPC, "full")),
            pytest.raises(StoreFullError),
        ):
            commit(to, tmp_path, 10)
        assert data_steps(store) == set()
        assert len(log_keys(store)) == 1


def test_several_runs_in_one_store(store: ObjectStore, tmp_path: Path) -> None:
    commit(writer(store, run="a"), tmp_path, 1)
    commit(writer(store, run="a.b"), tmp_path, 2)
    assert [c.step for c in checkpoints(store, "a")] == [1]
    assert [c.step for c in checkpoints(store, "a.b")] == [2]
    assert checkpoints(store, "b") == []


def test_another_process_sees_it(store: ObjectStore, tmp_path: Path) -> None:
    record = commit(writer(store), tmp_path, 1)
    assert checkpoints(open_store(store.uri), RUN) == [record]
