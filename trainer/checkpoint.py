"""Everything needed to go on exactly, in a directory that holds no pickle.

========================  ====================================================================
``model.safetensors``     the weights by GPT-2's names, fp32; the tied output matrix is not repeated
``optimizer.safetensors`` AdamW's moments, ``exp_avg.NAME`` and ``exp_avg_sq.NAME``, and Muon's,
                          ``momentum.NAME``, fp32
``state.json``            :class:`State`: step, configuration, vocabulary, losses, environment
``checkpoint.json``       what the orchestrator reads: the step and the metrics of exactly these weights
========================  ====================================================================

There is no generator state and no data position: both are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.contract import MARK_FILE, NO_ROOM, STEP_PREFIX, RunContext, parse_step, step_name
from trainer.config import TrainerConfig
from trainer.data import Dataset
from trainer.errors import DamagedCheckpoint, NoRoom, TrainerError, UserError
from trainer.guards import Skip

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
_ASIDE_PREFIX = ".writing-"
_STATE_MOST = 32 << 20
"""Bytes of a state.json: a vocabulary of all characters that there are takes less."""
_HEADER_MOST = 8 << 20
"""Bytes of a safetensors file's header: of some ten thousand tensors."""
SHAPE_KEYS = ("recipe", "ngrams", "n_layer", "n_head", "n_embd", "block_size", "bias")
"""Settings that a restored run cannot change: they decide the names and shapes of the weights."""


Step = Annotated[int, Field(ge=0, le=1 << 48)]


class Environment(BaseModel):
    """What the weights were computed with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    torch: str
    device: str
    """`cpu` or `cuda`."""
    device_name: str
    dtype: str
    threads: int
    compiled: bool
    deterministic: bool
    """Whether repeating the run on the same device gives the same bits."""


class Evaluation(BaseModel):
    """The losses of one evaluation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Step
    train: float
    val: float


class State(BaseModel):
    """The content of state.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    step: Step
    """Optimizer updates made."""
    config: TrainerConfig
    dataset: str
    dataset_sha256: str
    vocabulary: str
    """Every character that the model knows, in the order of the tokens."""
    vocabulary_size: Annotated[int, Field(gt=0, le=1 << 32)] | None = None
    """How many tokens the model knows, where they stand for no characters; then `vocabulary` is empty."""
    evaluation: Evaluation | None = None
    """The newest one."""
    best: Evaluation | None = None
    """The one with the lowest val loss."""
    since_best: Annotated[int, Field(ge=0)] = 0
    """Evaluations after the best one."""
    skipped: Annotated[tuple[Skip, ...], Field(max_length=10_000)] = ()
    """Batches that were left out because training diverged with them."""
    train_loss: float | None = None
    """The newest logged loss of a training batch."""
    probe_loss: float
    """fp32 loss of the probe batch, without dropout, for these weights."""
    environment: Environment

    def marks(self) -> dict[str, float]:
        """Metrics measured with exactly these weights."""
        here = self.evaluation is not None and self.evaluation.step == self.step
        return {"val/loss": self.evaluation.val} if here and self.evaluation else {}


class _Mark(BaseModel):
    step: int
    metrics: dict[str, float]
    versions: dict[str, str]


@dataclass(frozen=True)
class Restored:
    """A checkpoint read back; tensors are on the CPU."""

    directory: Path
    state: State
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save(
    context: RunContext,
    folder: Path,
    state: State,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
) -> Path:
    """Write aside, make durable, then publish as ``folder/step-NNNNNNNN``; returns that directory.

    What was written of one that fails is removed.

    Raises:
        NoRoom: the disk is full.
        TrainerError: it cannot be written for another reason.
    """
    aside = folder / f"{_ASIDE_PREFIX}{step_name(state.step)}"
    versions = {"torch": state.environment.torch}
    mark = _Mark(step=state.step, metrics=state.marks(), versions=versions)
    try:
        for stale in folder.glob(f"{_ASIDE_PREFIX}*"):  # of a process that was killed while it wrote
            shutil.rmtree(stale)
        aside.mkdir(parents=True)
        save_file(_plain(model), aside / MODEL_FILE)
        save_file(_plain(optimizer), aside / OPTIMIZER_FILE)
        (aside / STATE_FILE).write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (aside / MARK_FILE).write_text(mark.model_dump_json() + "\n", encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            _sync(path)
        final = context.publish(aside, state.step)
        _sync(folder)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(aside, ignore_errors=True)
        kind = NoRoom if _is_full(e) else TrainerError
        raise kind(f"cannot write the checkpoint of step {state.step} to {folder}: {e}") from e
    return final


def _is_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    return any(f"(os error {number})" in str(error) for number in NO_ROOM)


def find(place: Path) -> Path:
    """The checkpoint at `place`: that directory itself, or the one with the highest step in it.

    Raises:
        UserError: there is none.
    """
    if (place / STATE_FILE).is_file():
        return place
    steps = published(place)
    if not steps:
        raise UserError(f"there is no checkpoint in {place}")
    return steps[max(steps)]


def published(folder: Path) -> dict[int, Path]:
    """Finished checkpoints in a folder by step."""
    found = {parse_step(path.name): path for path in folder.glob(f"{STEP_PREFIX}*") if path.is_dir()}
    return {step: path for step, path in found.items() if step is not None}


def read_state(directory: Path) -> State:
    """state.json of a checkpoint.

    Raises:
        DamagedCheckpoint: it is missing, cannot be read, or says what no training can have written.
    """
    path = directory / STATE_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_STATE_MOST + 1)
    except OSError as e:
        raise DamagedCheckpoint(
            f"{directory} is not a whole checkpoint: cannot read {STATE_FILE}: {e.strerror}"
        ) from e
    if len(content) > _STATE_MOST:
        raise DamagedCheckpoint(f"{path} is damaged: it has more than {_STATE_MOST} bytes")
    try:
        state = State.model_validate_json(content)
    except ValidationError as e:
        problem = e.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "its JSON"
        raise DamagedCheckpoint(f"{path} is damaged: {where}: {problem['msg']}") from e
    if not math.isfinite(state.probe_loss):
        raise DamagedCheckpoint(f"{path} is damaged: probe_loss: {state.probe_loss} is no loss")
    return state


def read(directory: Path) -> Restored:
    """A whole checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
    """
    state = read_state(directory)
    return Restored(
        directory, state, read_tensors(directory / MODEL_FILE), read_tensors(directory / OPTIMIZER_FILE)
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Takes no more memory than the file has bytes.

    Raises:
        DamagedCheckpoint: the file is missing, damaged, or none of ours.
    """
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _HEADER_MOST:
            raise DamagedCheckpoint(f"{path} is damaged: its header has more than {_HEADER_MOST} bytes")
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as e:  # the latter by PyTorch
        reason = str(e).partition("\n")[0]
        raise DamagedCheckpoint(f"{path} is missing or damaged: {reason}") from e
    return tensors


