"""The outbox: order, one task per key, files that wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import NotFoundError
from orchestrator.store.outbox import (
    TASK,
    AnyTask,
    CreateRun,
    LogArtifact,
    LogCheckpoint,
    LogDataset,
    SetDescription,
    SetParams,
    SetStatus,
    SetTags,
)
from orchestrator.store.spool import Spool
from tests.unit.tracking.helpers import point

CREATE = CreateRun(name="n", experiment="e", start_ms=1)
ALL: list[AnyTask] = [
    CREATE,
    SetTags(tags={"b": "1", "a": "2"}),
    SetParams(params={"lr": "1"}),
    SetDescription(text="# hi"),
    LogCheckpoint(step=1, attempt=1, uri="u", sha256="s", size=1, time_ms=1, metrics={"l": 1.0}),
    LogArtifact(artifact_path="a/b.txt", file="/x"),
    LogDataset(name="d", digest="g", profile={"tokens": 3}),
    SetStatus(status="FINISHED", time_ms=1),
]


def kinds(spool: Spool, run_id: str = "r") -> list[str]:
    return [stored.task.kind for stored in spool.tasks(run_id)]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.kind)
def test_every_kind_survives_storage(spool: Spool, task: AnyTask) -> None:
    assert TASK.validate_json(task.model_dump_json()) == task
    assert spool.enqueue("r", task) == 1
    assert [stored.task for stored in spool.tasks("r")] == [task]


def test_keys_of_kinds_differ() -> None:
    assert len({task.dedupe_key() for task in ALL}) == len(ALL)


def test_order_is_kept(spool: Spool) -> None:
    spool.enqueue("other", CREATE)
    assert spool.enqueue("r", *ALL) == len(ALL)
    assert kinds(spool) == [task.kind for task in ALL]
    assert [stored.task.kind for stored in spool.tasks("r", limit=2)] == ["create", "tags"]


def test_the_first_creation_stays(spool: Spool) -> None:
    spool.enqueue("r", CREATE)
    assert spool.enqueue("r", CREATE.model_copy(update={"name": "other"})) == 0
    assert spool.tasks("r")[0].task == CREATE


def test_the_newest_status_wins_and_goes_to_the_end(spool: Spool) -> None:
    spool.enqueue("r", CREATE, SetStatus(status="RUNNING", time_ms=1), SetDescription(text="x"))
    assert spool.enqueue("r", SetStatus(status="FAILED", time_ms=2)) == 1
    assert kinds(spool) == ["create", "description", "status"]


def test_repeating_what_is_known_changes_nothing(spool: Spool) -> None:
    spool.enqueue("r", *ALL)
    for stored in spool.tasks("r"):
        spool.mark_done(stored)
    assert spool.enqueue("r", *ALL) == 0
    assert spool.waiting() == []


def test_a_new_version_during_sending_is_sent_too(spool: Spool) -> None:
    spool.enqueue("r", SetDescription(text="old"))
    sending = spool.tasks("r")[0]
    spool.enqueue("r", SetDescription(text="new"))
    spool.mark_done(sending)
    assert [stored.task for stored in spool.tasks("r")] == [SetDescription(text="new")]
    spool.mark_failed(sending, "no")
    assert spool.failures() == []


def test_tags_are_merged_so_that_none_overtakes_another(spool: Spool) -> None:
    spool.enqueue("r", SetTags(tags={"a": "1", "state": "queued"}))
    spool.enqueue("r", SetDescription(text="x"), SetTags(tags={"b": "2", "state": "running"}))
    merged = SetTags(tags={"a": "1", "b": "2", "state": "running"})
    assert [stored.task for stored in spool.tasks("r")] == [SetDescription(text="x"), merged]
    for stored in spool.tasks("r"):
        spool.mark_done(stored)
    assert spool.enqueue("r", SetTags(tags={"b": "2"})) == 0
    assert spool.enqueue("r", SetTags(tags={"b": "3"})) == 1


def test_failures_are_kept_with_their_message(spool: Spool) -> None:
    spool.enqueue("r", SetTags(tags={"a": "b"}), SetDescription(text="x"))
    first = spool.tasks("r")[0]
    spool.mark_tried(first, "later")
    assert spool.tasks("r")[0].tries == 1
    spool.mark_failed(first, "never")
    assert kinds(spool) == ["description"]
    (failure,) = spool.failures("r")
    assert (failure.run_id, failure.task, failure.error) == ("r", SetTags(tags={"a": "b"}), "never")
    assert spool.failures("other") == []
    assert spool.backlog().failed_tasks == 1
    assert spool.enqueue("r", SetTags(tags={"a": "b"})) == 1, "asking again tries again"
    assert spool.failures() == []


def test_bytes_wait_in_a_file_until_they_are_sent(spool: Spool, tmp_path: Path) -> None:
    folder = tmp_path / "points.db.files"
    spool.enqueue("r", files={"a/b.txt": b"one"})
    spool.enqueue("r", files={"a/b.txt": b"one"})
    (stored,) = spool.tasks("r")
    assert isinstance(stored.task, LogArtifact)
    assert Path(stored.task.file).read_bytes() == b"one"
    spool.enqueue("r", files={"a/b.txt": b"two"})
    (second,) = spool.tasks("r")
    assert isinstance(second.task, LogArtifact)
    assert [file.read_bytes() for file in folder.iterdir()] == [b"two"], "the replaced bytes are gone"
    spool.mark_done(second)
    assert list(folder.iterdir()) == []
    spool.enqueue("r", files={"a/b.txt": b"two"})
    assert spool.tasks("r") == [], "the same bytes are not sent twice"
    assert list(folder.iterdir()) == []


def test_bytes_that_come_back_while_the_old_version_is_marked(spool: Spool) -> None:
    spool.enqueue("r", files={"a.txt": b"one"})
    sending = spool.tasks("r")[0]
    spool.enqueue("r", files={"a.txt": b"two"})
    spool.enqueue("r", files={"a.txt": b"one"})
    spool.mark_done(sending)
    (stored,) = spool.tasks("r")
    assert isinstance(stored.task, LogArtifact)
    assert Path(stored.task.file).read_bytes() == b"one"


def test_files_of_others_are_left_alone(spool: Spool, tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("hello")
    spool.enqueue("r", LogArtifact(artifact_path="log.txt", file=str(file)))
    spool.mark_done(spool.tasks("r")[0])
    assert file.exists()


def test_left_over_files_are_removed_at_the_next_start(tmp_path: Path) -> None:
    first = Spool(tmp_path / "p.db")
    first.enqueue("r", files={"a.txt": b"wanted"})
    (tmp_path / "p.db.files" / "stray").write_text("x")
    first.close()
    second = Spool(tmp_path / "p.db")
    assert [file.read_bytes() for file in (tmp_path / "p.db.files").iterdir()] == [b"wanted"]
    second.close()


def test_the_mlflow_run_is_remembered(spool: Spool) -> None:
    assert spool.mlflow_run_id("r") is None
    spool.set_mlflow_run("r", "7", "abc")
    assert spool.mlflow_run("r") == ("7", "abc")
    assert spool.mlflow_run_id("r") == "abc"


def test_forgetting_mlflow_tells_everything_again(spool: Spool) -> None:
    spool.enqueue("r", CREATE, SetTags(tags={"a": "b"}), SetStatus(status="FINISHED", time_ms=1))
    spool.enqueue("r", files={"gone.txt": b"x"})
    spool.add_points("r", 1, [point("a", 1)])
    spool.set_mlflow_run("r", "7", "abc")
    spool.mark_shipped("r", spool.unshipped("r", 1)[0].seq)
    for stored in spool.tasks("r"):
        spool.mark_done(stored)
    assert spool.waiting() == []
    spool.forget_mlflow("r")
    assert kinds(spool) == ["create", "tags", "status"]
    assert len(spool.unshipped("r", 9)) == 1
    assert spool.mlflow_run("r") is None
    with pytest.raises(NotFoundError):
        spool.forget_mlflow("unknown")


def test_parked_runs_wait_apart(spool: Spool) -> None:
    spool.enqueue("r", CREATE)
    spool.add_points("r", 1, [point("a", 1)])
    spool.park("r", "deleted")
    assert spool.waiting() == []
    backlog = spool.backlog()
    assert (backlog.points, backlog.tasks, backlog.oldest_ms, backlog.parked_runs) == (0, 0, None, 1)
    assert spool.parked() == {"r": "deleted"}
    spool.unpark()
    assert spool.waiting() == ["r"]
    assert spool.parked() == {}
