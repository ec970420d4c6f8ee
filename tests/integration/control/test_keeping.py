"""Tags, lineage and garbage, by the client against the real API and a real store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from orchestrator.api.app import create_app
from orchestrator.client import Client
from orchestrator.clock import SystemClock
from orchestrator.control.controller import Controller
from orchestrator.domain.states import RunState
from orchestrator.errors import ConflictError, NotFoundError
from orchestrator.messages import SubmitRequest
from orchestrator.spec import CheckpointPolicy
from orchestrator.store.checkpoints import CheckpointWriter, verify
from orchestrator.store.compiled import StepNote, publish
from orchestrator.store.importing import import_directory
from orchestrator.store.objects import ObjectStore
from orchestrator.store.records import log_key
from orchestrator.store.runlog import RunLog
from tests.integration.control.conftest import TOKEN, PaperGateway
from tests.unit.cli.fake import spec
from tests.unit.store.helpers import commit, writer


@pytest.fixture
def client(controller: Controller, gateway: PaperGateway) -> Iterator[Client]:
    """Of a cluster without machines: runs wait, and end when they are cancelled."""
    gateway.fleet = []
    app = create_app(controller, TOKEN, "cluster-1")
    with TestClient(app) as api, Client("http://testserver", TOKEN, transport=api._transport) as client:
        yield client


@pytest.fixture
def store(controller: Controller) -> ObjectStore:
    return controller.store


def submit(client: Client, key: str = "k", **values: Any) -> str:
    changed = spec().model_copy(update={"checkpoint": CheckpointPolicy(grace=0.001), **values})
    request = SubmitRequest(spec=changed, key=key, source="", user="ada")
    return client.submit(request).run_id


def saved(
    store: ObjectStore, run: str, tmp_path: Path, steps: tuple[int, ...] = (10, 20)
) -> CheckpointWriter:
    to = writer(store, 1, run)
    for step in (10, 20):
        commit(to, tmp_path / run, step)
    return to


def begins_at(controller: Controller, run: str) -> tuple[str | None, int | None]:
    with controller.ledger.read() as ledger:
        record = ledger.run(run)
    return record.restore_run, record.restore_step


def steps(client: Client, run: str) -> list[tuple[int, bool, list[str]]]:
    return [(view.step, view.kept, view.tags) for view in client.checkpoints(run)]


class TestTags:
    """Names for checkpoints."""

    def test_a_name_keeps_and_can_be_begun_from(
        self, client: Client, controller: Controller, store: ObjectStore, tmp_path: Path
    ) -> None:
        run = submit(client)
        to = saved(store, run, tmp_path)
        assert client.tag(run, 10, "paper").tags == ["paper"]
        to.retain(1, 0, "x", "min")
        assert steps(client, run) == [(10, True, ["paper"]), (20, True, [])]
        assert begins_at(controller, submit(client, "fork", resume_from=f"{run}@paper")) == (run, 10)
        assert client.untag(run, "paper").tags == []
        assert to.retain(1, 0, "x", "min") == [10]

    def test_what_cannot_be_tagged(self, client: Client, store: ObjectStore, tmp_path: Path) -> None:
        run = submit(client)
        with pytest.raises(NotFoundError, match="no checkpoints"):
            client.tag(run, 10, "paper")
        saved(store, run, tmp_path)
        with pytest.raises(NotFoundError, match="no checkpoint of step 15") as caught:
            client.tag(run, 15, "paper")
        assert caught.value.remedy == "it has: 10, 20"
        for name in ("15", "a b", "-x", "x" * 65, "é"):
            with pytest.raises(ConflictError, match="cannot be a tag"):
                client.tag(run, 10, name)
        with pytest.raises(NotFoundError, match="has the tag 'paper'"):
            client.untag(run, "paper")
        with pytest.raises(NotFoundError, match="no checkpoint with the tag 'paper'"):
            submit(client, "fork", resume_from=f"{run}@paper")


class TestGarbage:
    """What `orch gc` and the controller itself delete."""

    def uncommitted(self, store: ObjectStore, run: str, attempt: int) -> None:
        store.put(f"runs/{run}/data/{attempt}/30-half/model", b"half")

    def test_only_what_nobody_needs(self, client: Client, store: ObjectStore, tmp_path: Path) -> None:
        run = submit(client)
        to = saved(store, run, tmp_path)
        to.retain(1, 0, "x", "min", grace_s=1000.0)
        self.uncommitted(store, run, 1)
        (would,) = client.collect_garbage(dry_run=True)
        assert (would.run, would.name, would.objects) == (run, "demo", 4)
        assert would.size > 5000
        before = list(store.list(""))
        assert client.collect_garbage(dry_run=True) == [would]
        assert list(store.list("")) == before
        assert client.collect_garbage(dry_run=False) == [would]
        assert client.collect_garbage(dry_run=False) == []
        kept = RunLog(store, run).history().live
        assert [verify(store, record) for record in kept] == [[]]
        assert any("30-half" in info.key for info in store.list("")), "its attempt may commit it yet"

    def test_compiled_steps_of_long_ago(self, client: Client, store: ObjectStore) -> None:
        for key, days in (("a" * 32, 89), ("b" * 32, 91)):
            at = datetime.now(UTC) - timedelta(days=days)
            note = StepNote(sha256=hashlib.sha256(b"step").hexdigest(), size=4, at=at)
            assert publish(store, key, note, b"step")
        (would,) = client.collect_garbage(dry_run=True)
        assert (would.run, would.name, would.objects) == ("", "compiled steps", 2)
        assert client.collect_garbage(dry_run=False) == [would]
        assert {info.key[:11] for info in store.list("compiled/")} == {"compiled/aa"}

    def test_an_ended_run_leaves_nothing_uncommitted(
        self, client: Client, controller: Controller, store: ObjectStore, tmp_path: Path
    ) -> None:
        run = submit(client)
        saved(store, run, tmp_path)
        self.uncommitted(store, run, 1)
        assert client.collect_garbage(dry_run=True) == []
        assert client.cancel(run).state == RunState.CANCELLED
        controller.keeping._collect_ended()
        assert not any("30-half" in info.key for info in store.list(""))
        assert steps(client, run) == [(10, True, []), (20, True, [])]

    def test_an_ended_run_is_not_looked_at_for_ever(
        self, client: Client, controller: Controller, store: ObjectStore, tmp_path: Path
    ) -> None:
        run = submit(client)
        saved(store, run, tmp_path)
        assert client.cancel(run).state == RunState.CANCELLED
        controller.keeping._clock = Later()  # type: ignore[assignment]
        controller.keeping._collect_ended()
        self.uncommitted(store, run, 1)
        controller.keeping._collect_ended()
        assert any("30-half" in info.key for info in store.list(""))

    def test_a_log_that_cannot_be_read_stops_nothing_else(
        self, client: Client, store: ObjectStore, tmp_path: Path
    ) -> None:
        runs = [submit(client, key) for key in "ab"]
        for run in runs:
            saved(store, run, tmp_path).retain(1, 0, "x", "min", grace_s=1000.0)
        newer = b"".join(store.get(log_key(runs[0], 2))).replace(b'"version":2', b'"version":9')
        body = newer[: newer.rindex(b',"sha256"')] + b"}"
        digest = hashlib.sha256(body).hexdigest().encode()
        store.put(log_key(runs[0], 2), body[:-1] + b',"sha256":"' + digest + b'"}\n')
        found = {view.run: view for view in client.collect_garbage(dry_run=False)}
        assert "format version 9" in found[runs[0]].problem
        assert found[runs[1]].objects == 4

    def test_unfinished_writes_of_yesterday(self, client: Client, tmp_path: Path) -> None:
        left = tmp_path / "store" / ".tmp" / "left"
        left.write_bytes(bytes(100))
        assert client.collect_garbage(dry_run=False) == []
        long_ago = left.stat().st_mtime - timedelta(days=2).total_seconds()
        os.utime(left, (long_ago, long_ago))
        (view,) = client.collect_garbage(dry_run=False)
        assert (view.run, view.objects, view.size) == ("", 1, 100)
        assert not left.exists()


class Later(SystemClock):
    """An hour ahead."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=1)


def test_a_run_begins_from_an_import(
    client: Client, controller: Controller, store: ObjectStore, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"wte.weight": torch.zeros(3, 2)}, folder / "model.safetensors")
    with pytest.raises(NotFoundError, match="import gpt has no checkpoint yet"):
        submit(client, resume_from="import:gpt")
    import_directory(store, folder, "gpt", None)
    assert begins_at(controller, submit(client, resume_from="import:gpt")) == ("import.gpt", 0)
    assert client.collect_garbage(dry_run=False) == []
    assert verify(store, RunLog(store, "import.gpt").history().live[0]) == []
