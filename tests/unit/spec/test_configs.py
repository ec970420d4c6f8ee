"""The configurations that users copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.contract import EXIT_SAVED
from orchestrator.domain.rungs import pool_at, rungs
from orchestrator.spec import LoadedSweep, load_any, load_spec, load_sweep
from orchestrator.spec.schema import json_schema, sweep_json_schema, trainer_json_schema
from tests.support import wait_until
from trainer.config import TrainerConfig

CONFIGS = Path(__file__).parents[3] / "configs"
SWEEPS = [CONFIGS / "asha.yaml", CONFIGS / "sweep.yaml"]
SPECS = sorted(set(CONFIGS.glob("*.yaml")) - set(SWEEPS))
TRAINER = sorted((CONFIGS / "trainer").glob("*.yaml"))


def test_there_are_configurations() -> None:
    assert {"demo", "laptop", "gpu", "handover", "any-script", "overnight"} <= {path.stem for path in SPECS}
    assert {"laptop", "gpu"} <= {path.stem for path in TRAINER}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs_load_and_fit_the_schema(path: Path) -> None:
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=spec.schema.json"
    assert load_spec(path).spec.name == path.stem
    jsonschema.Draft7Validator(json_schema()).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_load_and_fit_the_schema(path: Path) -> None:
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=sweep.schema.json"
    loaded = load_any(path)
    assert isinstance(loaded, LoadedSweep)
    assert loaded.spec.name == path.stem
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(sweep_json_schema()).validate(content)


def test_the_sweeps_do_what_their_comments_say() -> None:
    tpe, asha = (load_sweep(CONFIGS / f"{name}.yaml").spec for name in ("sweep", "asha"))
    assert (tpe.sampler.startup_trials, tpe.budget.trials) == (6, 12)
    assert {variant.pool for variant in tpe.base.placement} == {"laptop"}
    assert asha.max_steps == 2700
    at = rungs(asha.pruner, 2700)
    assert at == (100, 300, 900, 2700)
    assert [pool_at(asha.pruner, rung) for rung in range(4)] == ["laptop", "laptop", "gpu", "gpu"]
    assert asha.base.trainer is not None
    assert all(step % asha.base.trainer.eval_interval == 0 for step in at)
    new = [step - before for step, before in zip(at, (0, *at), strict=False)]
    work = sum(27 // 3**rung * steps for rung, steps in enumerate(new))
    assert work / (27 * 2700) == pytest.approx(1 / 8, rel=0.2)


@pytest.mark.parametrize("path", TRAINER, ids=lambda path: path.stem)
def test_trainer_configurations_load_and_say_the_same_as_the_spec_of_that_name(path: Path) -> None:
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=../trainer.schema.json"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(trainer_json_schema()).validate(content)
    spec = load_spec(CONFIGS / path.name).spec
    content["checkpoint_interval"] -= spec.checkpoint.every_steps or 0
    assert TrainerConfig.model_validate(content) == spec.trainer


def test_the_demo_needs_no_gpu_and_has_a_checkpoint_half_way() -> None:
    spec = load_spec(CONFIGS / "demo.yaml").spec
    assert spec.trainer is not None
    assert spec.checkpoint.every_steps is not None
    assert [(variant.pool, variant.cpus, variant.gpus) for variant in spec.placement] == [
        ("laptop", 1, 0),
        ("gpu", 1, 0),
    ]
    assert spec.trainer.max_steps % (2 * spec.checkpoint.every_steps) == 0
    assert spec.trainer.max_steps % (2 * spec.trainer.eval_interval) == 0


def test_the_script_of_the_any_script_configuration_keeps_the_contract(tmp_path: Path) -> None:
    """Stopped by SIGTERM it saves and says so; resumed it goes on from there; no step is measured twice."""
    command = load_spec(CONFIGS / "any-script.yaml", ["command.env.STEPS=8"]).spec.command
    assert command is not None
    argv = [part.replace("{python}", sys.executable) for part in command.argv]
    metrics = tmp_path / "metrics.jsonl"
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    env = {
        **os.environ,
        **command.env,
        "ORCH_CHECKPOINT_DIR": str(checkpoints),
        "ORCH_METRICS_FILE": str(metrics),
    }
    first = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 2, 20)
        first.terminate()
        assert first.wait(20) == EXIT_SAVED
    finally:
        first.kill()
        first.communicate()
    (saved,) = checkpoints.iterdir()
    done = subprocess.run(argv, env={**env, "ORCH_RESTORE_DIR": str(saved)}, timeout=30, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert f"starting at step {int(saved.name[5:])} of 8" in done.stdout.decode()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert {path.name for path in checkpoints.iterdir()} == {saved.name, "step-00000008"}


def test_specs_are_read_without_heavy_imports() -> None:
    code = (
        "import sys, time; began = time.process_time(); "
        "from orchestrator.spec import load_spec, spec_hash; import orchestrator.spec.schema; "
        "print(time.process_time() - began); "
        "heavy = {'torch', 'ray', 'mlflow', 'boto3', 'numpy', 'fastapi'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    results = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
        for _ in range(3)
    ]
    lines = [result.stdout.decode().splitlines() for result in results]
    assert all(heavy == "[]" for _, heavy in lines)
    assert min(float(seconds) for seconds, _ in lines) < 0.5, "measured 0.2 s on an idle machine"


def test_loading_a_spec_is_quick() -> None:
    load_spec(CONFIGS / "handover.yaml")
    began = time.process_time()
    load_spec(CONFIGS / "handover.yaml")
    assert time.process_time() - began < 0.1


def test_checking_all_trials_of_a_sweep_takes_no_time_to_speak_of() -> None:
    began = time.process_time()
    load_sweep(CONFIGS / "asha.yaml")
    assert time.process_time() - began < 2
