"""The pace of transfers, on a clock that tests move; and what a user may write for it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from orchestrator.errors import SetupError
from orchestrator.settings import rate, size
from orchestrator.store.file_store import FileStore
from orchestrator.store.throttle import FREE, PacedBody, Paces, TokenBucket, Unlimited, process_paces
from tests.clocks import TurnedClock

MB = 1_000_000


class Passed(TurnedClock):
    """Notes what has passed by when."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.at

    @property
    def took(self) -> float:
        return self.at - self.begun


def test_a_bucket_lets_its_rate_through() -> None:
    clock = Passed()
    bucket = TokenBucket(4 * MB, clock)
    for _ in range(100):
        bucket.take(80_000)
    assert clock.took == pytest.approx(2.0, abs=0.11)


def test_idle_time_is_not_made_up_for() -> None:
    clock = Passed()
    bucket = TokenBucket(1 * MB, clock)
    bucket.take(1)
    clock.at += 3600
    clock.begun = clock.at
    for _ in range(10):
        bucket.take(100_000)
    assert clock.took == pytest.approx(0.9, abs=0.01)  # a tenth of a second is


def test_those_who_wait_share_one_rate() -> None:
    """Two that take at the same moment wait for different times."""

    class Still(TurnedClock):
        waits: list[float]

        def sleep(self, seconds: float) -> None:
            self.waits.append(seconds)

    clock = Still()
    clock.waits = []
    bucket = TokenBucket(1 * MB, clock)
    for _ in range(3):
        bucket.take(500_000)
    assert clock.waits == pytest.approx([0.4, 0.9, 1.4])


def test_blocks_are_small_and_whole() -> None:
    clock = Passed()
    for limit, block in ((1e4, 8 << 10), (1e6, 25_000), (1e9, 64 << 10)):
        bucket = TokenBucket(limit, clock)
        data = bytes(range(256)) * 1000
        pieces = list(bucket.blocks(data))
        assert b"".join(pieces) == data
        assert max(len(piece) for piece in pieces) == bucket.block == block


def test_few_connections_share_a_small_limit() -> None:
    assert [TokenBucket(limit).parallel(8) for limit in (1e3, 2.5e6, 4e6, 1e9)] == [1, 2, 3, 8]
    assert Unlimited().parallel(8) == 8


def test_a_body_waits_while_it_is_sent_only() -> None:
    clock = Passed()
    body = PacedBody(bytes(2 * MB), TokenBucket(1 * MB, clock))
    assert len(body.read()) == 2 * MB  # for its checksum
    assert clock.took == 0
    body.seek(0)
    body.sending = True
    read = 0
    while block := body.read(16_384):
        read += len(block)
    assert read == 2 * MB
    assert clock.took == pytest.approx(2.0, abs=0.11)


def test_a_folder_keeps_the_limits(tmp_path: Path) -> None:
    clock = Passed()
    store = FileStore(tmp_path, Paces(TokenBucket(1 * MB, clock), TokenBucket(2 * MB, clock)))
    store.prepare()
    data = bytes(2 * MB)
    store.put("k", io.BytesIO(data))
    assert clock.took == pytest.approx(2.0, abs=0.11)
    assert b"".join(store.get("k")) == data
    assert clock.took == pytest.approx(3.0, abs=0.25)
    assert b"".join(store.get("k", start=5, end=9)) == bytes(4)


def test_a_process_shares_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_UPLOAD_LIMIT", "2MB/s")
    monkeypatch.delenv("ORCH_DOWNLOAD_LIMIT", raising=False)
    process_paces.cache_clear()
    try:
        paces = process_paces()
        assert isinstance(paces.up, TokenBucket)
        assert paces.up.rate == 2 * MB
        assert isinstance(paces.down, Unlimited)
        assert process_paces() is paces
    finally:
        process_paces.cache_clear()
    assert isinstance(FREE.up, Unlimited)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2MB/s", 2e6),
        ("500kB/s", 5e5),
        ("1.5 MiB/s", 1.5 * 2**20),
        ("20Mbit/s", 2.5e6),
        ("", None),
        (" ", None),
    ],
)
def test_rates(text: str, meant: float | None) -> None:
    assert rate("ORCH_UPLOAD_LIMIT", {"ORCH_UPLOAD_LIMIT": text}) == meant
    assert rate("ORCH_UPLOAD_LIMIT", {}) is None


@pytest.mark.parametrize("text", ["2", "2MB", "MB/s", "0MB/s", "-1MB/s", "999B/s", "2 mb/s", "nan", "²MB/s"])
def test_nonsense_for_a_rate(text: str) -> None:
    with pytest.raises(SetupError, match="ORCH_UPLOAD_LIMIT") as caught:
        rate("ORCH_UPLOAD_LIMIT", {"ORCH_UPLOAD_LIMIT": text})
    assert "2MB/s" in str(caught.value.remedy)


def test_sizes() -> None:
    texts = {"10GB": 10**10, "500MiB": 500 * 2**20, "0": 0, "": None}
    assert {text: size("N", {"N": text}) for text in texts} == texts
    for text in ("10", "10GB/s", "-1GB", "much"):
        with pytest.raises(SetupError, match="N is"):
            size("N", {"N": text})