def check_fits(restored: State, config: TrainerConfig, dataset: Dataset) -> None:
    """Whether a run with `config` may go on from that state.

    Raises:
        UserError: the model's shape, the vocabulary or the text differ; both values are named.
    """
    for key in SHAPE_KEYS:
        old, new = getattr(restored.config, key), getattr(config, key)
        if old != new:
            raise UserError(
                f"the checkpoint has {key} {old}, the configuration {new}; it cannot change on resume"
            )
    if restored.dataset_sha256 != dataset.sha256:
        raise UserError(
            f"the checkpoint was trained on {restored.dataset} (SHA-256 {restored.dataset_sha256[:12]}), the "
            f"configuration names {dataset.name} ({dataset.sha256[:12]}); the text cannot change on resume"
        )
    if restored.vocabulary_size != dataset.vocabulary.size:
        raise UserError(
            f"the checkpoint's model knows {restored.vocabulary_size} tokens, the configuration's "
            f"{dataset.vocabulary.size}; vocab_size cannot change on resume"
        )
    if restored.vocabulary != dataset.vocabulary.characters:
        raise DamagedCheckpoint("the checkpoint's vocabulary is not that of its text")


def check_probe(state: State, config: TrainerConfig, loss: float, delta: float, device_name: str) -> None:
    """Whether the restored weights give the probe batch the loss that they had when they were saved.

    Raises:
        UserError: the relative difference `delta` is above `probe_tolerance`.
    """
    if not delta <= config.probe_tolerance:
        raise UserError(
            f"the restored weights give the probe batch the loss {loss} instead of {state.probe_loss}: "
            f"relative difference {delta:.2e}, above probe_tolerance {config.probe_tolerance}; "
            f"saved on {state.environment.device_name} with PyTorch {state.environment.torch}, "
            f"restored on {device_name} with {torch.__version__}"
        )


def changed_settings(old: TrainerConfig, new: TrainerConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, with the old and the new value."""
    before, after = old.model_dump(), new.model_dump()
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def fingerprint(state: State) -> tuple[float, ...]:
    """Numbers that differ between two states wherever it matters, whatever computed them; exact in fp64."""
    content = state.model_dump_json(exclude={"environment", "probe_loss"})
    digest = hashlib.sha256(content.encode()).digest()
    return tuple(float(int.from_bytes(digest[i : i + 4])) for i in range(0, 16, 4))


@torch.no_grad()
def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors by name.

    Raises:
        DamagedCheckpoint: names, shapes or types differ.
    """
    check_alike(target, source, what)
    for name, tensor in target.items():
        tensor.copy_(source[name])


def check_alike(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    """Whether the checkpoint's tensors, `source`, are the expected ones.

    Raises:
        DamagedCheckpoint: names, shapes or types differ.
    """
    if target.keys() != source.keys():
        odd = sorted(target.keys() ^ source.keys())
        raise DamagedCheckpoint(
            f"the checkpoint's {what} does not have the expected tensors; first odd one: {odd[0][:200]!r}"
        )
    for name, tensor in target.items():
        found = source[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            shape = str(tuple(found.shape))
            raise DamagedCheckpoint(
                f"the checkpoint's {what} has {name} as {shape[:200]} {found.dtype}, "
                f"expected {tuple(tensor.shape)} {tensor.dtype}"
            )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
