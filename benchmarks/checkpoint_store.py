"""How fast checkpoints go into a store and come back, against the raw alternative on the same disk or server.

::

    python -m benchmarks.checkpoint_store [--quick] [--json FILE] [--store URI]

Two peers: ``cp`` and ``sync`` for a folder, and for S3 boto3's own ``upload_file`` and ``download_file``
with the best of several TransferConfigs, which is found first. `put` and `get` are the store's, of one large
file; `commit` and `restore` are the whole of what a run does with weights and moments in two files: hashing,
storing, reading back, the log; finding, fetching, comparing, laying out. A restore counts until the tensors
are copied to where a model has its own, and so does its peer: bare download and safetensors' ``load_file``.
All sides take turns. A folder is measured, and S3 where ``--store`` names a bucket, as in
``s3://bucket/bench?endpoint=http://127.0.0.1:8333``, with the access key in the environment. What a training
loop loses meanwhile is measured by `checkpoint_stall`, for each store.
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

import torch
from safetensors.torch import load_file, save_file

from benchmarks.checkpoint_stall import stall_rows
from benchmarks.report import Row, parser, report, row
from orchestrator.store.cache import CheckpointCache
from orchestrator.store.checkpoints import CheckpointWriter, restore
from orchestrator.store.objects import ObjectStore, open_store, store_id
from orchestrator.store.runlog import RunLog
from orchestrator.store.s3_client import Place
from orchestrator.store.s3_store import S3Store

MIB = 1 << 20
RUN = f"bench-{time.time_ns()}"
S3_GOAL, FILE_GOAL = 0.9, 0.8
RESTORE_GOAL = 1 / 1.3
"""Of the speed: a restore may take 1.3 times as long."""
TENSORS = 16
NAMES = [f"t{number}" for number in range(TENSORS)]
FILES = ("model.safetensors", "optimizer.safetensors")


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
    """One large file, a checkpoint of the same size, and a store."""

    def __init__(self, uri: str, folder: Path, size: int, rounds: int) -> None:
        self.store: ObjectStore = open_store(uri)
        store_id(self.store, create=True)
        self.folder, self.size, self.rounds = folder, size, rounds
        self.checkpoint = folder / "source"
        self.checkpoint.mkdir()
        generator = torch.Generator().manual_seed(1)
        self.weights = {name: torch.randn(size // 12 // TENSORS, generator=generator) for name in NAMES}
        self.moments = {f"{kind}.{n}": t.clone() for n, t in self.weights.items() for kind in ("m", "v")}
        save_file(self.weights, self.checkpoint / FILES[0])
        save_file(self.moments, self.checkpoint / FILES[1])
        self.source = folder / "large"
        with self.source.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        self.empty, self.kept = (CheckpointCache(folder / name, 4 * size) for name in ("empty", "kept"))

    def put(self, number: int) -> None:
        """Ours."""
        self.store.put(f"bench/ours-{number}", self.source)

    def tidy(self) -> None:
        """Remove what was put and committed."""
        for info in [*self.store.list("bench/ours-"), *self.store.list(f"runs/{RUN}-")]:
            self.store.delete(info.key)

    def get(self, number: int) -> None:
        """Ours, into a file."""
        with (self.folder / "got").open("wb") as file:
            for chunk in self.store.get("bench/kept"):
                file.write(chunk)

    def tidy_local(self) -> None:
        """Remove what was fetched."""
        for path in self.folder.iterdir():
            if path.name.startswith("restored-") or path == self.empty.folder:
                shutil.rmtree(path)
            elif path.is_file() and path != self.source:
                path.unlink()

    def commit(self, number: int) -> None:
        """The whole of a commit, to a run of its own: what is in the store already would not be sent."""
        self.commit_to(f"{RUN}-{number}")

    def commit_to(self, run: str) -> None:
        """The same to this run."""
        claim = RunLog(self.store, run).claim(1, node="bench")
        CheckpointWriter(self.store, claim).commit(self.checkpoint, 1, metrics={}, device="cpu", node="bench")

    def restore(self, number: int) -> None:
        """The whole of a restore to a node that has nothing, until its tensors are in memory."""
        self.restore_with(self.empty, number)

    def restore_cached(self, number: int) -> None:
        """The same where the node has kept the files."""
        self.restore_with(self.kept, number)

    def keep(self) -> None:
        """Commit what is restored, and fill the node's cache."""
        self.commit_to(RUN)
        self.restore_cached(-1)
        self.tidy_local()

    def restore_with(self, cache: CheckpointCache, number: int) -> None:
        """A restore."""
        into = self.folder / f"restored-{number}"
        restore(self.store, RUN, None, into, cache=cache)
        self.load(into)

    def load(self, folder: Path) -> None:
        """Weights and moments become what is in the files of a folder."""
        for name, target in zip(FILES, (self.weights, self.moments), strict=True):
            for key, tensor in load_file(folder / name).items():
                target[key].copy_(tensor)

    def bare(self, number: int) -> Path:
        """A new folder for the peer's files."""
        folder = self.folder / f"restored-peer-{number}"
        folder.mkdir()
        return folder


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

    def back_and_load(number: int) -> None:
        into = bench.bare(number)
        subprocess.run(["cp", *(bench.checkpoint / name for name in FILES), into], check=True)
        bench.load(into)

    ours, peer, commits = in_turns(bench.rounds, tidy, bench.put, copy, bench.commit)
    bench.store.put("bench/kept", bench.source)
    bench.keep()
    got, copied, loaded, restored, cached = in_turns(
        bench.rounds, bench.tidy_local, bench.get, back, back_and_load, bench.restore, bench.restore_cached
    )
    load = "cp + load_file"
    return [
        speed("folder: put", bench.size, ours, "cp + sync", peer, FILE_GOAL),
        speed("folder: commit, hashed and read back", bench.size, commits, "cp + sync", peer, None),
        speed("folder: get", bench.size, got, "cp", copied, None),
        speed("folder: restore, hashed, and load", bench.size, restored, load, loaded, RESTORE_GOAL),
        speed("folder: restore from the node's cache, and load", bench.size, cached, load, loaded, None),
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
    bench.keep()
    ours, peer, commits = in_turns(bench.rounds, bench.tidy, bench.put, lambda _: upload(up), bench.commit)

    for name in FILES:
        client.upload_file(str(bench.checkpoint / name), place.bucket, f"{place.prefix}bench/{name}")

    def download_and_load(number: int) -> None:
        into = bench.bare(number)
        for name in FILES:
            source = f"{place.prefix}bench/{name}"
            client.download_file(place.bucket, source, str(into / name), Config=down)
        bench.load(into)

    got, fetched, loaded, restored, cached = in_turns(
        bench.rounds,
        bench.tidy_local,
        bench.get,
        lambda _: download(down),
        download_and_load,
        bench.restore,
        bench.restore_cached,
    )
    names = [f"boto3, {c.multipart_chunksize // MIB} MiB x {c.max_request_concurrency}" for c in (up, down)]
    load = f"{names[1]} + load_file"
    return [
        speed("S3: put", bench.size, ours, names[0], peer, S3_GOAL),
        speed("S3: commit, hashed and read back", bench.size, commits, names[0], peer, None),
        speed("S3: get", bench.size, got, names[1], fetched, S3_GOAL),
        speed("S3: restore, hashed, and load", bench.size, restored, load, loaded, RESTORE_GOAL),
        speed("S3: restore from the node's cache, and load", bench.size, cached, load, loaded, None),
    ]


def store_rows(bench: Bench) -> list[Row]:
    """How fast; what was stored is removed."""
    rows = s3_rows(bench) if isinstance(bench.store, S3Store) else folder_rows(bench)
    for info in [*bench.store.list("bench/"), *bench.store.list(f"runs/{RUN}/data/")]:
        bench.store.delete(info.key)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = parser(__doc__.partition("\n")[0])
    options.add_argument("--store", metavar="URI", help="measure this store on S3 too")
    options.add_argument(
        "--folder", type=Path, help="where to keep files meanwhile (default: a temporary one)"
    )
    options.add_argument("--mib", type=int, help="size of the file (default: 1024, with --quick 64)")
    arguments = options.parse_args(argv)
    size = (arguments.mib or (64 if arguments.quick else 1024)) * MIB
    rounds = 3 if arguments.quick else 5
    rows: list[Row] = []
    for uri in (None, arguments.store) if arguments.store else (None,):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name)
            place = uri or (folder / "store").as_uri()
            rows += store_rows(Bench(place, folder, size, rounds))
        report(rows, arguments.json, {"MiB": size // MIB})
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            rows += stall_rows(uri or Path(name, "store").as_uri(), arguments.quick)
        report(rows, arguments.json, {"MiB": size // MIB})
    return 0


if __name__ == "__main__":
    sys.exit(main())
