"""Timing, and what people read while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.config import TrainerConfig
from trainer.data import Dataset
from trainer.device import Hardware
from trainer.flops import A100_BF16_FLOPS, flops_per_step, peak_flops
from trainer.model import GPT


def say(line: str) -> None:
    """One line on stdout, at once."""
    print(line, flush=True)


class Meter:
    """Measures training steps by the clock, without what happens inside :meth:`paused`."""

    def __init__(self, config: TrainerConfig, hardware: Hardware, parameters: int) -> None:
        self._hardware = hardware
        self._tokens_per_step = config.batch_size * config.block_size
        self._flops_per_step = flops_per_step(config, parameters)
        self._peak: float | None = None
        self._elapsed_s = 0.0
        self._since: float | None = None
        self._steps = 0
        self._settled = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for something that is not training."""
        self._stop()
        yield
        self._since = time.perf_counter()

    def count(self) -> None:
        """One more step was made."""
        if self._since is None:
            self._since = time.perf_counter()
        self._steps += 1

    def lap(self) -> dict[str, float]:
        """Speed since the last lap. Empty for the first lap, in which the device was still warming up."""
        self._stop()
        seconds, steps = self._elapsed_s, self._steps
        self._elapsed_s, self._steps = 0.0, 0
        if not self._settled or not steps:
            self._settled = True
            self._since = time.perf_counter()
            return {}
        flops = self._flops_per_step * steps / seconds
        speed = {
            "perf/tokens_per_s": self._tokens_per_step * steps / seconds,
            "perf/step_ms": seconds / steps * 1000.0,
            "perf/mfu": flops / self.peak(),
            "perf/mfu_a100": flops / A100_BF16_FLOPS,
        }
        self._since = time.perf_counter()
        return speed

    def peak(self) -> float:
        """The device's own peak in FLOP/s, looked up or measured when first asked for."""
        if self._peak is None:
            self._peak = peak_flops(self._hardware.device, self._hardware.dtype)
        return self._peak

    def _stop(self) -> None:
        if self._since is not None:
            self._hardware.synchronize()
            self._elapsed_s += time.perf_counter() - self._since
            self._since = None


def step_line(step: int, loss: float, lr: float, speed: dict[str, float]) -> str:
    """The line of one logged step."""
    line = f"step {step}: loss {loss:.4f}, lr {lr:.2e}"
    if not speed:
        return line
    return (
        f"{line}, {speed['perf/step_ms']:.2f} ms/step, {speed['perf/tokens_per_s']:,.0f} tokens/s, "
        f"mfu {speed['perf/mfu']:.1%}"
    )


def introduction(config: TrainerConfig, dataset: Dataset, model: GPT, hardware: Hardware) -> None:
    """What is trained, on what, and where."""
    B, T = config.batch_size, config.block_size
    say(
        f"{dataset.name}: {len(dataset.train):,} {dataset.vocabulary.unit} to train, "
        f"{len(dataset.val):,} to validate, {len(dataset.vocabulary)} distinct"
    )
    say(f"model: {model.parameter_count():,} parameters; batch: {B} x {T} = {B * T:,} tokens per step")
    where = f"{hardware.threads} threads" if hardware.device.type == "cpu" else hardware.name()
    dtype = str(hardware.dtype).removeprefix("torch.")
    repeatable = str(hardware.deterministic).lower()
    say(f"device: {hardware.device.type} ({where}), {dtype}, deterministic: {repeatable}")
