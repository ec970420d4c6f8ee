"""The main job with its checkpoints on a real S3 server: a run moves between nodes that share nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.s3 import SECRET_KEY, S3Server, s3_server
from tests.stack import Stack, running_stack, tiny_gpt

BUCKET, STEPS = "lab", 300


@dataclass
class Moved:
    """A run that began on the laptop and ended on the GPU box, and where its checkpoints are."""

    stack: Stack
    server: S3Server
    run: dict[str, Any]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Iterator[Moved]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        server.client().create_bucket(Bucket=BUCKET)
        home = tmp_path_factory.mktemp("orch") / "home"
        up = ("--mlflow", "none", "--store", server.uri(BUCKET, "checkpoints"))
        with running_stack(home, "laptop:cpus=1", "gpu:cpus=1", up=up) as stack:
            run_id = stack.submit(tiny_gpt("moved", text, STEPS))
            stack.wait_step(run_id, 100)
            stack.orch("move", run_id, "--to", "gpu")
            yield Moved(stack, server, stack.wait_state(run_id, "succeeded", timeout=180))
        assert stack.leftovers() == []


def test_it_went_on_where_it_was(moved: Moved) -> None:
    first, second = moved.run["attempts"]
    assert (first["node"], first["reason"]) == ("laptop", "moved")
    assert (second["node"], second["reason"]) == ("gpu", "completed")
    assert second["first_step"] == first["last_step"] >= 100
    assert second["last_step"] == STEPS


def test_its_checkpoints_are_in_the_bucket_and_nowhere_else(moved: Moved) -> None:
    answer = moved.server.client().list_objects_v2(Bucket=BUCKET, Prefix=f"checkpoints/runs/{run_id(moved)}/")
    keys = [entry["Key"] for entry in answer["Contents"]]
    assert any(key.endswith("model.safetensors") for key in keys), keys
    assert not (moved.stack.home / "store").exists()


def test_commands_that_read_checkpoints(moved: Moved) -> None:
    listed = moved.stack.json("checkpoints", run_id(moved))
    assert STEPS in [entry["step"] for entry in listed]
    assert len(moved.stack.orch("sample", run_id(moved), "--tokens", "30")) > 30
    assert "keeps its promises" in moved.stack.orch("doctor", code=None)


def test_a_checkpoint_is_taken_elsewhere(moved: Moved, tmp_path: Path) -> None:
    moved.stack.orch("checkpoints", "export", run_id(moved), str(tmp_path / "plain"))
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"model.safetensors", "optimizer.safetensors", "state.json"} <= names
    moved.stack.orch("checkpoints", "export", f"{run_id(moved)}@{STEPS}", str(tmp_path / "gpt"), "--nanogpt")
    assert {path.name for path in (tmp_path / "gpt").iterdir()} == {"ckpt.pt", "meta.pkl"}
    said = moved.stack.orch("checkpoints", "export", run_id(moved), str(tmp_path / "plain"), code=4)
    assert "exists already" in said


def test_its_lineage_and_its_tags(moved: Moved) -> None:
    listed = moved.stack.json("checkpoints", run_id(moved))
    begun = next(entry for entry in listed if entry["attempt"] == 2)
    handed_over = next(entry["step"] for entry in reversed(listed) if entry["attempt"] == 1)
    assert begun["parent"] == {"run": run_id(moved), "step": handed_over}
    assert set(begun["versions"]) == {"orch", "python", "torch"}
    assert f"from step {handed_over}" in moved.stack.orch("checkpoints", run_id(moved))
    moved.stack.orch("checkpoints", "tag", f"{run_id(moved)}@{STEPS}", "final")
    verified = moved.stack.json("checkpoints", "verify", f"{run_id(moved)}@final")
    assert verified == {"checkpoints": [{"step": STEPS, "attempt": 2, "problems": []}]}
    moved.stack.orch("checkpoints", "untag", run_id(moved), "final")
    assert "'final'" in moved.stack.orch("checkpoints", "verify", f"{run_id(moved)}@final", code=3)


def test_garbage_is_found_and_removed(moved: Moved) -> None:
    client = moved.server.client()
    left = f"checkpoints/runs/{run_id(moved)}/data/1/7-left/model.safetensors"
    client.put_object(Bucket=BUCKET, Key=left, Body=bytes(1000))
    (would,) = moved.stack.json("gc", "--dry-run")
    assert (would["run"], would["objects"], would["size"]) == (run_id(moved), 1, 1000)
    assert moved.stack.json("gc") == [would]
    assert moved.stack.json("gc") == []
    assert left not in [e["Key"] for e in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
    assert "intact" in moved.stack.orch("checkpoints", "verify", run_id(moved))


def test_a_run_begins_from_weights_that_were_brought_in(moved: Moved, text: Path, tmp_path: Path) -> None:
    moved.stack.orch("checkpoints", "export", run_id(moved), str(tmp_path / "plain"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "plain/model.safetensors").rename(tmp_path / "weights/model.safetensors")
    moved.stack.orch("checkpoints", "import", str(tmp_path / "weights"), "--name", "base")
    said = moved.stack.orch("checkpoints", "import", str(tmp_path / "weights"), "--name", "base", code=4)
    assert "imported as base already" in said
    run = moved.stack.submit({**tiny_gpt("fork", text, 20), "resume_from": "import:base"})
    moved.stack.wait_state(run, "succeeded", timeout=120)
    assert "begins from the weights in" in moved.stack.orch("logs", run)
    assert moved.stack.json("checkpoints", run)[0]["parent"] == {"run": "import.base", "step": 0}


def test_damage_is_found_and_the_one_before_is_used(moved: Moved, tmp_path: Path) -> None:
    assert "intact" in moved.stack.orch("checkpoints", "verify", run_id(moved))
    client = moved.server.client()
    answer = client.list_objects_v2(Bucket=BUCKET, Prefix=f"checkpoints/runs/{run_id(moved)}/data/")
    newest = f"/{STEPS}-"
    key = next(e["Key"] for e in answer["Contents"] if newest in e["Key"] and "model.s" in e["Key"])
    data = bytearray(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(Bucket=BUCKET, Key=key, Body=bytes(data))
    said = moved.stack.orch("checkpoints", "verify", run_id(moved), "--json", code=8)
    bad = [one["step"] for one in json.loads(said)["checkpoints"] if one["problems"]]
    assert bad == [STEPS]
    done = moved.stack.orch("checkpoints", "export", run_id(moved), str(tmp_path / "before"))
    assert f"step {STEPS} is in" not in done
    assert (tmp_path / "before/state.json").is_file()


def test_the_key_is_in_no_file(moved: Moved) -> None:
    files = [path for path in moved.stack.home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 20
    assert [str(path) for path in files if SECRET_KEY.encode() in path.read_bytes()] == []


def run_id(moved: Moved) -> str:
    return str(moved.run["run"]["id"])
