"""Take a checkpoint to nanoGPT: ``python -m trainer.export CHECKPOINT ckpt.pt``.

The file is what nanoGPT's ``train.py`` writes and its ``sample.py`` reads with ``--init_from=resume``:
weights under nanoGPT's names and the arguments of its model, and without an optimizer. ``meta.pkl``, which
nanoGPT wants in its ``data/NAME`` folder to turn tokens into characters, is written beside it.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import State
from trainer.errors import TrainerError, UserError
from trainer.model import GPT
from trainer.sample import load_model

META = "meta.pkl"


def nanogpt_checkpoint(model: GPT, state: State) -> dict[str, Any]:
    """The content of nanoGPT's ``ckpt.pt``.

    Raises:
        UserError: nanoGPT has no such model.
    """
    config = state.config
    weights = {f"transformer.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]  # one tensor, as there
    arguments = {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
        "bias": config.bias,
        "vocab_size": len(model.wte.weight),
        "dropout": config.dropout,
    }
    return {
        "model": weights,
        "model_args": arguments,
        "iter_num": state.step,
        "best_val_loss": state.best.val if state.best else None,
        "config": {"dataset": state.dataset, **arguments},
    }


def write(checkpoint: Path, file: Path) -> list[Path]:
    """Write nanoGPT's files for a checkpoint's directory; returns them.

    Raises:
        TrainerError: the checkpoint cannot be read, nanoGPT has no such model, or a file cannot be written.
    """
    model, state = load_model(checkpoint)
    if not isinstance(model, GPT):
        raise UserError(f"nanoGPT has no model like this one (recipe: {state.config.recipe})")
    written = [file]
    try:
        torch.save(nanogpt_checkpoint(model, state), file)
        if state.vocabulary:
            characters = dict(enumerate(state.vocabulary))
            meta = {
                "vocab_size": len(characters),
                "itos": characters,
                "stoi": {character: token for token, character in characters.items()},
            }
            written.append(file.with_name(META))
            written[-1].write_bytes(pickle.dumps(meta))
    except OSError as e:
        raise TrainerError(f"cannot write {written[-1]}: {e.strerror or e}") from e
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description="A checkpoint for nanoGPT.")
    parser.add_argument("checkpoint", type=Path, help="directory of a checkpoint")
    parser.add_argument("file", type=Path, help="where to write, for example out/ckpt.pt")
    arguments = parser.parse_args(argv)
    try:
        for path in write(arguments.checkpoint, arguments.file):
            print(path)
    except TrainerError as e:
        print(f"trainer.export: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
