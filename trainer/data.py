"""Characters as tokens, and batches that are a pure function of (seed, step)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.corpus import Corpus
from trainer.errors import UserError
from trainer.rng import Stream, stream_seed

Split = Literal["train", "val"]
_EVAL_STREAM = {"train": Stream.EVAL_TRAIN, "val": Stream.EVAL_VAL}
_TRAIN_FRACTION = 0.9
_PROBE_SEQUENCES = 4
_UNICODE_END = 0x110000


class Vocabulary:
    """The distinct characters of a text in code-point order; a token is a character's place among them."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._token = {character: token for token, character in enumerate(characters)}

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


@dataclass(frozen=True)
class Dataset:
    """A tokenised text: the first 90 % of the characters to train on, the rest to validate."""

    name: str
    sha256: str
    vocabulary: Vocabulary
    train: Tensor
    val: Tensor

    def split(self, name: Split) -> Tensor:
        """Tokens of one split, shape (characters,)."""
        return self.train if name == "train" else self.val

    def describe(self, file: Path) -> None:
        """Write what whoever orchestrates may want to know about the data."""
        profile = {"train": len(self.train), "val": len(self.val), "distinct": len(self.vocabulary)}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"name": self.name, "digest": self.sha256, "profile": profile}) + "\n")


def tokenise(corpus: Corpus, block_size: int) -> Dataset:
    """Tokens of a text, as small integers on the CPU.

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
    """

    def __init__(self, dataset: Dataset, config: TrainerConfig, device: torch.device) -> None:
        self._tokens: dict[Split, Tensor] = {
            "train": dataset.train.to(device),
            "val": dataset.val.to(device),
        }
        self._config = config
        self._device = device
        self._window = torch.arange(config.block_size + 1, device=device)

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of the update that leads from `step` to `step` + 1: inputs and targets, (B, T) each."""
        starts = self._starts("train", Stream.TRAIN, step, self._config.batch_size)
        return self._cut("train", starts)

    def evaluation(self, split: Split, step: int) -> list[Tensor]:
        """Start positions (B,) of the `eval_batches` batches of the evaluation at `step`; see :meth:`at`."""
        count = self._config.eval_batches * self._config.batch_size
        starts = self._starts(split, _EVAL_STREAM[split], step, count)
        return self._grouped(starts)

    def at(self, split: Split, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (len(starts), T) each, of the sequences that begin at `starts`."""
        return self._cut(split, starts)

    def whole(self, split: Split) -> list[Tensor]:
        """Start positions, (B,) or fewer in the last batch, of consecutive sequences over the split.

        Less than T characters at its end are left out.
        """
        T = self._config.block_size
        starts = torch.arange(0, len(self._tokens[split]) - T, T)
        return self._grouped(starts)

    def probe(self) -> tuple[Tensor, Tensor]:
        """A few sequences that are the same for every run on this text with this block size."""
        return self._cut("val", self._starts("val", Stream.PROBE, 0, _PROBE_SEQUENCES, seed=0))

    def _grouped(self, starts: Tensor) -> list[Tensor]:
        B = self._config.batch_size
        return [starts[begin : begin + B] for begin in range(0, len(starts), B)]

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
