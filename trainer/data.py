"""Tokens, what they stand for, and batches that are a pure function of (seed, step)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.corpus import Corpus, find_corpus
from trainer.errors import UserError
from trainer.guards import Skip, batch_index
from trainer.rng import Stream, stream_seed
from trainer.tokenfiles import TokenFiles, find_token_files

Split = Literal["train", "val"]
_EVAL_STREAM = {"train": Stream.EVAL_TRAIN, "val": Stream.EVAL_VAL}
_TRAIN_FRACTION = 0.9
_PROBE_SEQUENCES = 4
_UNICODE_END = 0x110000
_INT16_TOKENS = 1 << 15


class Vocabulary:
    """The distinct characters of a text, by code point where they were taken from the text; a token is a
    character's place among them."""

    unit = "characters"
    """What people call the tokens."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._token = {character: token for token, character in enumerate(characters)}

    @property
    def size(self) -> int | None:
        """How many tokens there are, where `characters` does not tell."""
        return None

    @property
    def opening(self) -> str:
        """What a sample goes on from where nothing else is asked for: a line end if there is one."""
        return "\n" if "\n" in self.characters else self.characters[0]

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Tokens of a short text.

        Raises:
            UserError: a character was not in the training text.
        """
        unknown = sorted(set(text) - self._token.keys())
        if unknown:
            raise UserError(f"the model does not know {' '.join(map(repr, unknown))}")
        return [self._token[character] for character in text]

    def decode(self, tokens: list[int]) -> str:
        """The text of some tokens."""
        return "".join(self.characters[token] for token in tokens)


class TokenIds(Vocabulary):
    """Tokens of which nobody says what they stand for: their text is their numbers, such as ``464 3290``."""

    unit = "tokens"

    def __init__(self, size: int) -> None:
        super().__init__("")
        self._size = size

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self._size

    @property
    def opening(self) -> str:
        """The token 0."""
        return "0"

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """The numbers in a text; the token 0 for one of blanks and line ends only.

        Raises:
            UserError: something else is in the text, or a number is not below the vocabulary's size.
        """
        words = text.split() or [self.opening]
        unknown = [word for word in words if not word.isdecimal() or int(word) >= self._size]
        if unknown:
            raise UserError(
                f"the model knows tokens by their numbers, 0 to {self._size - 1}, not {' '.join(unknown)}"
            )
        return [int(word) for word in words]

    def decode(self, tokens: list[int]) -> str:
        """The numbers, with blanks between them."""
        return " ".join(map(str, tokens))


def vocabulary_of(characters: str, size: int | None = None) -> Vocabulary:
    """The vocabulary that a checkpoint describes: by its characters, or where there are none by its size."""
    return Vocabulary(characters) if size is None else TokenIds(size)


@dataclass(frozen=True)
class Dataset:
    """Tokens to train on and to validate with, and what they stand for."""

    name: str
    sha256: str
    vocabulary: Vocabulary
    train: Tensor
    val: Tensor

    def split(self, name: Split) -> Tensor:
        """Tokens of one split, shape (tokens,)."""
        return self.train if name == "train" else self.val

    def describe(self, file: Path) -> None:
        """Write what whoever orchestrates may want to know about the data."""
        profile = {"train": len(self.train), "val": len(self.val), "distinct": len(self.vocabulary)}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"name": self.name, "digest": self.sha256, "profile": profile}) + "\n")


def load_dataset(config: TrainerConfig) -> Dataset:
    """What the setting `dataset` names: a folder of token files, or else a text.

    Raises:
        UserError: it cannot be found, read or used; the message says why.
    """
    files = find_token_files(config.dataset)
    if files is not None:
        return from_files(files, config)
    if config.vocab_size is not None:
        raise UserError(
            "vocab_size is for folders with train.bin and val.bin; a text decides its vocabulary itself"
        )
    return tokenise(find_corpus(config.dataset), config.block_size)


def from_files(files: TokenFiles, config: TrainerConfig) -> Dataset:
    """Token files as a dataset on the CPU; its tensors are the mapped files, nothing is copied.

    Raises:
        UserError: a token is beyond the vocabulary, or a split is too short for one sequence.
    """
    size = files.vocabulary_size(config.vocab_size)
    for name, tokens in (("train", files.train), ("val", files.val)):
        if len(tokens) <= config.block_size:
            raise UserError(
                f"{files.name}/{name}.bin has {len(tokens)} tokens: too few for block_size "
                f"{config.block_size}"
            )
    # More operations know int16 than uint16: the latter is for tokens that need the 16th bit.
    dtype = np.int16 if files.largest < _INT16_TOKENS else np.uint16
    train, val = (torch.from_numpy(tokens.view(dtype)) for tokens in (files.train, files.val))
    vocabulary = Vocabulary(files.characters) if files.characters is not None else TokenIds(size)
    return Dataset(files.name, files.sha256, vocabulary, train, val)


