from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.job import AgentJob, RestoreFrom
from orchestrator.agent.opening import Opening, Telling, store_uri
from orchestrator.contract import MARK_FILE
from orchestrator.domain.states import Phase
from orchestrator.errors import DamagedError, FencedError, SpecError, StoreUnavailableError
from orchestrator.messages import Transfer
from orchestrator.spec.models import RunSpec, Variant
from orchestrator.store.checkpoints import CheckpointWriter
from orchestrator.store.objects import open_store, store_id
from orchestrator.store.runlog import RunLog


class Setting:
    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.store = open_store(tmp_path / "store")
        store_id(self.store, create=True)
        self.phases: list[Phase] = []
        self.timings: list[str] = []
        self.events: list[str] = []
        self.transfers: list[Transfer | None] = []

    def commit(self, run: str, attempt: int, *steps: int) -> None:
        writer = CheckpointWriter(self.store, RunLog(self.store, run).claim(attempt, node="n"))
        for step in steps:
            folder = self.root / f"made-{run}-{attempt}-{step}"
            folder.mkdir()
            (folder / MARK_FILE).write_text(json.dumps({"run": run, "step": step}))
            writer.commit(folder, step, metrics={}, device="cpu", node="n")

    def open(self, attempt: int = 1, **fields: Any) -> Opening:
        spec = RunSpec.model_validate({"name": "t", "command": {"argv": ["true"]}})
        job = AgentJob(
            run_id="r",
            attempt=attempt,
            spec=spec,
            variant=Variant(pool="local"),
            node="n",
            controller_url="http://127.0.0.1:1",
            store_uri=f"file://{self.root}/store",
            **fields,
        )
        telling = Telling(
            self.phases.append,
            lambda name, _: self.timings.append(name),
            self.events.append,
            self.transfers.append,
        )
        opening = Opening(job, self.root, self.root / "into", telling, lambda: None, patience_s=0.6)
        opening._run()
        assert opening.done
        return opening

    def restored(self) -> dict[str, Any]:
        return dict(json.loads((self.root / "into" / MARK_FILE).read_text()))


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_a_new_run_begins_at_the_beginning(setting: Setting) -> None:
    opened = setting.open().opened
    assert opened is not None
    assert (opened.directory, opened.first_step) == (None, 0)
    assert setting.phases == [Phase.CLAIMING, Phase.RESTORING]
    assert setting.timings == ["claim", "restore"]


def test_a_run_goes_on_from_its_newest_checkpoint(setting: Setting) -> None:
    setting.commit("r", 1, 5, 10)
    opened = setting.open(attempt=2, restore_from=RestoreFrom(run_id="other")).opened
    assert opened is not None
    assert opened.first_step == 10
    assert setting.restored() == {"run": "r", "step": 10}
    assert any("goes on from step 10" in event for event in setting.events)


def test_a_damaged_checkpoint_is_skipped_and_said(setting: Setting) -> None:
    setting.commit("r", 1, 5, 10)
    (file,) = setting.root.glob(f"store/runs/r/data/1/10-*/{MARK_FILE}")
    file.write_bytes(b"x" * file.stat().st_size)
    opened = setting.open(attempt=2).opened
    assert opened is not None
    assert opened.first_step == 5
    assert any("step 10 is damaged and was skipped" in event for event in setting.events)


def test_only_damaged_checkpoints_are_not_a_new_beginning(setting: Setting) -> None:
    setting.commit("r", 1, 5)
    for file in setting.root.glob("store/runs/r/data/*/*/*"):
        file.unlink()
    assert isinstance(setting.open(attempt=2).error, DamagedError)


def test_a_first_attempt_begins_from_another_run(setting: Setting) -> None:
    setting.commit("other", 3, 5, 10)
    opened = setting.open(restore_from=RestoreFrom(run_id="other", step=5)).opened
    assert opened is not None
    assert opened.first_step == 5
    assert opened.restored is not None
    assert opened.restored.record.run == "other"
    assert setting.restored() == {"run": "other", "step": 5}


def test_a_first_attempt_begins_from_a_directory(setting: Setting) -> None:
    folder = setting.root / "mine"
    folder.mkdir()
    (folder / MARK_FILE).write_text('{"step": 3}')
    opened = setting.open(restore_from=RestoreFrom(path=str(folder))).opened
    assert opened is not None
    assert (opened.restored, opened.first_step) == (None, 3)
    assert setting.restored() == {"step": 3}


@pytest.mark.parametrize("source", [RestoreFrom(run_id="nobody"), RestoreFrom(path="/no/such/folder")])
def test_a_beginning_that_does_not_exist_is_the_users_mistake(setting: Setting, source: RestoreFrom) -> None:
    error = setting.open(restore_from=source).error
    assert isinstance(error, SpecError)
    assert "resume_from" in error.message


def test_an_attempt_that_is_too_late_is_fenced(setting: Setting) -> None:
    setting.commit("r", 2)
    assert isinstance(setting.open(attempt=1).error, FencedError)


@pytest.mark.parametrize("empty", [False, True])
def test_a_store_that_is_not_mounted_is_never_written_to(setting: Setting, empty: bool) -> None:
    store = setting.root / "store"
    store.rename(setting.root / "elsewhere")
    if empty:
        store.mkdir()
    assert isinstance(setting.open().error, StoreUnavailableError)
    assert not empty or not list(store.iterdir())
    assert empty or not store.exists()
    assert any("waits for the store" in event for event in setting.events)


def test_the_nodes_own_settings_name_its_mount_point(setting: Setting) -> None:
    (setting.root / "node.json").write_text(json.dumps({"store_uri": f"file://{setting.root}/elsewhere"}))
    (setting.root / "store").rename(setting.root / "elsewhere")
    assert setting.open().opened is not None


def test_node_settings_without_a_store_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text('{"pool": "laptop"}')
    job = AgentJob.model_construct(store_uri="file:///s")
    assert store_uri(job, tmp_path) == "file:///s"
