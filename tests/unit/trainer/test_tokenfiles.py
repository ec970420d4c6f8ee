"""Folders of token files as nanoGPT prepares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainer.support import start, tiny
from trainer import checkpoint, tokenfiles
from trainer.data import Batches, TokenIds, load_dataset, vocabulary_of, widened
from trainer.errors import UserError
from trainer.sample import generate, load_model

TRAIN = [7, 3, 9, 0, 5] * 30
VAL = [1, 2, 8, 4] * 10


def write_tokens(folder: Path, train: Sequence[int] = TRAIN, val: Sequence[int] = VAL) -> Path:
    folder.mkdir(exist_ok=True)
    for name, tokens in (("train", train), ("val", val)):
        np.array(tokens, dtype=np.uint16).tofile(folder / f"{name}.bin")
    return folder


def load(folder: Path, **settings: Any) -> Any:
    return load_dataset(tiny(folder, **settings))


def test_the_files_are_read_as_they_are(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "data")
    (folder / "meta.pkl").write_bytes(b"no pickle is loaded")
    data = load(folder)
    assert (data.train.tolist(), data.val.tolist()) == (TRAIN, VAL)
    assert (len(data.vocabulary), data.vocabulary.characters, data.vocabulary.size) == (10, "", 10)
    assert len(load(folder, vocab_size=64).vocabulary) == 64


def test_nothing_is_copied_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "data")
    before = (folder / "train.bin").read_bytes()
    data = load(folder)
    with (folder / "train.bin").open("r+b") as file:
        file.write(b"\x08\x00")
    assert data.train[0] == 8  # the tensor is the file
    data.train[1] = 99
    assert (folder / "train.bin").read_bytes()[2:] == before[2:]


@pytest.mark.parametrize(
    ("largest", "size"),
    [(50000, 50304), (50256, 50304), (50257, 50258), (49999, 50000), (32768, 32769), (65535, 65536)],
)
def test_large_vocabularies(tmp_path: Path, largest: int, size: int) -> None:
    folder = write_tokens(tmp_path / "data", [*TRAIN, largest, 1], [largest, *VAL])
    config = tiny(folder)
    data = load_dataset(config)
    assert len(data.vocabulary) == size
    x, y = Batches(data, config, torch.device("cpu")).at("val", torch.tensor([0]))
    assert x.tolist() == [[largest, *VAL[:7]]]
    assert y.tolist() == [VAL[:8]]


def test_tokens_that_a_gpu_cannot_look_up_as_they_are() -> None:
    tokens = torch.tensor([0, 1, 32767, 32768, 65535], dtype=torch.int32)
    kept = tokens.to(torch.int16)
    assert kept.tolist()[-1] == -1
    assert torch.equal(widened(kept), tokens)


def test_the_hash_tells_where_one_split_ends(tmp_path: Path) -> None:
    both = TRAIN + VAL
    first = load(write_tokens(tmp_path / "a", both[:100], both[100:]))
    other = load(write_tokens(tmp_path / "b", both[:101], both[101:]))
    same = load(write_tokens(tmp_path / "c", both[:100], both[100:]))
    assert first.sha256 == same.sha256 != other.sha256


def test_large_files_are_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenfiles, "_LARGE_BYTES", 100)
    scans: list[int] = []
    scan = tokenfiles._scan
    monkeypatch.setattr(tokenfiles, "_scan", lambda *parts: scans.append(1) or scan(*parts))  # type: ignore[func-returns-value]
    folder = write_tokens(tmp_path / "data")
    first, again = load(folder), load(folder)
    assert len(scans) == 1
    assert (first.sha256, len(first.vocabulary)) == (again.sha256, len(again.vocabulary))
    changed = load(write_tokens(folder, [*TRAIN[:-1], 63]))
    assert len(scans) == 2
    assert changed.sha256 != first.sha256
    assert len(changed.vocabulary) == 64
    (tmp_path / "cache" / "tokens.json").write_text("{")
    assert load(folder).sha256 == changed.sha256
    assert len(scans) == 3


def test_characters_beside_the_tokens(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "data")
    (folder / "meta.json").write_text(json.dumps({"characters": "\nabcdefghi"}))
    vocabulary = load(folder).vocabulary
    assert (vocabulary.decode([0, 9]), vocabulary.encode("ab"), vocabulary.size) == ("\ni", [1, 2], None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"characters": "abc"}', "holds the token 9, but meta.json names 3: tokens run from 0 to 2"),
        ('{"characters": "aab"}', "does not name distinct characters"),
        ('{"vocab": 3}', "does not name distinct characters"),
        ("[", "cannot read .*meta.json"),
    ],
)
def test_a_wrong_meta_file(tmp_path: Path, content: str, message: str) -> None:
    folder = write_tokens(tmp_path / "data")
    (folder / "meta.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "data")
    with pytest.raises(UserError, match="token 9, but vocab_size is 9: tokens run from 0 to 8"):
        load(folder, vocab_size=9)
    with pytest.raises(UserError, match=r"val\.bin has 40 tokens: too few for block_size 40"):
        load(folder, block_size=40)
    (folder / "val.bin").write_bytes(b"\x01\x00\x02")
    with pytest.raises(UserError, match=r"val\.bin has 3 bytes: not a row of 16-bit tokens"):
        load(folder)
    (folder / "val.bin").unlink()
    with pytest.raises(UserError, match=r"a folder without val\.bin: expected train\.bin and val\.bin"):
        load(folder)


def test_a_text_has_a_vocabulary_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc" * 100)
    with pytest.raises(UserError, match="vocab_size is for folders"):
        load(tmp_path / "text.txt", vocab_size=9)


def test_a_relative_folder_is_found_where_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(tmp_path / "corpus")
    monkeypatch.setenv("ORCH_DATA_DIR", str(tmp_path))
    assert load_dataset(tiny(Path("corpus"))).name == "corpus"


def test_tokens_as_text() -> None:
    vocabulary = vocabulary_of("", 12)
    assert isinstance(vocabulary, TokenIds)
    assert vocabulary.decode([3, 11]) == "3 11"
    assert (vocabulary.encode("3 11"), vocabulary.encode("\n")) == ([3, 11], [0])
    with pytest.raises(UserError, match="by their numbers, 0 to 11, not 12 x"):
        vocabulary.encode("3 12 x")


def test_training_goes_on_from_a_checkpoint_and_is_sampled(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "data")
    config = tiny(folder, max_steps=4, sample_tokens=3)
    training, _ = start(config, tmp_path / "out")
    assert training.run() == 0
    assert len((tmp_path / "out" / "sample.txt").read_text().split()) == 4
    directory = tmp_path / "out" / "step-00000004"
    model, state = load_model(directory)
    assert state.vocabulary_size == 10
    text = generate(model, vocabulary_of(state.vocabulary, state.vocabulary_size), tokens=2, prompt="7 3")
    assert text.startswith("7 3 ")
    resumed, _ = start(tiny(folder, max_steps=6), tmp_path / "more", directory)
    assert resumed.run() == 0
    with pytest.raises(UserError, match="knows 10 tokens, the configuration's 12; vocab_size cannot change"):
        start(tiny(folder, vocab_size=12), tmp_path / "other", directory)
    assert checkpoint.read_state(directory).vocabulary == ""