def tokenise(corpus: Corpus, block_size: int) -> Dataset:
    """Tokens of a text, as small integers on the CPU: the first 90 % to train on, the rest to validate.

    Raises:
        UserError: a split is too short for one sequence of `block_size` and its targets.
    """
    codes = np.frombuffer(corpus.text.encode("utf-32-le"), dtype=np.uint32)
    present = np.zeros(_UNICODE_END, dtype=bool)
    present[codes] = True
    distinct = np.flatnonzero(present)
    table = np.zeros(_UNICODE_END, dtype=np.uint8 if len(distinct) <= 256 else np.int32)
    table[distinct] = np.arange(len(distinct))
    tokens = torch.from_numpy(table[codes])
    train, val = tokens.tensor_split([int(len(tokens) * _TRAIN_FRACTION)])
    if len(val) <= block_size:
        raise UserError(
            f"{corpus.name} has {len(tokens)} characters, of which {len(val)} are for validation: too few "
            f"for block_size {block_size}; use a longer text or a smaller block_size"
        )
    vocabulary = Vocabulary("".join(map(chr, distinct)))
    return Dataset(corpus.name, corpus.sha256, vocabulary, train, val)


class Batches:
    """Random sequences of B x T tokens and their targets, on `device`.

    Which sequences they are depends on the seed, the step and the purpose only: not on the device, nor on how
    often or in which order batches are drawn. So there is no state to save.

    Of `world` ranks, rank r gets the sequences r, r + world, r + 2 world, ... of each batch, b = B / world in
    number: together they are the batch of a single rank, whatever the number of ranks.

    Raises:
        UserError: `world` does not divide batch_size, or the tokens are too many for the GPU's memory.
    """

    def __init__(
        self, dataset: Dataset, config: TrainerConfig, device: torch.device, rank: int = 0, world: int = 1
    ) -> None:
        if config.batch_size % world:
            raise UserError(f"batch_size ({config.batch_size}) must be a multiple of the {world} ranks")
        try:
            self._tokens: dict[Split, Tensor] = {
                "train": _on_device(dataset.train, device),
                "val": _on_device(dataset.val, device),
            }
        except torch.OutOfMemoryError as e:
            needed = sum(t.numel() * t.element_size() for t in (dataset.train, dataset.val)) / 1e9
            raise UserError(f"{dataset.name} takes {needed:.1f} GB: more than the GPU has free") from e
        self._config = config
        self._device = device
        self._rank = rank
        self._world = world
        self.skipped: tuple[Skip, ...] = ()
        """What was left out after rewinds: it decides which batches follow."""
        self._window = torch.arange(config.block_size + 1, device=device)

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's part of the batch of the update that leads from `step` to `step` + 1: inputs and
        targets, (b, T) each."""
        return self._cut("train", self.starts(step, 1)[0])

    def starts(self, first_step: int, count: int) -> Tensor:
        """Start positions in the train split, (count, b) int64 on the CPU: row i is the batch of the update
        that leads on from `first_step` + i, as in :meth:`train`."""
        B = self._config.batch_size
        places = [batch_index(first_step + i, self.skipped) for i in range(count)]
        rows = [self._starts("train", Stream.TRAIN, place, B) for place in places]
        return torch.stack(rows)[:, self._rank :: self._world].contiguous()

    def tokens(self, split: Split) -> Tensor:
        """All tokens of a split on the device, (tokens,), in the small integer type that they are kept in."""
        return self._tokens[split]

    def evaluation(self, split: Split, step: int) -> list[Tensor]:
        """Start positions (b,) of this rank's part of the `eval_batches` batches of the evaluation at `step`;
        see :meth:`at`."""
        count = self._config.eval_batches * self._config.batch_size
        starts = self._starts(split, _EVAL_STREAM[split], step, count)
        return self._grouped(starts)

    def at(self, split: Split, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (len(starts), T) each, of the sequences that begin at `starts`."""
        return self._cut(split, starts)

    def whole(self, split: Split) -> list[Tensor]:
        """Start positions, (b,) or fewer in the last batch, of this rank's part of consecutive sequences over
        the split. The last batch may be missing on some ranks.

        Less than T characters at its end are left out.
        """
        T = self._config.block_size
        starts = torch.arange(0, len(self._tokens[split]) - T, T)
        return self._grouped(starts)

    def probe(self) -> tuple[Tensor, Tensor]:
        """A few sequences that are the same for every run on this text with this block size, on each rank."""
        return self._cut("val", self._starts("val", Stream.PROBE, 0, _PROBE_SEQUENCES, seed=0))

    def _grouped(self, starts: Tensor) -> list[Tensor]:
        """This rank's part of batches of B."""
        B = self._config.batch_size
        parts = [starts[begin + self._rank : begin + B : self._world] for begin in range(0, len(starts), B)]
        return [part for part in parts if len(part)]

    def _starts(self, split: Split, stream: Stream, step: int, count: int, seed: int | None = None) -> Tensor:
        seed = self._config.seed if seed is None else seed
        generator = torch.Generator().manual_seed(stream_seed(seed, stream, step))
        return torch.randint(
            len(self._tokens[split]) - self._config.block_size, (count,), generator=generator
        )

    def _cut(self, split: Split, starts: Tensor) -> tuple[Tensor, Tensor]:
        places = starts.to(self._device)[:, None] + self._window
        sequences = self._tokens[split][places].long()  # (B, T + 1)
        return sequences[:, :-1], sequences[:, 1:]


def _on_device(tokens: Tensor, device: torch.device) -> Tensor:
    """The tokens on `device`, as they are where that can look up their type: a GPU cannot look up uint16."""
    if tokens.dtype != torch.uint16 or device.type == "cpu":
        return tokens.to(device)
    return widened(tokens.view(torch.int16).to(device))


def widened(tokens: Tensor) -> Tensor:
    """int32 tokens of uint16 ones that are kept as int16."""
    return tokens.to(torch.int32).bitwise_and_(0xFFFF)
