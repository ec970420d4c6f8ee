"""Tokens, splits, and batches that depend on (seed, step) only."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from tests.unit.trainer.support import tiny, write_text
from trainer.corpus import Corpus, find_corpus
from trainer.data import Batches, Vocabulary, tokenise
from trainer.errors import UserError
from trainer.rng import Stream, _splitmix64, stream_seed

CPU = torch.device("cpu")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path)


def batches(text: Path, **settings: object) -> Batches:
    config = tiny(text, **settings)
    return Batches(tokenise(find_corpus(config.dataset), config.block_size), config, CPU)


def test_every_part_of_a_stream_seed_reaches_the_low_bits() -> None:
    """PyTorch's CPU generator sees the low 32 bits only."""
    seeds = {stream_seed(s, stream, k) & 0xFFFFFFFF for s in range(5) for stream in Stream for k in range(50)}
    assert len(seeds) == 5 * len(Stream) * 50


def test_a_stream_seed_never_changes() -> None:
    """It is part of what a seed and a step mean in checkpoints that exist."""
    assert _splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's published first output for the state 0
    assert stream_seed(1337, Stream.TRAIN, 2000) == 8_785_440_343_837_500_066


def test_tokenised_text_and_split() -> None:
    data = tokenise(Corpus("t", "héllo wörld\n" * 10, "0" * 64), block_size=4)
    assert data.vocabulary.characters == "\n dhlorwéö"
    both = torch.cat([data.train, data.val]).tolist()
    assert data.vocabulary.decode(both) == "héllo wörld\n" * 10
    assert (len(data.train), len(data.val)) == (108, 12)
    assert data.vocabulary.encode("wé") == [7, 8]


def test_unknown_characters_are_named() -> None:
    with pytest.raises(UserError, match="does not know '%'"):
        Vocabulary("abc").encode("a%")


def test_targets_are_the_next_characters(text: Path) -> None:
    made = batches(text)
    x, y = made.train(7)
    assert x.shape == y.shape == (4, 8)
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_batches_depend_on_seed_and_step_only(text: Path) -> None:
    forwards, backwards = batches(text), batches(text, dropout=0.0, max_steps=99)
    there = [forwards.train(step)[0] for step in range(5)]
    back = [backwards.train(step)[0] for step in reversed(range(5))]
    assert all(torch.equal(a, b) for a, b in zip(there, reversed(back), strict=True))
    assert not torch.equal(there[0], there[1])
    assert not torch.equal(there[0], batches(text, seed=1).train(0)[0])


def test_evaluations_have_their_own_batches(text: Path) -> None:
    made = batches(text)
    again = batches(text)
    for split in ("train", "val"):
        starts = made.evaluation(split, 4)
        assert [len(part) for part in starts] == [4, 4, 4]
        assert torch.equal(torch.cat(starts), torch.cat(again.evaluation(split, 4)))
        assert not torch.equal(torch.cat(starts), torch.cat(made.evaluation(split, 8)))


def test_the_whole_split_is_covered_once(text: Path) -> None:
    made = batches(text)
    inputs = torch.cat([made.at("val", part)[0] for part in made.whole("val")]).flatten()
    data = tokenise(find_corpus(str(text)), 8)
    assert torch.equal(inputs, data.val[: len(inputs)].long())
    assert len(data.val) - len(inputs) <= 8


def test_the_probe_does_not_depend_on_the_seed_or_batch_size(text: Path) -> None:
    assert torch.equal(batches(text).probe()[0], batches(text, seed=9, batch_size=7).probe()[0])


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a" * 50)
    with pytest.raises(UserError, match=r"50 characters, of which 5 are for validation.*block_size 8"):
        tokenise(find_corpus(str(path)), 8)


def test_more_than_256_distinct_characters() -> None:
    characters = "".join(chr(0x4E00 + i) for i in range(300))
    data = tokenise(Corpus("t", characters, "0" * 64), block_size=4)
    assert len(data.vocabulary) == 300
    assert torch.cat([data.train, data.val]).tolist() == list(range(300))


def test_corpus_hash_is_that_of_normal_line_ends(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    found = find_corpus(str(tmp_path / "dos.txt"))
    assert found.text == "one\ntwo\n"
    assert found.sha256 == hashlib.sha256(b"one\ntwo\n").hexdigest()


def test_ranks_share_the_batches_of_one(text: Path) -> None:
    config = tiny(text, batch_size=6)
    data = tokenise(find_corpus(config.dataset), config.block_size)
    alone = Batches(data, config, CPU)
    for world in (2, 3, 6):
        ranks = [Batches(data, config, CPU, rank, world) for rank in range(world)]
        for part, whole in zip(zip(*(r.train(5) for r in ranks), strict=True), alone.train(5), strict=True):
            assert torch.equal(torch.stack(part, dim=1).flatten(0, 1), whole)
        for listed in ("evaluation", "whole"):
            arguments = ("val", 4) if listed == "evaluation" else ("val",)
            shares = [torch.cat(getattr(rank, listed)(*arguments)) for rank in ranks]
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            everything = torch.cat(getattr(alone, listed)(*arguments))
            assert torch.equal(torch.cat(shares).sort().values, everything.sort().values)
        assert all(len(part) for rank in ranks for part in rank.whole("val"))
        assert all(torch.equal(rank.probe()[0], alone.probe()[0]) for rank in ranks)


def test_the_ranks_must_divide_the_batch(text: Path) -> None:
    config = tiny(text, batch_size=6)
    with pytest.raises(UserError, match=r"batch_size \(6\) must be a multiple of the 4 ranks"):
        Batches(tokenise(find_corpus(config.dataset), config.block_size), config, CPU, 0, 4)


def test_many_steps_are_drawn_at_once(text: Path) -> None:
    config = tiny(text)
    data = tokenise(find_corpus(config.dataset), config.block_size)
    for rank, world in ((0, 1), (1, 2)):
        made = Batches(data, config, CPU, rank, world)
        starts = made.starts(3, 5)
        assert (starts.shape, starts.dtype) == ((5, 4 // world), torch.int64)
        for row, step in zip(starts, range(3, 8), strict=True):
            x, y = made.train(step)
            sequences = made.tokens("train").long().unfold(0, 9, 1)[row]
            assert torch.equal(sequences[:, :-1], x)
            assert torch.equal(sequences[:, 1:], y)
