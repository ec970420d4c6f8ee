"""The programs under test, paced by commands: ``python -m benchmarks.programs SPEC`` is started by a worker.

SPEC is JSON: ``{"program": "ours", "settings": {…}, "folder": DIR, "restore": DIR or null}``, or
``{"program": "nanogpt", "folder": CHECKOUT, "arguments": […], "seed": 1337}``.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.serving import Channel, Pacer

EVALUATION_TOKENS = 16384
"""Tokens per forward pass of an evaluation."""


def main() -> None:
    """Run one program until the pipe is closed."""
    spec = json.loads(sys.argv[1])
    channel = Channel()
    try:
        if spec["program"] == "ours":
            run_ours(channel, spec)
        else:
            NanoGPT(channel, spec).run()
    except Exception as e:
        channel.fail(f"failed with {type(e).__name__}: {e}")
        raise


def run_ours(channel: Channel, spec: Mapping[str, Any]) -> None:
    """The trainer's own loop between evaluations: ``Training.update()`` and nothing else."""
    from orchestrator.contract import NullContext
    from trainer.checkpoint import published
    from trainer.config import TrainerConfig
    from trainer.train import Training

    class Context(NullContext):
        """Keeps the last value of every metric."""

        def __init__(self) -> None:
            super().__init__()
            self.logged: dict[str, float] = {}

        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            self.logged.update(metrics)

    context = Context()
    config = TrainerConfig.model_validate(spec["settings"])
    restore = Path(spec["restore"]) if spec.get("restore") else None
    training = Training(config, context, Path(spec["folder"]), restore)
    tokens = training.dataset.val.long().to(training.hardware.device)

    def val() -> float:
        return whole_loss(training.model, tokens, config.block_size)

    def save() -> str:
        training.save()
        training.writer.wait()
        return str(published(training.folder)[training.step])

    handlers: dict[str, Callable[..., Any]] = {
        "val": val,
        "save": save,
        "facts": lambda: _our_facts(training),
        "logged": lambda: context.logged,
    }
    pacer = Pacer(channel, training.hardware.synchronize, handlers)
    try:
        while count := pacer.next_slice():
            for _ in range(count):
                training.update()
    finally:
        training.close()


def _our_facts(training: Any) -> dict[str, Any]:
    """What is needed to say how near the step is to what the device can do."""
    from trainer.flops import flops_per_step
    from trainer.peak import measured_flops

    hardware = training.hardware
    parameters = training.model.parameter_count(positions=False)
    return {
        "device": hardware.name(),
        "dtype": str(hardware.dtype).removeprefix("torch."),
        "threads": hardware.threads,
        "compiled": training.engine.compiled,
        "deterministic": training.engine.deterministic,
        "parameters": parameters,
        "flops_per_step": flops_per_step(training.config, parameters),
        "gemm_flops": measured_flops(hardware),
    }


class NanoGPT:
    """nanoGPT's own ``train.py``: the only change is that its ``while True`` asks whether to go on."""

    def __init__(self, channel: Channel, spec: Mapping[str, Any]) -> None:
        self._folder = Path(spec["folder"])
        self._arguments: list[str] = spec["arguments"]
        self._names: dict[str, Any] = {"__name__": "__main__", "__file__": "train.py", GATE: self._go_on}
        source = (self._folder / "train.py").read_text(encoding="utf-8")
        self._code = compile(gated(seeded(source, spec["seed"])), "train.py", "exec")
        handlers = {"val": self._val, "facts": self._facts}
        self._pacer = Pacer(channel, self._synchronize, handlers)
        self._left = 0
        self._tf32: bool = spec["tf32"]

    def run(self) -> None:
        """Train until told to stop."""
        os.chdir(self._folder)
        sys.path.insert(0, str(self._folder))
        sys.argv = ["train.py", *self._arguments]
        exec(self._code, self._names)

    def _go_on(self) -> bool:
        torch.backends.cuda.matmul.allow_tf32 = self._tf32  # train.py switches it on
        if not self._left:
            self._left = self._pacer.next_slice()
            if not self._left:
                return False
        self._left -= 1
        return True

    def _synchronize(self) -> None:
        if self._names["device_type"] == "cuda":
            torch.cuda.synchronize()

    def _model(self) -> nn.Module:
        compiled = self._names["model"]
        model: nn.Module = getattr(compiled, "_orig_mod", compiled)
        return model

    def _val(self) -> float:
        import numpy as np

        data = np.fromfile(Path(self._names["data_dir"]) / "val.bin", dtype=np.uint16)
        tokens = torch.from_numpy(data.astype(np.int64)).to(self._names["device"])
        torch.backends.cuda.matmul.allow_tf32 = False
        return whole_loss(self._model(), tokens, self._names["block_size"])

    def _facts(self) -> dict[str, Any]:
        names = ("device", "dtype", "compile", "iter_num", "config")
        return {"threads": torch.get_num_threads(), **{name: self._names[name] for name in names}}


GATE = "_go_on"
"""What the loop of the changed train.py calls before every iteration."""


def gated(source: str) -> ast.Module:
    """train.py with ``while _go_on():`` instead of its ``while True:``.

    Raises:
        ValueError: there is not exactly one such loop.
    """
    tree = ast.parse(source)
    loops = [
        node
        for node in tree.body
        if isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and node.test.value is True
    ]
    if len(loops) != 1:
        raise ValueError(f"expected one training loop in nanoGPT's train.py, found {len(loops)}")
    loops[0].test = ast.parse(f"{GATE}()", mode="eval").body
    return ast.fix_missing_locations(tree)


def seeded(source: str, seed: int) -> str:
    """train.py with this seed instead of the one written into it.

    Raises:
        ValueError: the seed is not where it was.
    """
    written = "manual_seed(1337"
    if source.count(written) != 1:
        raise ValueError(f"nanoGPT's train.py does not have {written!r} once")
    return source.replace(written, f"manual_seed({seed}")


@torch.no_grad()
def whole_loss(model: nn.Module, tokens: Tensor, block_size: int) -> float:
    """Mean fp32 loss over consecutive sequences of T tokens; fewer than T at the end are left out.

    `tokens` (N,) are on the model's device; ``model(inputs, targets)[1]`` is the mean loss of a batch. The
    same for all programs, so that their losses differ by their weights alone.
    """
    model.eval()
    starts = torch.arange(0, len(tokens) - block_size, block_size, device=tokens.device)
    window = torch.arange(block_size + 1, device=tokens.device)
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for group in torch.split(starts, max(1, EVALUATION_TOKENS // block_size)):
        sequences = tokens[group[:, None] + window]
        loss = model(sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous())[1]
        total += loss.double() * len(group)
    model.train()
    return float((total / len(starts)).item())


if __name__ == "__main__":
    main()
