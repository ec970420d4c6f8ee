"""``python -m trainer --config FILE``: trains a character-level GPT."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from orchestrator.contract import STEP_PREFIX, RunContext, parse_step, run_context
from trainer.errors import TrainerError, UserError
from trainer.settings import load_config


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. An explanation is the last line on stderr."""
    arguments = _parser().parse_args(argv)
    context = run_context()  # first of all: from here on SIGTERM means "save and stop"
    if isinstance(sys.stdout, TextIO) or hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        return _train(arguments, context)
    except TrainerError as e:
        print(f"trainer: {e}", file=sys.stderr, flush=True)
        return e.exit_code


def _train(arguments: argparse.Namespace, context: RunContext) -> int:
    config = load_config(arguments.config, arguments.set)
    folder = context.checkpoint_dir or arguments.out or Path("out") / _name(arguments.config)
    restore_dir = context.restore_dir or _resume(arguments.resume, folder)
    # PyTorch takes a second to import: mistakes in the configuration are told before it.
    from trainer.train import Training

    return Training(config, context, folder, restore_dir).run()


def _name(config: Path | None) -> str:
    return config.stem if config is not None else "default"


def _resume(wanted: str | None, folder: Path) -> Path | None:
    """The checkpoint that `--resume` names, None without the option."""
    if wanted is None:
        return None
    directory = folder if wanted == "latest" else Path(wanted)
    if parse_step(directory.name) is not None and directory.is_dir():
        return directory
    steps = [path for path in directory.glob(f"{STEP_PREFIX}*") if parse_step(path.name) is not None]
    if not steps:
        raise UserError(f"--resume {wanted}: there is no checkpoint in {directory}")
    return max(steps, key=lambda path: parse_step(path.name) or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Trains a character-level GPT.")
    parser.add_argument("--config", type=Path, help="YAML or JSON file of settings (default: the defaults)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting; repeatable"
    )
    parser.add_argument("--out", type=Path, help="folder for checkpoints (default: out/NAME-OF-THE-CONFIG)")
    parser.add_argument(
        "--resume", metavar="DIR|latest", help="go on from a checkpoint, or from the newest in --out"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
