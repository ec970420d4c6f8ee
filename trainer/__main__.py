"""``python -m trainer --config FILE`` trains a GPT; ``python -m trainer bench`` tells how fast it would."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from orchestrator.contract import EXIT_SAVED, RunContext, run_context
from trainer.errors import TrainerError, UserError
from trainer.settings import load_config
from trainer.visible import see_own_gpu


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. An explanation is the last line on stderr."""
    arguments = _parser().parse_args(argv)
    context = run_context()  # first of all: from here on SIGTERM means "save and stop"
    try:
        if arguments.command == "bench":
            return _bench(arguments, context)
        return _train(arguments, context)
    except TrainerError as e:
        print(f"trainer: {e}", file=sys.stderr, flush=True)
        return e.exit_code
    except KeyboardInterrupt:
        print("trainer: interrupted without saving", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT


def _train(arguments: argparse.Namespace, context: RunContext) -> int:
    config = load_config(arguments.config, arguments.set)
    folder: Path = context.checkpoint_dir or arguments.out or Path("out") / _name(arguments.config)
    _wait_politely()
    see_own_gpu(os.environ)
    # PyTorch takes a second to import: mistakes in the configuration are told before it.
    from trainer import checkpoint
    from trainer.train import train

    restore_dir = context.restore_dir
    if restore_dir is None and arguments.resume is not None:
        restore_dir = checkpoint.find(folder if arguments.resume == "latest" else Path(arguments.resume))
    if restore_dir is None and context.run_id is None and checkpoint.published(folder):
        raise UserError(
            f"{folder} holds checkpoints already: go on with --resume latest, or choose another --out"
        )
    if arguments.profile is None:
        return train(config, context, folder, restore_dir)
    from trainer.tracing import run_traced  # with the compiler, which takes a second to import

    return train(config, context, folder, restore_dir, partial(run_traced, folder=arguments.profile))


def _bench(arguments: argparse.Namespace, context: RunContext) -> int:
    config = load_config(arguments.config, arguments.set)
    _wait_politely()
    from trainer.bench import bench

    return bench(config, context, steps=arguments.steps, json_file=arguments.json, profile=arguments.profile)


def _wait_politely() -> None:
    """Have OpenMP threads sleep soon when they wait for each other; read when PyTorch loads.

    libgomp's default is to spin for about a millisecond at every one of a step's hundreds of barriers. Where
    something else wants the processor too, a thread then often waits for one that was descheduled: a step on
    two threads beside one busy process took 0.2 to 4.9 s that way and 0.1 s this way. On an idle machine this
    costs a tenth (38 instead of 34 ms); GOMP_SPINCOUNT or OMP_WAIT_POLICY in the environment win.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _name(config: Path | None) -> str:
    return config.stem if config is not None else "default"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Trains a GPT.")
    _add_common(parser, None, [])
    parser.add_argument("--out", type=Path, help="folder for checkpoints (default: out/NAME-OF-THE-CONFIG)")
    parser.add_argument(
        "--resume", metavar="DIR|latest", help="go on from a checkpoint, or from the newest in --out"
    )
    commands = parser.add_subparsers(dest="command", metavar="bench")
    bench = commands.add_parser("bench", help="measure how fast a configuration trains, without keeping it")
    # What was given before the word bench stays.
    _add_common(bench, argparse.SUPPRESS, argparse.SUPPRESS)
    bench.add_argument("--steps", type=_steps, help="updates to measure (default: about ten seconds)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    return parser


def _add_common(parser: argparse.ArgumentParser, nothing: object, no_settings: object) -> None:
    parser.add_argument(
        "--config", type=Path, default=nothing, help="YAML or JSON file of settings (default: the defaults)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=no_settings,
        metavar="KEY=VALUE",
        help="change a setting; repeatable",
    )
    parser.add_argument(
        "--profile", type=Path, default=nothing, metavar="DIR", help="write a trace of a few steps there"
    )


def _steps(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def _end(code: int) -> NoReturn:
    """End the process. Under an agent, when all is saved, at once: to take PyTorch down piece by piece takes
    a quarter of a second and more, and the machine on which the run goes on would wait for it. At once, too,
    where that would wait for ranks that do not answer.
    """
    ranks = sys.modules.get("trainer.ranks")  # with PyTorch, unless it ended before that was imported
    entangled = ranks is not None and ranks.entangled()
    if not entangled and ("ORCH_RUN_ID" not in os.environ or code not in (0, EXIT_SAVED)):
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    code = main()
    # What is to be said is said by the exit code. Python's own end would let the signal kill us, for instance
    # where another rank was told to stop first and this one has agreed.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end(code)
