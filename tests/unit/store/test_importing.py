"""Weights from elsewhere: what is brought in, and what is refused before anything is stored."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.errors import ConflictError, NotFoundError, OrchError, StoreError
from orchestrator.store.checkpoints import restore
from orchestrator.store.importing import import_directory
from orchestrator.store.objects import ObjectStore
from tests.unit.store.helpers import new_store, read_directory


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return new_store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    (folder / "more").mkdir(parents=True)
    save_file({"a": torch.arange(6.0).reshape(3, 2)}, folder / "model.safetensors")
    (folder / "more" / "config.json").write_text("{}")
    return folder


def test_everything_arrives(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    record = import_directory(store, folder, "gpt", None)
    assert (record.run, record.step) == ("import.gpt", 0)
    out = restore(store, "import.gpt", None, tmp_path / "out").directory
    assert read_directory(out) == read_directory(folder)


def test_a_name_is_given_once(store: ObjectStore, folder: Path) -> None:
    import_directory(store, folder, "gpt", None)
    with pytest.raises(ConflictError, match="imported as gpt already"):
        import_directory(store, folder, "gpt", 5)
    assert import_directory(store, folder, "gpt2", 5).step == 5


def test_the_mark_says_the_step(store: ObjectStore, folder: Path) -> None:
    (folder / "checkpoint.json").write_text(json.dumps({"step": 7}))
    assert import_directory(store, folder, "a", None).step == 7
    assert import_directory(store, folder, "b", 3).step == 3
    for number, mark in enumerate(("[]", "{", '{"step": -1}', '{"step": true}', "[" * 100_000)):
        (folder / "checkpoint.json").write_text(mark)
        with pytest.raises(StoreError, match="does not say a step"):
            import_directory(store, folder, f"c{number}", None)


class Burglar:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["extra.pt", "more/x.BIN", "optimizer.pkl", "model.safetensors"])
def test_pickles_are_refused(store: ObjectStore, folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Burglar(tmp_path / "robbed")))
    before = list(store.list(""))
    with pytest.raises(StoreError, match=r"may run code|no whole safetensors"):
        import_directory(store, folder, "gpt", None)
    assert list(store.list("")) == before
    assert not (tmp_path / "robbed").exists()


def test_what_is_no_folder_of_weights(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    model = folder / "model.safetensors"
    data = model.read_bytes()
    model.write_bytes(data[:-1])
    with pytest.raises(StoreError, match="no whole safetensors file"):
        import_directory(store, folder, "gpt", None)
    model.unlink()
    with pytest.raises(StoreError, match="has no safetensors file"):
        import_directory(store, folder, "gpt", None)
    with pytest.raises(NotFoundError, match="is not a folder"):
        import_directory(store, tmp_path / "nowhere", "gpt", None)
    model.write_bytes(data)
    with pytest.raises(OrchError, match="cannot be a run id"):
        import_directory(store, folder, "a/b", None)
