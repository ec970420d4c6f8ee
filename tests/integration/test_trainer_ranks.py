"""Several processes train what one trains: same samples, same losses, one decision when to stop."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.contract import EXIT_LOST_RANK, EXIT_SAVED, EXIT_USER_ERROR
from tests.support import free_port, process, wait_until
from tests.unit.trainer.support import (
    TINY,
    clean_env,
    run_trainer,
    start,
    tiny,
    trainer_command,
    write_text,
)
from trainer import checkpoint
from trainer.engine import EagerEngine
from trainer.errors import UserError
from trainer.ranks import Accord, Ranks, join

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"dropout": 0.0, "max_steps": 20, "eval_interval": 5, "checkpoint_interval": 10}
TOLERANCE = 1e-5
"""Gradients are summed in another order."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one rank."""
    return by_itself(text, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def both(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run of two ranks."""
    folder = tmp_path_factory.mktemp("both")
    together(arguments(text, folder), folder)
    return folder


def arguments(text: Path, folder: Path, **settings: Any) -> list[str]:
    config = folder / "config.json"
    config.write_text(json.dumps({**TINY, **SETTINGS, "dataset": str(text), **settings}))
    return ["--config", str(config), "--out", str(folder / "out")]


def by_itself(text: Path, folder: Path) -> Path:
    """One rank of the trainer on a processor, to its end."""
    done = run_trainer(arguments(text, folder), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def gang(commands: Sequence[list[str]], logs: Path, **env: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One process per command, as ranks; rank r writes to ``logs/rank-r``."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(commands))}
    with ExitStack() as stack:
        children = []
        for rank, command in enumerate(commands):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            started = process(command, logs / f"rank-{rank}", env=clean_env(**shared, **own, **env))
            children.append(stack.enter_context(started))
        yield children


def together(arguments: list[str], logs: Path, patience_s: float = 120.0) -> str:
    """Two ranks of the trainer to their end; what rank 0 said. Ranks that hang tell where."""
    with gang([trainer_command(*arguments)] * 2, logs, PYTHONFAULTHANDLER="1") as children:
        deadline = time.monotonic() + patience_s
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, deadline - time.monotonic()))
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGABRT)
        codes = [child.wait(20) for child in children]
    said = (logs / "rank-0").read_text()
    assert codes == [0, 0], said + (logs / "rank-1").read_text()
    return said


def assert_alike(left: Path, right: Path, step: int, tolerance: float = TOLERANCE) -> None:
    """Checkpoints of the same step with weights, moments and losses within the tolerance."""
    one, two = (checkpoint.read(folder / f"out/step-{step:08d}") for folder in (left, right))
    for name, tensor in {**one.model, **one.optimizer}.items():
        assert torch.allclose(tensor, {**two.model, **two.optimizer}[name], atol=tolerance), name
    assert one.state.train_loss == pytest.approx(two.state.train_loss, rel=tolerance)
    assert one.state.probe_loss == pytest.approx(two.state.probe_loss, rel=tolerance)
    assert one.state.evaluation is not None
    assert two.state.evaluation is not None
    assert one.state.evaluation.val == pytest.approx(two.state.evaluation.val, rel=tolerance)
    assert one.state.evaluation.train == pytest.approx(two.state.evaluation.train, rel=tolerance)


def test_two_ranks_train_what_one_trains(alone: Path, both: Path) -> None:
    assert sorted(path.name for path in (both / "out").iterdir()) == ["step-00000010", "step-00000020"]
    assert_alike(alone, both, 10)
    assert_alike(alone, both, 20)


def test_only_rank_0_speaks(both: Path) -> None:
    said = (both / "rank-0").read_text()
    assert "done at step 20" in said
    assert "(1 threads), 2 ranks, float32" in said
    assert (both / "rank-1").read_text() == ""


def test_a_checkpoint_of_one_rank_goes_on_with_two(text: Path, tmp_path: Path, alone: Path) -> None:
    said = together([*arguments(text, tmp_path), "--resume", str(alone / "out/step-00000010")], tmp_path)
    assert "relative difference 0.0e+00" in said
    assert_alike(alone, tmp_path, 20)


def test_a_checkpoint_of_two_ranks_goes_on_with_one(text: Path, tmp_path: Path, both: Path) -> None:
    resume = ["--resume", str(both / "out/step-00000010")]
    done = run_trainer([*arguments(text, tmp_path), *resume], OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "relative difference 0.0e+00" in done.stdout
    assert_alike(both, tmp_path, 20)


def test_micro_batches_that_do_not_divide_a_ranks_share(text: Path, tmp_path: Path, alone: Path) -> None:
    together(arguments(text, tmp_path, micro_batches=4), tmp_path)  # of two sequences
    assert_alike(alone, tmp_path, 20)


class Alike(Ranks):
    """One of two ranks, of which the other has the same gradient."""

    world = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def sum_gradient(self, flat: torch.Tensor) -> None:
        flat.mul_(2.0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_each_rank_draws_dropout_masks_of_its_own(text: Path, tmp_path: Path, dropout: float) -> None:
    """With the same ones, ranks would drop the same activations of different sequences."""
    training, _ = start(tiny(text, dropout=dropout), tmp_path)
    losses = []
    for rank in (0, 1, 0):
        model = copy.deepcopy(training.model)
        engine = EagerEngine(training.config, model, training.batches, training.hardware, Alike(rank))
        losses.append(engine.update(0)[0].item())
    assert losses[0] == losses[2]
    assert (losses[0] == losses[1]) == (dropout == 0.0)


LONG = {"max_steps": 1_000_000, "eval_interval": 500, "checkpoint_interval": 0, "log_interval": 10}


@pytest.mark.parametrize("signalled", [0, 1])
def test_sigterm_to_one_rank_stops_both(text: Path, tmp_path: Path, signalled: int) -> None:
    log = tmp_path / "rank-0"
    with gang([trainer_command(*arguments(text, tmp_path, **LONG))] * 2, tmp_path) as children:
        wait_until(lambda: "step 100: loss" in log.read_text(), 60, log.read_text)
        children[signalled].send_signal(signal.SIGTERM)
        codes = [child.wait(60) for child in children]
    assert codes == [EXIT_SAVED, EXIT_SAVED], log.read_text()
    saved = checkpoint.find(tmp_path / "out")
    assert f"stopped at step {checkpoint.read_state(saved).step} of" in log.read_text()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_ends_the_other(text: Path, tmp_path: Path, killed: int) -> None:
    logs = [tmp_path / "rank-0", tmp_path / "rank-1"]
    with gang([trainer_command(*arguments(text, tmp_path, **LONG))] * 2, tmp_path) as children:
        wait_until(lambda: "step 100: loss" in logs[0].read_text(), 60, logs[0].read_text)
        children[killed].kill()
        code = children[1 - killed].wait(30)
    last = logs[1 - killed].read_text().splitlines()[-1]
    assert code == EXIT_LOST_RANK, last
    assert last.startswith(f"trainer: rank {1 - killed} of 2 lost another rank: it has ended, or did not")


def test_a_rank_that_hangs_ends_the_others_within_the_patience(tmp_path: Path) -> None:
    program = (
        "import sys, time, torch; from trainer.ranks import join; from trainer.errors import TrainerError\n"
        "ranks = join(torch.device('cpu'), patience_s=float(sys.argv[1]))\n"
        "ranks.barrier()\n"
        "if ranks.rank: time.sleep(60)\n"
        "began = time.monotonic()\n"
        "try: ranks.barrier()\n"
        "except TrainerError as e: print(f'{time.monotonic() - began:.1f}', e, flush=True)\n"
    )
    with gang([[sys.executable, "-c", program, "2"]] * 2, tmp_path) as children:
        children[0].wait(30)
        said = (tmp_path / "rank-0").read_text()
    seconds, _, told = said.partition(" ")
    assert 1.5 < float(seconds) < 10.0
    assert "did not answer within 2 s" in told


def test_ranks_with_other_settings_do_not_begin(text: Path, tmp_path: Path) -> None:
    commands = [[*trainer_command(*arguments(text, tmp_path)), "--set", f"seed={rank}"] for rank in (0, 1)]
    with gang(commands, tmp_path) as children:
        codes = [child.wait(60) for child in children]
    assert codes == [EXIT_USER_ERROR] * 2
    assert "the ranks do not begin alike" in (tmp_path / "rank-1").read_text()


def test_one_process_is_no_gang() -> None:
    ranks = join(CPU, {})
    assert (ranks.rank, ranks.world, ranks.is_writer) == (0, 1, True)
    flat = torch.ones(3)
    ranks.sum_gradient(flat)
    assert flat.tolist() == [1.0, 1.0, 1.0]
    assert ranks.agree(True)
    assert not ranks.agree(False)
    assert ranks.mean(2.0) == ranks.broadcast(2.0) == 2.0
    assert ranks.same(1.0, 2.0)
    ranks.barrier()
    ranks.close()


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK is 2, but WORLD_SIZE",
        ),
    ],
)
def test_an_environment_that_is_wrong(env: dict[str, str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        join(CPU, env)


class Two(Ranks):
    """Two ranks in one process: the other one wishes what `other` says; counts questions."""

    world = 2

    def __init__(self) -> None:
        self.other = [0.0, 0.0, 0.0]
        self.asked = 0

    def largest(self, *values: float) -> list[float]:
        self.asked += 1
        return [max(pair) for pair in zip(values, self.other, strict=True)]


@pytest.mark.parametrize(("step_s", "most"), [(1.0, 1000), (0.001, 12), (0.1, 250)])
def test_ranks_ask_each_other_about_twice_a_second(step_s: float, most: int) -> None:
    now = 0.0
    ranks = Two()
    accord = Accord(ranks, clock=lambda: now)
    for step in range(1000):
        accord.ask(step, False, False)
        now += step_s
    assert 0 < ranks.asked <= most
    asked_at = now
    ranks.other = [1.0, 0.0, 0.0]
    while not accord.stop:
        step += 1
        accord.ask(step, False, False)
        now += step_s
    assert now - asked_at <= 2.0 + step_s


def test_one_wish_is_enough_to_save() -> None:
    ranks = Two()
    accord = Accord(ranks, clock=lambda: 0.0)
    ranks.other = [0.0, 1.0, 0.0]
    assert accord.ask(0, False, False)
    assert not accord.stop


def test_one_process_decides_at_each_step() -> None:
    accord = Accord(Ranks())
    assert accord.ask(5, False, True)
    assert not accord.stop
    accord.ask(6, True, False)
    accord.ask(7, False, False)
    assert accord.stop
