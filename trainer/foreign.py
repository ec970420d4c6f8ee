"""Weights from elsewhere to begin from: GPT-2's names, as nanoGPT and Hugging Face write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from trainer import checkpoint
from trainer.errors import DamagedCheckpoint, UserError

_PREFIXES: Final = ("_orig_mod.", "transformer.")
"""What compiling, nanoGPT and Hugging Face put before the names."""
_NOT_WEIGHTS: Final = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
"""Masks, and the output matrix, which is the token embedding once more."""
_NUMBERS: Final = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_SIDEWAYS: Final = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""Matrices that Hugging Face's GPT-2 keeps the other way round, (inputs, outputs)."""


def begin_from(directory: Path, model: nn.Module, say: Callable[[str], None]) -> bool:
    """Put a directory's weights into the model; False where it is a checkpoint of this trainer.

    Only weights are taken: training begins at step 0 with a fresh optimizer.

    Raises:
        UserError: the model has other tensors than the files, which the message names.
        DamagedCheckpoint: a file cannot be read.
    """
    files = sorted(directory.glob("*.safetensors"))
    ours = any((directory / name).exists() for name in (checkpoint.STATE_FILE, checkpoint.OPTIMIZER_FILE))
    if ours or not files:
        return False
    found: dict[str, Tensor] = {}
    for file in files:
        found.update(checkpoint.read_tensors(file))
    expected = dict(model.named_parameters())
    try:
        checkpoint.copy_into(expected, adapted(found, expected), "model")
    except DamagedCheckpoint as e:
        raise UserError(
            f"the weights in {directory} are not of the configured model (n_layer, n_embd, block_size, "
            f"bias, vocab_size): {e}"
        ) from e
    say(f"begins from the weights in {directory}")
    return True


def adapted(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by this trainer's names, turned its way round and in fp32; what is no weight is left out."""
    weights = {_name(name): tensor for name, tensor in found.items() if not name.endswith(_NOT_WEIGHTS)}
    turn = any(
        name.endswith("c_attn.weight") and name in expected and tensor.shape == expected[name].T.shape
        for name, tensor in weights.items()
    )
    return {
        name: _single(tensor.T if turn and name.endswith(_SIDEWAYS) else tensor)
        for name, tensor in weights.items()
    }


def _single(tensor: Tensor) -> Tensor:
    """In fp32; what is no real number, or packed, stays and fits nowhere."""
    return tensor.to(torch.float32) if tensor.dtype in _NUMBERS else tensor


def _name(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
