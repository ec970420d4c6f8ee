"""A commit to a real S3 server, cut off at any request, leaves the checkpoints as they were, or one more."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.store.checkpoints import checkpoints, points, restore, verify
from orchestrator.store.runlog import RunLog
from orchestrator.store.s3_client import connect
from orchestrator.store.s3_store import S3Store
from tests.faults.conftest import BUCKET
from tests.faults.s3_child import PART
from tests.faults.test_commit_crashes import REPOSITORY, go_on
from tests.s3 import S3Server
from tests.unit.store.helpers import RUN, log_keys, make_directory, read_directory

_TOKEN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Directories of steps 100 and 200; the latter has a file that travels in two parts."""
    for step in (100, 200):
        make_directory(tmp_path, step).rename(tmp_path / str(step))
    (tmp_path / "200/model.safetensors").write_bytes(os.urandom(PART + 50_000))
    return tmp_path


@dataclass
class Left:
    """What a killed child left behind."""

    store: S3Store
    at: int
    moment: str
    request: str

    def state(self, server: S3Server) -> tuple[str, ...]:
        """Every key, and every upload that was begun, without what is different each time."""
        prefix = self.store.place.prefix
        uploads = server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", [])
        keys = [info.key for info in self.store.list("")] + [f"upload {found['Key']}" for found in uploads]
        return tuple(sorted(_TOKEN.sub("…", key).replace(prefix, "") for key in keys))


def killed_everywhere(server: S3Server, source: Path, scenario: str) -> Iterator[Left]:
    """The stores of children who were killed at one request after the other, the last one not."""
    uri = server.uri(BUCKET, "PREFIX")
    command = [sys.executable, "-m", "tests.faults.s3_child", uri, str(source), scenario]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    client = connect(S3Store(uri).place)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        store = S3Store(line["uri"])
        store._requests._client = client  # a new one takes longer than all that it is asked
        yield Left(store, line["at"], line["moment"], line["request"])


def restored_step(left: Left, source: Path) -> int:
    """Restore the newest, look at every byte, and tell its step."""
    restored = restore(left.store, RUN, None, source / "restored")
    assert restored.skipped == []
    assert restored.unreadable == ()
    assert read_directory(restored.directory) == read_directory(source / str(restored.record.step))
    shutil.rmtree(restored.directory)
    return restored.record.step


def nothing_left_over(left: Left, source: Path, monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    """The next attempt commits and removes what was left; unfinished uploads go a day later."""
    go_on(left.store, source)
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.store.s3_store.LEFTOVER", timedelta(hours=-1))
        left.store.prepare()
    assert not [key for key in left.state(server) if key.startswith("upload ")]


def test_killed_at_every_request_of_a_commit(
    s3: S3Server, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    states: dict[tuple[int, str], tuple[str, ...]] = {}
    requests: list[str] = []
    for left in killed_everywhere(s3, source, "commit"):
        found = checkpoints(left.store, RUN)
        assert [record.step for record in found] == [100, 200][: len(found)]
        steps.append(restored_step(left, source))
        assert steps[-1] == found[-1].step
        assert list(points(left.store, RUN)) == [f"point {record.step}\n".encode() for record in found]
        requests.append(left.request)
        state = left.state(s3)
        if state not in states.values():
            nothing_left_over(left, source, monkeypatch, s3)
        states[left.at, left.moment] = state
    assert len(states) > 40
    assert steps == sorted(steps), "once committed, always committed"
    assert (steps[0], steps[-1]) == (100, 200)
    assert requests.count("PUT uploadId") == 2 * 3, "two parts, three moments"
    for at, moment in states:
        if moment == "middle":
            assert states[at, "middle"] == states[at, "before"], "half a request was carried out"
    assert len(set(states.values())) == 8  # as before; 3 files; an upload; its file; points; the record


def test_killed_at_every_request_of_a_claim(
    s3: S3Server, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = set()
    for left in killed_everywhere(s3, source, "claim"):
        assert restored_step(left, source) == 100
        kinds.add(tuple((record.kind, record.attempt) for record in RunLog(left.store, RUN).records()))
        nothing_left_over(left, source, monkeypatch, s3)
    before = (("fence", 1), ("checkpoint", 1))
    assert kinds == {before, (*before, ("fence", 2))}


def test_killed_at_every_request_of_retention(
    s3: S3Server, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(source / "200")
    shutil.copytree(source / "100", source / "200")
    states = set()
    for left in killed_everywhere(s3, source, "retain"):
        assert restored_step(left, source) == 200
        for record in checkpoints(left.store, RUN):
            assert record.retired or verify(left.store, record) == []
        assert list(points(left.store, RUN)) == [b"point 100\n", b"point 200\n"]
        assert len(log_keys(left.store)) in (5, 6)
        state = left.state(s3)
        if state not in states:
            nothing_left_over(left, source, monkeypatch, s3)
        states.add(state)
    assert len(states) > 5
