"""Whole attempts on a healthy node: real agents, real programs, a file store."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from orchestrator.domain.states import Phase, Reason
from tests.integration.agent.bench import Bench
from tests.integration.agent.controller import TOKEN
from tests.integration.agent.programs import train


def test_a_program_runs_to_its_end(bench: Bench) -> None:
    bench.start(bench.script(train(steps=10, every=5)))
    outcome = bench.wait_outcome()

    assert outcome.reason is Reason.COMPLETED
    assert outcome.exit_code == 0
    assert outcome.last_step == 10
    assert bench.steps()[-1] == 10
    assert bench.controller.committed == bench.steps()
    assert [p.step for p in bench.controller.points if p.key == "train/loss"] == list(range(10))
    assert bench.controller.log == b"".join(b"step %d\n" % n for n in range(10)) + b"done\n"
    assert bench.controller.beats[-1].phase is Phase.ENDED
    assert {"agent_start", "claim", "restore", "spawn", "first_step"} <= set(
        bench.controller.beats[-1].timings
    )
    assert bench.controller.unauthorized == 0


def test_a_program_gets_the_contract_and_no_secret(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCH_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    monkeypatch.setenv("ORCH_HOME", "/secret/place")
    monkeypatch.setenv("ORCH_DATA_DIR", "/data")
    monkeypatch.setenv("ORCH_CACHE_DIR", "/cache")
    monkeypatch.setenv("ORCH_SHARE_COMPILED", "1")  # which is for the built-in trainer
    spec = bench.script("import json, os\nprint(json.dumps({**dict(os.environ), 'cwd': os.getcwd()}))")
    spec["command"]["env"] = {"MINE": "yes", "OMP_NUM_THREADS": "99"}
    bench.start(
        {**spec, "placement": [{"pool": "local", "cpus": 3}]}, mlflow_uri="http://m", mlflow_run_id="7"
    )
    bench.wait_outcome()
    env = json.loads(bench.controller.log)

    assert TOKEN not in bench.controller.log.decode()
    folder = bench.folder().root
    expected = {
        "ORCH_RUN_ID": "run-1",
        "ORCH_ATTEMPT": "1",
        "ORCH_CHECKPOINT_DIR": f"{folder}/checkpoints",
        "ORCH_METRICS_FILE": f"{folder}/metrics.jsonl",
        "ORCH_ARTIFACT_DIR": f"{folder}/artifacts",
        "ORCH_DEVICE": "cpu",
        "ORCH_CPUS": "3",
        "ORCH_DATA_DIR": "/data",
        "ORCH_CACHE_DIR": "/cache",
    }
    assert {name: value for name, value in env.items() if name.startswith("ORCH_")} == expected
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert (env["MLFLOW_TRACKING_URI"], env["MLFLOW_RUN_ID"]) == ("http://m", "7")
    assert (env["MINE"], env["PYTHONUNBUFFERED"], env["CUDA_VISIBLE_DEVICES"]) == ("yes", "1", "")
    assert env["cwd"] == f"{folder}/program"
    for file in folder.iterdir():
        assert TOKEN not in file.read_text()


def test_output_arrives_byte_for_byte(bench: Bench) -> None:
    code = "import random, sys\ndata = random.Random(5).randbytes(700_000)\n"
    code += "for n in range(0, len(data), 9973):\n    sys.stdout.buffer.write(data[n:n + 9973])\n"
    bench.start(bench.script(code))
    bench.wait_outcome()
    assert bench.controller.log == random.Random(5).randbytes(700_000)


def test_artifacts_are_with_the_controller_before_the_outcome(bench: Bench) -> None:
    code = "import os, pathlib\npathlib.Path(os.environ['ORCH_ARTIFACT_DIR'], 'a.txt').write_text('kept')\n"
    bench.start(bench.script(code))
    bench.wait_outcome()
    assert bench.controller.artifacts == {"a.txt": b"kept"}


def test_retention_follows_the_spec(bench: Bench) -> None:
    spec = {
        **bench.script(train(steps=40, every=10, pause=0.03)),
        "checkpoint": {"keep_last": 1, "keep_best": 0},
    }
    bench.start(spec)
    bench.wait_outcome()
    records = bench.records()
    assert records[-1].step == 40
    assert [record.step for record in records if not record.retired] == [40]
    assert records[-1].metrics == {"val/loss": 10.0 / 41}


def test_a_checkpoint_without_files_is_said_and_not_fatal(bench: Bench) -> None:
    code = "import os\nos.mkdir(os.environ['ORCH_CHECKPOINT_DIR'] + '/step-00000003')\n"
    bench.start(bench.script(code + "import time; time.sleep(0.5)"))
    outcome = bench.wait_outcome()
    assert outcome.reason is Reason.USER_ERROR
    assert "step 3" in outcome.message


def test_a_saved_program_that_was_not_asked_to_end_is_resumed(bench: Bench) -> None:
    bench.start(bench.script("raise SystemExit(75)"))
    assert bench.wait_outcome().reason is Reason.SHUTDOWN


def test_a_switch_that_says_neither_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_SHARE_COMPILED", "yes")
    bench.start(bench.script("raise SystemExit(1)"))
    outcome = bench.wait_outcome()
    assert "ORCH_SHARE_COMPILED is 'yes'" in outcome.message
    assert bench.controller.log == b""


def test_an_agent_imports_nothing_heavy() -> None:
    code = "import sys, orchestrator.agent.attempt\nprint([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "ray", "mlflow", "boto3", "fastapi", "httpx", "sqlalchemy", "numpy", "asyncio"]
    found = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
