"""Checkpoints that are whole, by size and SHA-256, and hostile: whoever committed them wants the reader to
crash, to run out of memory, or to run code. All are refused with an explanation, and no code in them runs.
"""

from __future__ import annotations

import ast
import json
import math
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.agent import opening
from orchestrator.agent.saver import Finished, Saver
from orchestrator.contract import MARK_FILE
from orchestrator.domain.states import Reason
from orchestrator.store.checkpoints import restore
from tests.faults.hostile import MODELS, STATES, json_texts, pickles, safetensors
from tests.integration.agent.bench import Bench
from tests.unit.store.helpers import RUN, writer
from tests.unit.store.memory_store import MemoryStore
from tests.unit.trainer.support import assert_same_bits, start, tiny, weights, write_text
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.foreign import begin_from
from trainer.sample import load_model
from trainer.train import Training

MEMORY_MOST = 400 << 20
"""Bytes that this process may grow by, of which the largest file is a tenth."""
TENSOR_FILES = (checkpoint.MODEL_FILE, checkpoint.OPTIMIZER_FILE)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _frugal() -> Iterator[None]:
    """Refusing takes no memory worth mentioning."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MEMORY_MOST


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training with a checkpoint of step 1 in its folder."""
    folder = tmp_path_factory.mktemp("trained")
    made, _ = start(tiny(write_text(folder)), folder)
    made.update()
    made.save()
    made.writer.wait()
    return made


@pytest.fixture
def directory(training: Training, tmp_path: Path) -> Path:
    """A copy of that checkpoint."""
    return shutil.copytree(training.folder / "step-00000001", tmp_path / "copy")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What must never exist."""
    return tmp_path / "code was run"


def through_the_store(directory: Path) -> Path:
    """Committed and restored: to the store it is as good as any."""
    store = MemoryStore()
    writer(store).commit(directory, 1, metrics={}, device="cpu", node="n")
    return restore(store, RUN, None, directory.with_name("restored")).directory


def refused(training: Training, directory: Path) -> str:
    """What the trainer says instead of going on from it; it is unchanged."""
    before, step = weights(training), training.step
    with pytest.raises(TrainerError) as caught:
        training._restore(checkpoint.read(through_the_store(directory)))
    assert training.step == step
    assert_same_bits(weights(training), before)
    assert 20 < len(str(caught.value)) < 1000, str(caught.value)[:2000]
    return str(caught.value)


def test_the_whole_one_is_taken(training: Training, directory: Path) -> None:
    training._restore(checkpoint.read(through_the_store(directory)))
    assert load_model(directory)[1].step == 1


@pytest.mark.parametrize("name", TENSOR_FILES)
@pytest.mark.parametrize("kind", safetensors())
def test_headers(training: Training, directory: Path, name: str, kind: str) -> None:
    (directory / name).write_bytes(safetensors()[kind])
    refused(training, directory)


@pytest.mark.parametrize("name", [*TENSOR_FILES, checkpoint.STATE_FILE])
def test_pickles_under_other_names(training: Training, directory: Path, trace: Path, name: str) -> None:
    for kind, data in pickles(trace).items():
        (directory / name).write_bytes(data)
        assert name in refused(training, directory), kind
        shutil.rmtree(directory.with_name("restored"))
    assert not trace.exists()


def test_weights_from_elsewhere(training: Training, tmp_path: Path, trace: Path) -> None:
    """A directory of somebody else's, from which a run may begin."""
    before = weights(training)
    for kind, data in {**safetensors(), **pickles(trace)}.items():
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(TrainerError) as caught:
            begin_from(tmp_path, training.model, lambda line: None)
        assert 20 < len(str(caught.value)) < 1000, kind
    assert_same_bits(weights(training), before)
    assert not trace.exists()


