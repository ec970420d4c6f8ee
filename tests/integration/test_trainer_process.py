"""``python -m trainer`` as an orchestrator sees it: environment, signals, exit codes, last words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import EXIT_SAVED, EXIT_USER_ERROR
from tests.support import end_group, wait_until
from tests.unit.trainer.support import (
    TINY,
    assert_same_bits,
    clean_env,
    run_trainer,
    start,
    trainer_command,
    weights,
    write_text,
)
from trainer import checkpoint
from trainer.__main__ import main
from trainer.settings import load_config
from trainer.tracing import TRACED_STEPS, WARM_UP_STEPS

LONG: dict[str, Any] = {
    "max_steps": 150,
    "eval_interval": 40,
    "log_interval": 5,
    "checkpoint_interval": 45,
}
"""About half a second of training."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path)


@pytest.fixture
def config(tmp_path: Path, text: Path) -> Path:
    path = tmp_path / "long.json"
    path.write_text(json.dumps({**TINY, **LONG, "dataset": str(text)}))
    return path


@contextmanager
def running(arguments: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A trainer whose output goes to `log`; it is ended with the block."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            trainer_command(*arguments), stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    try:
        yield child
    finally:
        end_group(child)


def signalled_at(
    line: str, number: int, arguments: list[str], log: Path, env: dict[str, str], also: str = ""
) -> int:
    """Send a signal once the trainer has printed `line`, and `also` another; its exit code."""
    with running(arguments, log, env) as child:
        wait_until(lambda: {line, also} <= _found(log, line, also), 60, log.read_text, every=0.002)
        child.send_signal(number)
        return child.wait(60)


def _found(log: Path, *lines: str) -> set[str]:
    text = log.read_text()
    return {line for line in lines if line in text}


@pytest.mark.parametrize(
    ("number", "code", "threads"),
    [(signal.SIGTERM, EXIT_SAVED, 1), (signal.SIGKILL, -signal.SIGKILL, 2)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_an_interruption_changes_nothing(
    config: Path, tmp_path: Path, number: int, code: int, threads: int
) -> None:
    """Saved on SIGTERM, or back to the checkpoint before a SIGKILL: the same bits as without interruption."""
    env = clean_env(OMP_NUM_THREADS=str(threads))
    command = ["--config", str(config), "--out", str(tmp_path / "parts")]
    saved = "step 45: saved" if number == signal.SIGKILL else ""  # it is written beside the training
    assert signalled_at("step 60: loss", number, command, tmp_path / "log", env, saved) == code
    last_saved = max(checkpoint.published(tmp_path / "parts"))
    assert (45 if number == signal.SIGKILL else 61) <= last_saved < 150
    resumed = run_trainer([*command, "--resume", "latest"], **env)
    assert resumed.returncode == 0, resumed.stderr
    assert f"device: cpu ({threads} threads)" in resumed.stdout
    assert "relative difference 0.0e+00" in resumed.stdout

    whole, context = start(load_config(config), tmp_path / "whole", threads=threads)
    assert whole.run() == 0
    restored = checkpoint.read(tmp_path / "parts" / "step-00000150")
    assert_same_bits({**restored.model, **restored.optimizer}, weights(whole))
    assert restored.state == checkpoint.read_state(tmp_path / "whole" / "step-00000150")
    assert context.points["train/loss", 150] == restored.state.train_loss


def test_under_an_orchestrator(config: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("checkpoints", "artifacts")}
    for folder in folders.values():
        folder.mkdir()
    env = {
        "ORCH_RUN_ID": "r1",
        "ORCH_CHECKPOINT_DIR": str(folders["checkpoints"]),
        "ORCH_ARTIFACT_DIR": str(folders["artifacts"]),
        "ORCH_METRICS_FILE": str(tmp_path / "metrics.jsonl"),
        "ORCH_DEVICE": "cpu",
        "ORCH_CPUS": "1",
    }
    arguments = [
        "--config",
        str(config),
        "--set",
        "max_steps=20",
        "--set",
        "sample_tokens=10",
        "--set",
        "device=auto",
    ]
    first = run_trainer(arguments, **env)
    assert first.returncode == 0, first.stderr
    assert [path.name for path in folders["checkpoints"].iterdir()] == ["step-00000020"]
    assert sorted(path.name for path in folders["artifacts"].iterdir()) == ["dataset.json", "sample.txt"]
    assert json.loads((folders["artifacts"] / "dataset.json").read_text())["profile"]["distinct"] == 28
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {point["step"] for point in points} == {0, 5, 10, 15, 20}
    assert "device: cpu (1 threads)" in first.stdout
    env["ORCH_RESTORE_DIR"] = str(folders["checkpoints"] / "step-00000020")
    second = run_trainer([*arguments, "--resume", "/nowhere", "--set", "max_steps=25"], **env)
    assert second.returncode == 0, second.stderr
    assert "at step 20" in second.stdout
    assert (folders["checkpoints"] / "step-00000025" / "state.json").is_file()


def test_the_eager_trainer_does_not_import_the_compiler(config: Path, tmp_path: Path) -> None:
    """It takes a second, which every start of a run would pay."""
    program = (
        "import sys; from trainer.__main__ import main; "
        f"code = main(['--config', {str(config)!r}, '--set', 'max_steps=5']); "
        "found = {'torch._dynamo', 'torch._inductor', 'sympy'} & sys.modules.keys(); "
        "sys.exit(code or (str(sorted(found)) if found else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=clean_env(),
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_checking_a_configuration_needs_no_torch() -> None:
    program = (
        "import sys, trainer.config, trainer.settings, trainer.corpus, trainer.__main__; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_a_missing_text_is_the_last_word_of_a_process(tmp_path: Path) -> None:
    done = run_trainer(["--set", f"dataset={tmp_path}/none.txt", "--out", str(tmp_path / "out")])
    assert done.returncode == EXIT_USER_ERROR
    assert done.stderr.splitlines()[-1] == (
        f"trainer: cannot read the text {tmp_path}/none.txt: No such file or directory"
    )


@pytest.fixture
def _signals() -> Iterator[None]:
    """`main` takes over the signals of the process that it runs in."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--set", "n_head=3"], "n_embd (128) must be a multiple of n_head (3)"),
        (["--set", "layers=3"], "layers: Extra inputs are not permitted"),
        (["--set", "n_layer=0", "--set", "dropout=2"], "n_layer: Input should be greater than 0; dropout:"),
        (["--set", "n_layer"], "expected key=value"),
        (["--set", "batch_size=[1"], "--set batch_size=[1: while parsing"),
        (["--set", "micro_batches=5"], "batch_size (12) must be a multiple of micro_batches (5)"),
        (["--config", "missing.yaml"], "cannot read the configuration missing.yaml: No such file"),
        (["--config", "list.yaml"], "list.yaml: expected settings such as"),
        (["--resume", "latest"], "there is no checkpoint in out/default"),
        (["--resume", "nowhere"], "there is no checkpoint in nowhere"),
        (["--set", "device=cuda"], "device cuda was asked for, but PyTorch sees no usable GPU"),
        (["--out", "used"], "used holds checkpoints already"),
    ],
)
def test_user_errors(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("ORCH_RUN_ID", "ORCH_DEVICE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "used" / "step-00000003").mkdir(parents=True)
    assert main(arguments) == EXIT_USER_ERROR
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert problem in said[0]


@pytest.mark.usefixtures("_signals")
def test_a_gpu_that_was_not_granted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCH_RUN_ID", "r1")
    monkeypatch.setenv("ORCH_DEVICE", "cpu")
    assert main(["--set", "device=cuda"]) == EXIT_USER_ERROR
    assert "granted no GPU" in capsys.readouterr().err


@pytest.mark.usefixtures("_signals")
def test_a_rank_sees_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "3,5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--set", "device=cuda"]) == EXIT_USER_ERROR
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_process_that_cannot_leave_its_ranks_ends_at_once() -> None:
    """Here a thread that does not end stands for NCCL."""
    program = (
        "import sys, threading, time; import trainer.__main__ as command; from trainer import ranks\n"
        "ranks._on_gpus.add(object())\n"
        "threading.Thread(target=time.sleep, args=[600]).start()\n"
        "print('said', end='')\n"
        "command._end(76)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (76, "said"), done.stderr


@pytest.mark.usefixtures("_signals")
def test_the_trainer_section_of_a_spec_counts(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORCH_RUN_ID", raising=False)
    settings = {**TINY, "dataset": text, "max_steps": 2}
    lines = "".join(f"  {key}: {value}\n" for key, value in settings.items())
    (tmp_path / "mine.yaml").write_text(f"name: mine\ntrainer:\n{lines}")
    assert main(["--config", "mine.yaml"]) == 0
    assert checkpoint.read_state(tmp_path / "out/mine/step-00000002").config.n_embd == 16


def test_training_with_a_trace_is_training(text: Path, tmp_path: Path) -> None:
    settings = tmp_path / "tiny.json"
    steps = WARM_UP_STEPS + TRACED_STEPS
    settings.write_text(json.dumps({**TINY, "dataset": str(text), "max_steps": steps}))
    arguments = ["--config", str(settings), "--out", str(tmp_path / "out"), "--profile", str(tmp_path / "p")]
    done = run_trainer(arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / f"step-{steps:08d}").is_dir()
    assert (tmp_path / "p" / "trace.json").stat().st_size > 1000
    assert f"{TRACED_STEPS} steps in" in done.stdout
    short = run_trainer([*arguments, "--set", f"max_steps={steps - 1}", "--out", str(tmp_path / "short")])
    assert short.returncode == 0, short.stderr
    assert f"no trace: that takes {steps} steps, and there were {steps - 1}" in short.stdout
