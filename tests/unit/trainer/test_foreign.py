"""Training begins from weights that another program has written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.contract import NullContext
from tests.unit.trainer.support import tiny, write_text
from trainer.errors import DamagedCheckpoint, UserError
from trainer.foreign import _SIDEWAYS
from trainer.train import Training


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path)


@pytest.fixture
def weights(text: Path, tmp_path: Path) -> dict[str, Tensor]:
    """Those of a model with another seed."""
    training = Training(tiny(text, seed=7, bias=True), NullContext(), tmp_path / "other")
    return {name: tensor.detach().clone() for name, tensor in training.model.named_parameters()}


def begun(text: Path, tmp_path: Path, **settings: object) -> Training:
    config = tiny(text, bias=True, **settings)
    return Training(config, NullContext(), tmp_path / "run", tmp_path / "foreign")


def check(training: Training, weights: dict[str, Tensor]) -> None:
    assert training.step == 0
    for name, tensor in training.model.named_parameters():
        assert torch.equal(tensor, weights[name]), name
    assert not any(bool(moment.any()) for moment in training.optimizer.state().values())


def write(tmp_path: Path, **files: dict[str, Tensor]) -> None:
    (tmp_path / "foreign").mkdir()
    for name, tensors in files.items():
        save_file(
            {k: t.contiguous().clone() for k, t in tensors.items()},
            tmp_path / "foreign" / f"{name}.safetensors",
        )


def test_own_names(text: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    write(tmp_path, model=weights)
    check(begun(text, tmp_path), weights)


def test_as_nanogpt_names_them(text: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    named = {f"_orig_mod.transformer.{name}": tensor for name, tensor in weights.items()}
    named["_orig_mod.lm_head.weight"] = weights["wte.weight"]
    write(tmp_path, model=named)
    check(begun(text, tmp_path), weights)


def test_as_hugging_face_keeps_them(text: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Matrices the other way round, masks among the weights, two files."""
    named = {name: tensor.T if name.endswith(_SIDEWAYS) else tensor for name, tensor in weights.items()}
    named |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in (0, 1)}
    half = len(named) // 2
    items = list(named.items())
    write(tmp_path, one=dict(items[:half]), two=dict(items[half:]))
    check(begun(text, tmp_path), weights)


def test_half_precision_is_widened(text: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    write(tmp_path, model=half)
    check(begun(text, tmp_path), {name: tensor.float() for name, tensor in half.items()})


def test_another_model(text: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    write(tmp_path, model=weights)
    with pytest.raises(UserError, match=r"has wte.weight as \(28, 16\) .* expected \(28, 32\)"):
        begun(text, tmp_path, n_embd=32)
    with pytest.raises(UserError, match="first odd one"):
        begun(text, tmp_path, n_layer=3)


def test_a_damaged_file(text: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    write(tmp_path, model=weights)
    file = tmp_path / "foreign" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint):
        begun(text, tmp_path)


def test_an_empty_folder_is_no_checkpoint(text: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    with pytest.raises(DamagedCheckpoint, match="not a whole checkpoint"):
        begun(text, tmp_path)
