"""Tokens in files as nanoGPT prepares them: a folder with ``train.bin`` and ``val.bin``. Imports no torch.

Each file is a row of unsigned 16-bit little-endian tokens without a header. They are mapped into memory, not
read into it. What the tokens stand for may be told by a ``meta.json`` beside them, such as
``{"characters": "\\n abc"}``: the character of token 0, of token 1, and so on. nanoGPT's own ``meta.pkl`` is
ignored: a pickle can run any program when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.corpus import in_data_dir
from trainer.errors import UserError
from trainer.remember import recall, remember

FILES = ("train.bin", "val.bin")
META_FILE = "meta.json"
GPT2_TOKENS = 50257
GPT2_PADDED = 50304
"""What nanoGPT pads GPT-2's vocabulary to: a multiple of 64 is faster."""
_GPT2_LEAST = 50001
_CHUNK_TOKENS = 8 << 20
_LARGE_BYTES = 64 << 20
_SCANS_FILE = "tokens.json"

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class TokenFiles:
    """The tokens of both splits, mapped into memory. `sha256` is that of their number in train.bin as
    decimal digits, a line end, and the bytes of both files."""

    name: str
    train: Tokens
    val: Tokens
    largest: int
    """The largest token of both."""
    characters: str | None
    """What meta.json says that the tokens stand for."""
    sha256: str

    def vocabulary_size(self, wanted: int | None) -> int:
        """How many tokens a model must know: `wanted`, the setting vocab_size; else those of meta.json; else
        those up to the largest one. Where that is 50,001 to 50,257 it is taken for GPT-2's BPE and padded to
        50,304 as nanoGPT does.

        Raises:
            UserError: there are tokens beyond `wanted` or beyond meta.json's characters.
        """
        needed = self.largest + 1
        if self.characters is not None:
            return self._enough(len(self.characters), f"{META_FILE} names", wanted)
        if wanted is not None:
            return self._enough(wanted, "vocab_size is", None)
        return GPT2_PADDED if _GPT2_LEAST <= needed <= GPT2_TOKENS else needed

    def _enough(self, size: int, source: str, wanted: int | None) -> int:
        if self.largest >= size:
            raise UserError(
                f"{self.name} holds the token {self.largest}, but {source} {size}: tokens run from 0 to "
                f"{size - 1}"
            )
        if wanted not in (None, size):
            raise UserError(f"vocab_size is {wanted}, but {self.name}/{META_FILE} names {size} characters")
        return size


def find_token_files(dataset: str) -> TokenFiles | None:
    """The token files of the folder that `dataset` names; None where it names no folder.

    A relative path is tried in ``ORCH_DATA_DIR`` too.

    Raises:
        UserError: a file is missing, empty, cannot be read or is not a row of 16-bit tokens.
    """
    path = Path(dataset).expanduser()
    folder = next((p for p in (path, *in_data_dir(path)) if p.is_dir()), None)
    if folder is None:
        return None
    train, val = (_map(folder, name) for name in FILES)
    largest, sha256 = _scan_once(folder, train, val)
    return TokenFiles(dataset, train, val, largest, _characters(folder / META_FILE), sha256)


def _map(folder: Path, name: str) -> Tokens:
    path = folder / name
    try:
        size = path.stat().st_size
        if size % 2 or not size:
            raise UserError(f"{path} has {size:,} bytes: not a row of 16-bit tokens")
        # Copy on write: PyTorch wants memory that could be written to; the file stays as it is.
        return np.memmap(path, dtype="<u2", mode="c")
    except FileNotFoundError as e:
        raise UserError(
            f"{folder} is a folder without {name}: expected {' and '.join(FILES)} with uint16 tokens, as "
            f"nanoGPT's prepare.py writes them"
        ) from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


def _scan_once(folder: Path, train: Tokens, val: Tokens) -> tuple[int, str]:
    """As :func:`_scan`, and of large files only once: gigabytes take seconds. A file counts as the same while
    its path, size, inode and time of change are the same."""
    if train.nbytes + val.nbytes < _LARGE_BYTES:
        return _scan(train, val)
    states = [(folder / name).stat() for name in FILES]
    key = f"{folder.resolve()} " + " ".join(f"{s.st_size}/{s.st_ino}/{s.st_mtime_ns}" for s in states)
    match recall(_SCANS_FILE).get(key):
        case [int(largest), str(sha256)]:
            return largest, sha256
    largest, sha256 = _scan(train, val)
    remember(_SCANS_FILE, key, [largest, sha256])
    return largest, sha256


def _scan(*parts: Tokens) -> tuple[int, str]:
    """The largest token and the SHA-256, in one pass."""
    digest = hashlib.sha256(f"{len(parts[0])}\n".encode())
    largest = 0
    for tokens in parts:
        for begin in range(0, len(tokens), _CHUNK_TOKENS):
            chunk = tokens[begin : begin + _CHUNK_TOKENS]
            digest.update(chunk.data)
            largest = max(largest, int(chunk.max()))
    return largest, digest.hexdigest()


def _characters(path: Path) -> str | None:
    """The characters that meta.json names; None where there is no such file.

    Raises:
        UserError: it is not of the expected form.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path}: {e}") from e
    characters = content.get("characters") if isinstance(content, dict) else None
    if not isinstance(characters, str) or not characters or len(set(characters)) < len(characters):
        raise UserError(f'{path} does not name distinct characters as in {{"characters": "abc"}}')
    return characters
