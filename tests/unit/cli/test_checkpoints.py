"""`orch checkpoints` and `orch gc`: what they print, and what they ask the controller for."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cli.lineage import OFF, ON
from orchestrator.messages import GarbageView, ParentView
from tests.unit.cli.conftest import Orch
from tests.unit.cli.fake import FakeController, checkpoint, detail


def test_the_lineage_shows_what_was_left_behind(fake: FakeController, orch: Orch) -> None:
    fake.add(detail())
    fake.checkpoints = [
        checkpoint(100, kept=False),
        checkpoint(200, tags=["paper"]),
        checkpoint(300),
        checkpoint(250, attempt=2, parent=ParentView(run="abcd2345", step=200)),
        checkpoint(350, attempt=2),
        checkpoint(360, attempt=3),
    ]
    lines = orch("checkpoints", "demo").out.splitlines()[1:]
    assert [line[:3].strip() for line in lines] == [OFF, OFF, OFF, OFF, OFF, ON]
    assert lines[1].endswith("tag paper")
    assert lines[3].endswith("from step 200")
    assert lines[5].endswith("begun anew")
    fake.checkpoints.pop()
    lines = orch("checkpoints", "demo").out.splitlines()[1:]
    assert [line[:3].strip() for line in lines] == [ON, ON, OFF, ON, ON]


def test_the_lineage_begins_in_another_run(fake: FakeController, orch: Orch) -> None:
    fake.add(detail())
    fake.checkpoints = [checkpoint(100, parent=ParentView(run="other", step=50))]
    assert orch("checkpoints", "demo").out.splitlines()[1].endswith("from step 50 of other")


def test_tags(fake: FakeController, orch: Orch) -> None:
    fake.add(detail())
    fake.checkpoints = [checkpoint(100), checkpoint(200, tags=["old"]), checkpoint(300, kept=False)]
    assert orch("checkpoints", "tag", "demo", "paper").out == "step 200 is kept as paper\n"
    assert orch("checkpoints", "tag", "demo@100", "paper", "--json").json["tags"] == ["paper"]
    assert orch("checkpoints", "tag", "demo@old", "new").out == "step 200 is kept as new\n"
    refused = orch("checkpoints", "tag", "demo@300", "paper")
    assert (refused.code, "steps it has: 100, 200" in refused.err) == (3, True)
    assert orch("checkpoints", "untag", "demo", "paper").out.endswith("has the tag paper no more\n")
    paths = [(method, path) for method, path, _ in fake.requests if "tags" in path]
    assert paths == [
        ("PUT", "/v1/runs/abcd2345/tags/paper"),
        ("PUT", "/v1/runs/abcd2345/tags/paper"),
        ("PUT", "/v1/runs/abcd2345/tags/new"),
        ("DELETE", "/v1/runs/demo/tags/paper"),
    ]


def test_gc(fake: FakeController, orch: Orch) -> None:
    assert orch("gc").out == "nothing to delete\n"
    assert fake.garbage_wanted
    fake.garbage = [GarbageView(run="abcd2345", name="demo", objects=3, size=5_000_000)]
    fake.garbage += [GarbageView(run="", objects=1, size=5_000_000)]
    fake.garbage += [GarbageView(run="", name="compiled steps", objects=2)]
    told = orch("gc", "--dry-run").out.splitlines()
    assert not fake.garbage_wanted
    assert "unfinished uploads" in told[2]
    assert "compiled steps" in told[3]
    assert told[-1] == "6 objects, 9.5 MiB would be deleted"
    assert orch("gc").out.splitlines()[-1] == "deleted 6 objects, 9.5 MiB"
    fake.garbage = [GarbageView(run="abcd2345", problem="its log is damaged")]
    failed = orch("gc", "--json")
    assert (failed.code, failed.json[0]["problem"]) == (8, "its log is damaged")


def test_import_needs_a_folder(fake: FakeController, orch: Orch, tmp_path: Path) -> None:
    assert orch("checkpoints", "import", str(tmp_path / "nowhere")).code == 2
