"""How fast checkpoints go into a store and come back, against the raw alternative on the same disk or server.

::

    python -m benchmarks.checkpoint_store [--quick] [--json FILE] [--store URI]

Two peers: ``cp`` and ``sync`` for a folder, and for S3 boto3's own ``upload_file`` and ``download_file``
with the best of several TransferConfigs, which is found first. `put` and `get` are the store's; `commit` and
`restore` are the whole of what a run does: hashing, storing, reading back, the log; finding, loading,
comparing, laying out. Both sides take turns. Without ``--store`` a folder is measured; for S3 name a bucket,
as in ``s3://bucket/bench?endpoint=http://127.0.0.1:8333``, with the access key in the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Row, parser, report, row
from orchestrator.store.checkpoints import CheckpointWriter, restore
from orchestrator.store.objects import ObjectStore, open_store, store_id
from orchestrator.store.runlog import RunLog
from orchestrator.store.s3_client import Place
from orchestrator.store.s3_store import S3Store

MIB = 1 << 20
RUN = "bench-run"
S3_GOAL, FILE_GOAL = 0.9, 0.8


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(rounds: int, tidy: Callable[[], object], *sides: Callable[[int], object]) -> list[list[float]]:
    """Seconds of each side, in turns that begin with another side each time, since what ran before matters to
    a disk; each is called with the number of the round. After each, `tidy` removes what it made: no
    checkpoint is ever written over another, and to free a large file takes long, too.
    """
    times: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for turn in range(len(sides)):
            place = (turn + number) % len(sides)
            times[place].append(seconds(lambda p=place, n=number: sides[p](n)))  # type: ignore[misc]
            tidy()
            os.sync()
    return times


def speed(
    name: str, size: int, times: Sequence[float], peer: str, peer_times: Sequence[float], goal: float | None
) -> Row:
    """MiB/s against the peer's."""
    values, peers = ([size / MIB / t for t in side] for side in (times, peer_times))
    return row(name, values, "MiB/s", peer=peer, peer_values=peers, limit=goal, of="ratio", at_most=False)


class Bench:
    """One file of random bytes, and a store."""

    def __init__(self, uri: str, folder: Path, size: int, rounds: int) -> None:
        self.store: ObjectStore = open_store(uri)
        store_id(self.store, create=True)
        self.folder, self.size, self.rounds = folder, size, rounds
        self.source = folder / "source" / "model.safetensors"
        self.source.parent.mkdir()
        with self.source.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        self.commits = 0

    def put(self, number: int) -> None:
        """Ours."""
        self.store.put(f"bench/ours-{number}", self.source)

    def tidy(self) -> None:
        """Remove what was put."""
        for info in list(self.store.list("bench/ours-")):
            self.store.delete(info.key)

    def get(self, number: int) -> None:
        """Ours, into a file."""
        with (self.folder / "got").open("wb") as file:
            for chunk in self.store.get("bench/kept"):
                file.write(chunk)

    def tidy_local(self) -> None:
        """Remove what was fetched."""
        for path in self.folder.iterdir():
            if path.name.startswith("restored-"):
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()

    def commit(self, number: int) -> None:
        """The whole of a commit."""
        claim = RunLog(self.store, RUN).claim(self.commits + 1, node="bench")
        self.commits += 1
        writer = CheckpointWriter(self.store, claim)
        writer.commit(self.source.parent, self.commits, metrics={}, device="cpu", node="bench")

    def restore(self, number: int) -> None:
        """The whole of a restore."""
        restore(self.store, RUN, None, self.folder / f"restored-{number}-{time.monotonic_ns()}")


def folder_rows(bench: Bench) -> list[Row]:
    """Against cp and sync."""

    target = Path(bench.store.uri.removeprefix("file://")) / "copied"

    def copy(number: int) -> None:
        subprocess.run(["cp", str(bench.source), str(target)], check=True)
        subprocess.run(["sync", str(target)], check=True)

    def back(number: int) -> None:
        subprocess.run(["cp", str(bench.source), str(bench.folder / "copied")], check=True)

    def tidy() -> None:
        bench.tidy()
        target.unlink(missing_ok=True)

    ours, peer, commits = in_turns(bench.rounds, tidy, bench.put, copy, bench.commit)
    bench.store.put("bench/kept", bench.source)
    got, copied, restored = in_turns(bench.rounds, bench.tidy_local, bench.get, back, bench.restore)
    return [
        speed("folder: put", bench.size, ours, "cp + sync", peer, FILE_GOAL),
        speed("folder: commit, hashed and read back", bench.size, commits, "cp + sync", peer, None),
        speed("folder: get", bench.size, got, "cp", copied, None),
        speed("folder: restore, hashed", bench.size, restored, "cp", copied, None),
    ]


def s3_rows(bench: Bench) -> list[Row]:
    """Against boto3's transfers."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    assert isinstance(bench.store, S3Store)
    place: Place = bench.store.place
    session = boto3.Session(profile_name=place.profile, region_name=place.region or "us-east-1")
    client = session.client("s3", endpoint_url=place.endpoint)
    configs = [
        TransferConfig(multipart_chunksize=chunk * MIB, max_concurrency=threads)
        for chunk in (8, 32)
        for threads in (4, 10)
    ]
    key = f"{place.prefix}bench/peer"

    def upload(config: Any) -> None:
        client.upload_file(str(bench.source), place.bucket, key, Config=config)

    def download(config: Any) -> None:
        client.download_file(place.bucket, key, str(bench.folder / "got-peer"), Config=config)

    up = min(configs, key=lambda config: seconds(lambda: upload(config)))
    down = min(configs, key=lambda config: seconds(lambda: download(config)))
    bench.store.put("bench/kept", bench.source)
    ours, peer, commits = in_turns(bench.rounds, bench.tidy, bench.put, lambda _: upload(up), bench.commit)
    got, fetched, restored = in_turns(
        bench.rounds, bench.tidy_local, bench.get, lambda _: download(down), bench.restore
    )
    names = [f"boto3, {c.multipart_chunksize // MIB} MiB x {c.max_request_concurrency}" for c in (up, down)]
    return [
        speed("S3: put", bench.size, ours, names[0], peer, S3_GOAL),
        speed("S3: commit, hashed and read back", bench.size, commits, names[0], peer, None),
        speed("S3: get", bench.size, got, names[1], fetched, S3_GOAL),
        speed("S3: restore, hashed", bench.size, restored, names[1], fetched, None),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--store", metavar="URI", help="the store (default: a folder of its own)")
    options.add_argument(
        "--folder", type=Path, help="where to keep files meanwhile (default: a temporary one)"
    )
    options.add_argument("--mib", type=int, help="size of the file (default: 1024, with --quick 64)")
    arguments = options.parse_args(argv)
    size = (arguments.mib or (64 if arguments.quick else 1024)) * MIB
    rounds = 3 if arguments.quick else 6
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        bench = Bench(arguments.store or (folder / "store").as_uri(), folder, size, rounds)
        rows = s3_rows(bench) if isinstance(bench.store, S3Store) else folder_rows(bench)
        for info in list(bench.store.list("bench/")):
            bench.store.delete(info.key)
    report(rows, arguments.json, {"MiB": size // MIB})
    return 0


if __name__ == "__main__":
    sys.exit(main())
