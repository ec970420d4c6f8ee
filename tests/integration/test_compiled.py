"""The compiled step on a real compiler: exact, kept for later runs, and never a reason for a run to fail."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.support import assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint
from trainer import engine as engine_module
from trainer.compiling import GRADIENT, Compiler, load
from trainer.engine import SwitchingEngine
from trainer.errors import TrainerError
from trainer.library import LibraryError
from trainer.orders import Order
from trainer.train import Training

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"),
]
LONG = bool(os.environ.get("ORCH_SOAK"))
MODES: dict[int, dict[str, Any]] = {1: {"dropout": 0.0}, 2: {"dropout": 0.2}}
"""Settings by threads."""
SMALL: dict[str, Any] = {} if LONG else {"n_layer": 1}
"""Half the layers are half the work for the compiler."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of compiled steps for these tests alone."""
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("ORCH_CACHE_DIR", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


def compiled(text: Path, folder: Path, threads: int, restore: Path | None = None, **more: Any) -> Training:
    """A training whose first update is a compiled one."""
    config = tiny(text, **{"compile": True, **SMALL, **MODES[threads], **more})
    training = start(config, folder, restore, threads)[0]
    assert training.engine.compiled
    return training


def engine(training: Training) -> SwitchingEngine:
    assert isinstance(training.engine, SwitchingEngine)
    return training.engine


@pytest.mark.parametrize("threads", [1, 2] if LONG else [2])
def test_interrupted_is_uninterrupted_bit_by_bit(text: Path, tmp_path: Path, threads: int) -> None:
    whole = compiled(text, tmp_path / "whole", threads)
    assert whole.engine.deterministic
    whole.run()
    compiled(text, tmp_path / "half", threads, max_steps=7, lr_decay_steps=12).run()
    rest = compiled(text, tmp_path / "rest", threads, tmp_path / "half/step-00000007", lr_decay_steps=12)
    rest.run()
    assert_same_bits(weights(rest), weights(whole))


def test_it_is_the_uncompiled_step(text: Path, tmp_path: Path) -> None:
    fast = compiled(text, tmp_path / "fast", 1)
    slow, _ = start(tiny(text, compile=False, **SMALL, **MODES[1]), tmp_path / "slow")
    fast.run()
    slow.run()
    for (name, left), right in zip(weights(fast).items(), weights(slow).values(), strict=True):
        assert torch.allclose(left, right, atol=2e-5), name
    assert_same_bits({"first": fast.engine.first_bad}, {"first": slow.engine.first_bad})


def test_a_later_run_starts_at_once(text: Path, tmp_path: Path) -> None:
    compiled(text, tmp_path / "first", 2).close()
    begin = time.monotonic()
    again = compiled(text, tmp_path / "again", 2, compile="auto", seed=5)
    again.update()
    assert time.monotonic() - begin < 10.0
    assert not again.engine.deterministic  # whether it is compiled is the cache's doing
    again.close()


def begins_uncompiled(
    text: Path, folder: Path, patch: pytest.MonkeyPatch, finds: Callable[[int], bool]
) -> Training:
    """A long run; its n-th look for a compiled step, from 0 at the start, finds one if `finds` says so."""
    compiled(text, folder / "made", 1).close()  # so that the compiling process finds it done
    looks = itertools.count()
    patch.setattr(engine_module, "load", lambda *order: load(*order) if finds(next(looks)) else None)
    patch.setattr(engine_module, "_WORTHWHILE_S", 0.0)
    patch.setattr(engine_module, "_ESTIMATE_S", 0.0)
    config = tiny(text, compile="auto", max_steps=10**6, log_interval=10**6, **SMALL, **MODES[1])
    return start(config, folder)[0]


def update_until(training: Training, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        training.update()


def test_the_compiled_step_takes_over_while_training(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = begins_uncompiled(text, tmp_path, monkeypatch, lambda look: look > 0)
    assert not training.engine.compiled
    assert training.engine.deterministic
    update_until(training, lambda: training.engine.compiled)
    step = training.step
    assert f"step {step - 1}: the compiled step takes over" in capsys.readouterr().out
    assert not training.engine.deterministic
    training.save()
    training.close()
    environment = checkpoint.read_state(tmp_path / f"step-{step:08d}").environment
    assert environment.compiled
    assert not environment.deterministic


def test_a_step_that_cannot_be_used_is_told_once(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = begins_uncompiled(text, tmp_path, monkeypatch, lambda look: False)
    update_until(training, lambda: engine(training)._settled)
    step = training.step
    update_until(training, lambda: training.step == step + 20)
    training.close()
    assert capsys.readouterr().out.count("goes on uncompiled: the compiled step cannot be used") == 1
    assert not training.engine.compiled


def test_without_a_compiler_it_says_so(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        TrainerError, match=r"the step: .*no C\+\+ compiler; install g\+\+.*it works without: compile: auto"
    ):
        start(tiny(text, compile=True, batch_size=2, **MODES[1]), tmp_path)


def test_a_compiled_step_that_crashes_is_told_and_training_goes_on(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is tried out by the process that compiles it, which is ended by SIGSEGV."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(0o755)
    training = begins_uncompiled(text, tmp_path, monkeypatch, lambda look: look > 0)
    monkeypatch.setattr("trainer.compiling.sys.executable", str(python))
    update_until(training, lambda: engine(training)._settled)
    training.close()
    assert "training goes on uncompiled: compiling it, or trying it out, was ended by SIGSEGV" in (
        capsys.readouterr().out
    )


def test_a_compiler_ends_with_its_parent(text: Path, tmp_path: Path) -> None:
    training, _ = start(tiny(text, compile="auto", batch_size=6), tmp_path)
    order: Order = engine(training)._order
    compiler = Compiler(order)
    assert not compiler.done()
    stdin = compiler._process.stdin
    assert stdin is not None
    stdin.close()  # as when the parent is killed
    try:
        assert compiler._process.wait(timeout=60) != 0
        with pytest.raises(LibraryError):
            compiler.done()
    except subprocess.TimeoutExpired:
        compiler.close()
        raise
    finally:
        training.close()


def test_a_damaged_step_is_removed_and_training_goes_on(
    text: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = compiled(text, tmp_path / "first", 1)
    training.close()
    file = cache / "compiled" / engine(training)._order.key / GRADIENT
    kept = file.read_bytes()
    os.truncate(file, len(kept) // 2)
    training, _ = start(tiny(text, compile="auto", **SMALL, **MODES[1]), tmp_path / "second")
    assert not training.engine.compiled
    assert training.run() == 0
    assert f"{GRADIENT} is damaged" in capsys.readouterr().out
    assert not file.exists()
