"""Directories that cannot be checkpoints."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StoreError, StoreFullError, StoreUnavailableError
from orchestrator.store.checkpoints import CheckpointWriter, Limits
from orchestrator.store.objects import ObjectStore
from orchestrator.store.runlog import RunLog
from tests.unit.store.helpers import (
    RUN,
    commit,
    make_directory,
    new_store,
    writer,
)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return new_store(tmp_path / "store")


class TestRefused:
    """Nothing of them is stored, and the message names the file."""

    def refused(self, store: ObjectStore, directory: Path, match: str, **limits: int) -> None:
        to = CheckpointWriter(store, RunLog(store, RUN).claim(1, node="n"), limits=Limits(**limits))
        before = list(store.list(""))
        with pytest.raises(StoreError, match=match) as caught:
            to.commit(directory, 10, metrics={}, device="cpu", node="n")
        assert not isinstance(caught.value, StoreUnavailableError | StoreFullError)
        assert list(store.list("")) == before

    def test_links(self, store: ObjectStore, tmp_path: Path) -> None:
        directory = make_directory(tmp_path, 10)
        (directory / "link").symlink_to("/etc/passwd")
        self.refused(store, directory, "'link' in a checkpoint is not a regular file")

    def test_links_to_folders(self, store: ObjectStore, tmp_path: Path) -> None:
        directory = make_directory(tmp_path, 10)
        (directory / "extra" / "up").symlink_to(directory)
        self.refused(store, directory, "'extra/up' in a checkpoint is not a regular file")

    def test_dangling_links(self, store: ObjectStore, tmp_path: Path) -> None:
        directory = make_directory(tmp_path, 10)
        (directory / "link").symlink_to("nowhere")
        self.refused(store, directory, "not a regular file")

    def test_pipes_and_sockets(self, store: ObjectStore, tmp_path: Path, monkeypatch: Any) -> None:
        directory = make_directory(tmp_path, 10)
        os.mkfifo(directory / "pipe")
        self.refused(store, directory, "'pipe' in a checkpoint is not a regular file")
        (directory / "pipe").unlink()
        monkeypatch.chdir(directory)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
            with pytest.raises(StoreError, match="'socket' in a checkpoint is not"):
                writer(store, 2).commit(directory, 10, metrics={}, device="cpu", node="n")

    def test_empty(self, store: ObjectStore, tmp_path: Path) -> None:
        (tmp_path / "empty" / "folder").mkdir(parents=True)
        self.refused(store, tmp_path / "empty", "has no files")

    def test_missing(self, store: ObjectStore, tmp_path: Path) -> None:
        self.refused(store, tmp_path / "missing", "cannot read .*missing: No such file")

    def test_a_file(self, store: ObjectStore, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        self.refused(store, tmp_path / "file", "has no files")

    def test_too_many_files(self, store: ObjectStore, tmp_path: Path) -> None:
        self.refused(store, make_directory(tmp_path, 10), "more than 3 files", files=3)

    def test_too_many_bytes(self, store: ObjectStore, tmp_path: Path) -> None:
        self.refused(store, make_directory(tmp_path, 10), "5000 bytes", bytes=5000)

    def test_names_that_are_not_text(self, store: ObjectStore, tmp_path: Path) -> None:
        directory = make_directory(tmp_path, 10)
        Path(os.fsdecode(os.fsencode(directory) + b"/\xff")).write_text("")
        self.refused(store, directory, "is not UTF-8")

    def test_names_that_are_too_long_as_keys(self, store: ObjectStore, tmp_path: Path) -> None:
        directory = make_directory(tmp_path, 10)
        (directory / ("ü" * 100)).write_text("")
        self.refused(store, directory, "cannot be the key")

    def test_a_file_that_changes(
        self, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = make_directory(tmp_path, 10)
        real = os.readv

        def read(descriptor: int, buffers: list[memoryview]) -> int:
            size = real(descriptor, buffers)
            if size == 3000:
                with (directory / "model.safetensors").open("ab") as file:
                    file.write(b"more")
            return size

        monkeypatch.setattr(os, "readv", read)
        self.refused(store, directory, r"'model\.safetensors' changed while")

    def test_a_file_that_becomes_a_link(
        self, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = make_directory(tmp_path, 10)
        real = os.open

        def swap(path: Any, *args: Any, **kwargs: Any) -> int:
            if path == "model.safetensors":
                (directory / path).unlink()
                (directory / path).symlink_to("/etc/passwd")
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", swap)
        self.refused(store, directory, "cannot read")

    def test_too_many_points(self, store: ObjectStore, tmp_path: Path) -> None:
        to = CheckpointWriter(store, RunLog(store, RUN).claim(1, node="n"), limits=Limits(points=3))
        with pytest.raises(StoreError, match="more than 3 bytes of points"):
            commit(to, tmp_path, 10, points=b"abcd")
