"""Text from a trained model: ``python -m trainer.sample CHECKPOINT_DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.contract import NO_ROOM, SAMPLE_FILE
from trainer import checkpoint
from trainer.config import TrainerConfig
from trainer.data import Vocabulary, vocabulary_of
from trainer.errors import DamagedCheckpoint, TrainerError, UserError
from trainer.model_fast import LanguageModel, build_model
from trainer.progress import say
from trainer.rng import Stream, stream_seed

_LONGEST = 1 << 20
"""Tokens of context that a model may have; only its weights bound what else it takes."""


def load_model(directory: Path, device: str = "cpu") -> tuple[LanguageModel, checkpoint.State]:
    """The model of a checkpoint, ready to sample from, and the checkpoint's state.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
    """
    state = checkpoint.read_state(directory)
    size = len(vocabulary_of(state.vocabulary, state.vocabulary_size))
    weights = checkpoint.read_tensors(directory / checkpoint.MODEL_FILE)
    _check_size(state.config, size, weights)
    model = build_model(state.config, size)
    checkpoint.copy_into(dict(model.named_parameters()), weights, "model")
    return model.to(device).eval(), state


def _check_size(config: TrainerConfig, vocab_size: int, weights: Mapping[str, Tensor]) -> None:
    """See, before memory is asked for, that the model which the state describes is that of the weights."""
    if config.n_layer > len(weights) or config.block_size > _LONGEST:
        raise DamagedCheckpoint(
            f"the checkpoint's state speaks of {config.n_layer} layers and a context of {config.block_size} "
            f"tokens; its model has {len(weights)} tensors"
        )
    try:
        with torch.device("meta"):
            outline = build_model(config, vocab_size)
    except (RuntimeError, TypeError) as e:  # PyTorch's, of sizes that do not fit into 64 bits
        reason = str(e).partition("\n")[0]
        raise DamagedCheckpoint(f"the checkpoint's state describes no model: {reason}") from e
    checkpoint.check_alike(dict(outline.named_parameters()), weights, "model")


@torch.no_grad()
def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    *,
    tokens: int,
    prompt: str = "\n",
    temperature: float = 0.8,
    top_k: int | None = 200,
    seed: int = 1337,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """The prompt and `tokens` characters that follow; the same for the same weights, arguments and device.

    Ends early once `stop` says so. `model` must be in eval mode.

    Raises:
        UserError: the prompt is empty or has characters that the model does not know.
    """
    if not prompt:
        raise UserError("the prompt must have at least one character")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(stream_seed(seed, Stream.SAMPLE))
    text = vocabulary.encode(prompt)
    for _ in range(tokens):
        if stop():
            break
        window = torch.tensor([text[-model.block_size :]], device=device)
        logits = model(window)[0][0, -1].float().cpu() / temperature  # (V,)
        if top_k is not None and top_k < len(logits):
            logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
        text.append(int(torch.multinomial(logits.softmax(0), 1, generator=generator)))
    return vocabulary.decode(text)


def leave_sample(
    model: LanguageModel,
    vocabulary: Vocabulary,
    config: TrainerConfig,
    directory: Path,
    stop: Callable[[], bool],
) -> None:
    """Say what the trained model writes, and leave it in ``sample.txt``, if the disk has room for it."""
    text = generate(
        model.eval(),
        vocabulary,
        tokens=config.sample_tokens,
        prompt=vocabulary.opening,
        seed=config.seed,
        stop=stop,
    )
    say(f"sample:\n{text}\n")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SAMPLE_FILE).write_text(text + "\n", encoding="utf-8")
    except OSError as e:
        if e.errno not in NO_ROOM:
            raise
        say(f"cannot write {SAMPLE_FILE}: {e}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        directory = Path(arguments.checkpoint)
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory; to sample a run, use: orch sample {directory}")
        model, state = load_model(directory, arguments.device)
        text = generate(
            model,
            vocabulary_of(state.vocabulary, state.vocabulary_size),
            tokens=arguments.tokens,
            prompt=arguments.prompt,
            temperature=arguments.temperature,
            top_k=arguments.top_k or None,
            seed=arguments.seed,
        )
    except TrainerError as e:
        print(f"trainer.sample: {e}", file=sys.stderr)
        return e.exit_code
    print(text)
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.sample", description="Text from a trained model."
    )
    parser.add_argument("checkpoint", help="directory of a checkpoint, such as out/laptop/step-00002000")
    parser.add_argument("--tokens", type=int, default=500, help="characters to write (default %(default)s)")
    parser.add_argument("--temperature", type=_positive, default=0.8, help="below 1 is less random")
    parser.add_argument("--top-k", type=int, default=200, help="draw from the K likeliest; 0: from all")
    parser.add_argument("--seed", type=int, default=1337, help="the same seed gives the same text")
    parser.add_argument("--prompt", default="\n", help="text to go on from (default: a line end)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    return parser


if __name__ == "__main__":
    sys.exit(main())