def test_these_pickles_are_dangerous(trace: Path, tmp_path: Path) -> None:
    for data in pickles(trace).values():
        (tmp_path / "file").write_bytes(data)
        trace.unlink(missing_ok=True)
        with suppress(RuntimeError):  # PyTorch is not content with what it has run
            torch.load(tmp_path / "file", weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("kind", json_texts())
def test_json_that_is_no_state(training: Training, directory: Path, kind: str) -> None:
    (directory / checkpoint.STATE_FILE).write_bytes(json_texts()[kind])
    assert checkpoint.STATE_FILE in refused(training, directory)


def rewrite(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / checkpoint.STATE_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", STATES)
def test_states_that_no_training_has_written(training: Training, directory: Path, kind: str) -> None:
    changes = {key: value for key, value in STATES[kind].items() if key != "config"}
    config = STATES[kind].get("config", {})
    rewrite(directory, lambda state: state.update(changes, config={**state["config"], **config}))
    refused(training, directory)


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_no_memory_holds(directory: Path, kind: str) -> None:
    """Sampling and exporting build the model that the checkpoint describes."""
    rewrite(directory, lambda state: state["config"].update(MODELS[kind]))
    with pytest.raises(TrainerError, match="checkpoint"):
        load_model(through_the_store(directory))


def test_weights_that_are_not_those_of_the_state(training: Training, directory: Path) -> None:
    tensors = checkpoint.read_tensors(directory / checkpoint.MODEL_FILE)
    for value in (math.nan, math.inf, 1e30, 0.0):
        changed = {name: torch.full_like(tensor, value) for name, tensor in tensors.items()}
        other = shutil.copytree(directory, directory.with_name(f"full of {value}"))
        checkpoint.save_file(changed, other / checkpoint.MODEL_FILE)
        restored = checkpoint.read(other)
        before = weights(training)
        with pytest.raises(TrainerError, match="probe"):
            training._restore(restored)
        training._restore(checkpoint.read(directory))
        assert_same_bits(weights(training), before)


@pytest.mark.parametrize("kind", json_texts())
def test_marks_that_the_agent_reads(tmp_path: Path, kind: str) -> None:
    (tmp_path / MARK_FILE).write_bytes(json_texts()[kind])
    said: list[str] = []
    saver = SimpleNamespace(_reporter=SimpleNamespace(event=said.append))
    assert Saver._mark(saver, Finished(1, tmp_path, 0.0)) == ({}, {})  # type: ignore[arg-type]
    assert opening._step(tmp_path) is None
    assert all(MARK_FILE in line and len(line) < 500 for line in said)


@pytest.mark.slow
def test_an_agent_hands_it_on_and_nobody_runs_it(tmp_path: Path, trace: Path) -> None:
    """A program commits pickles under the trainer's names; the trainer, started after it, refuses them."""
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times, " * 200)
    for name, data in zip(("a", "b", "c"), pickles(trace).values(), strict=False):
        (tmp_path / name).write_bytes(data)
    code = "import shutil\nfrom pathlib import Path\nfrom orchestrator.contract import run_context\n"
    code += "context = run_context()\nfolder = context.checkpoint_dir / 'writing'\nfolder.mkdir()\n"
    names = (checkpoint.MODEL_FILE, checkpoint.STATE_FILE, MARK_FILE)
    for source, name in zip("abc", names, strict=True):
        code += f"shutil.copy({str(tmp_path / source)!r}, folder / {name!r})\n"
    code += f"shutil.copy(folder / {names[0]!r}, folder / {checkpoint.OPTIMIZER_FILE!r})\n"
    code += "context.publish(folder, 5)\n"
    bench = Bench(tmp_path)
    try:
        bench.start(bench.script(code))
        assert bench.wait_outcome().reason is Reason.COMPLETED
        assert bench.steps() == [5]
        assert any(f"{MARK_FILE} of step 5 cannot be read" in event for event in bench.controller.events)
        bench.controller.beats.clear()
        bench.start({"trainer": {"dataset": str(text), "n_embd": 16, "max_steps": 10}}, attempt=2)
        outcome = bench.wait_outcome(timeout=60, attempt=2)
        assert outcome.reason is Reason.PROGRAM_FAILED
        assert "state.json is damaged" in outcome.message
        assert not trace.exists()
    finally:
        bench.close()


# ---------------------------------------------------------------------- nothing could run it

RUNNERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
ALLOWED = {
    ("trainer/export.py", "import pickle"),
    ("trainer/export.py", "pickle.dumps"),
    ("orchestrator/cluster/template.py", "compile"),
    ("orchestrator/cluster/template.py", "exec"),
}
"""nanoGPT wants a pickled meta.pkl; it is only written. A node's template runs the program of Ray's workers
from Ray's own installation, as Ray would, and nothing that anybody has sent."""


def findings(tree: ast.AST) -> Iterator[str]:
    """Everything that could run code out of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.partition(".")[0] in RUNNERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in RUNNERS:
            yield f"from {node.module} import …"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node.value.id in RUNNERS or name in ("torch.load", "np.load", "numpy.load", "yaml.load"):
                yield name
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("eval", "exec", "compile")
        ):
            yield node.func.id


def test_no_code_of_ours_unpickles() -> None:
    found = {
        (str(path.relative_to(REPOSITORY)), what)
        for package in ("orchestrator", "trainer")
        for path in (REPOSITORY / package).rglob("*.py")
        for what in findings(ast.parse(path.read_text()))
    }
    assert found == ALLOWED


def test_what_would_be_found() -> None:
    code = "import pickle, dill\nfrom marshal import loads\ntorch.load(f)\npickle.load(f)\neval(x)\n"
    expected = {"import pickle", "import dill", "from marshal import …", "torch.load", "pickle.load", "eval"}
    assert set(findings(ast.parse(code))) == expected
