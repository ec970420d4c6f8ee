"""Timing, and what people read while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from trainer.config import TrainerConfig
from trainer.data import Dataset
from trainer.device import Hardware
from trainer.flops import A100_BF16_FLOPS, flops_per_step
from trainer.model_fast import LanguageModel
from trainer.peak import gemm_peak
from trainer.power import EnergyCounter, find_energy

_ENERGY_WINDOW_S = 1.0


def say(line: str) -> None:
    """One line on stdout, at once and in one piece, whichever thread says it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Meter:
    """Measures training steps by the clock, without what happens inside :meth:`paused`.

    It waits for the device at laps and pauses only. Of `world` ranks, each is taken to do its share of the
    work and to use as much energy as this one.
    """

    def __init__(
        self,
        config: TrainerConfig,
        hardware: Hardware,
        parameters: int,
        *,
        world: int = 1,
        energy: EnergyCounter | None = None,
    ) -> None:
        self._hardware = hardware
        self._energy = energy or find_energy(hardware.device).counter
        self._tokens_per_step = config.batch_size * config.block_size
        self._flops_per_step = flops_per_step(config, parameters)
        self._world = world
        self._peak: float | None = None
        self._doubted = False
        self._elapsed = _Elapsed()
        self._measured = _Elapsed()
        self._since: float | None = None
        self._joules_since: float | None = None
        self._settled = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for something that is not training."""
        self._stop()
        yield
        self._start()

    def count(self, steps: int = 1) -> None:
        """So many more steps are made, from now on if the clock did not run."""
        if self._since is None:
            self._start()
        self._elapsed.steps += steps

    def lap(self) -> dict[str, float]:
        """Speed since the last lap. Empty for the first lap, in which the device was still warming up.

        Energy comes with the laps by which a second of training was measured since it came last: counters
        are renewed ten times a second or so.
        """
        self._stop()
        lap, self._elapsed = self._elapsed, _Elapsed()
        if not self._settled or not lap.steps:
            self._settled = True
            self._start()
            return {}
        flops = self._flops_per_step * lap.steps / lap.seconds
        speed = {
            "perf/tokens_per_s": self._tokens_per_step * lap.steps / lap.seconds,
            "perf/step_ms": lap.seconds / lap.steps * 1000.0,
            "perf/mfu": flops / self._world / self.peak(flops / self._world),
            "perf/mfu_a100": flops / self._world / A100_BF16_FLOPS,
            **self._power(lap),
        }
        self._start()
        return speed

    def peak(self, seen: float = 0.0) -> float:
        """The device's own peak in FLOP/s, looked up or measured when first asked for.

        It is measured anew where training was `seen` to be faster, which it can only be if the device was
        slowed down when it was measured; if that does not help, what was seen is the peak.
        """
        if self._peak is None:
            self._peak = gemm_peak(self._hardware)
        if seen > self._peak and not self._doubted:
            self._doubted = True
            self._peak = gemm_peak(self._hardware, again=True)
        self._peak = max(self._peak, seen)
        return self._peak

    def _power(self, lap: _Elapsed) -> dict[str, float]:
        """Watts and joules per token once there is enough to tell; nothing where no energy is known."""
        self._measured.add(lap)
        total = self._measured
        if total.seconds < _ENERGY_WINDOW_S:
            return {}
        self._measured = _Elapsed()
        if total.joules is None:
            return {}
        watts = total.joules / total.seconds * self._world
        tokens = self._tokens_per_step * total.steps
        return {"perf/watts": watts, "perf/joules_per_token": watts * total.seconds / tokens}

    def _start(self) -> None:
        self._joules_since = self._energy.joules() if self._energy is not None else None
        self._since = time.perf_counter()

    def _stop(self) -> None:
        if self._since is None:
            return
        self._hardware.synchronize()
        seconds = time.perf_counter() - self._since
        before, after = self._joules_since, self._energy.joules() if self._energy is not None else None
        joules = after - before if after is not None and before is not None else None
        self._elapsed.add(_Elapsed(0, seconds, joules))
        self._since = None


@dataclass
class _Elapsed:
    """Steps made, in how many seconds, with how much energy (None once it is not known)."""

    steps: int = 0
    seconds: float = 0.0
    joules: float | None = 0.0

    def add(self, other: _Elapsed) -> None:
        self.steps += other.steps
        self.seconds += other.seconds
        known = self.joules is not None and other.joules is not None
        self.joules = (self.joules or 0.0) + (other.joules or 0.0) if known else None


def step_line(step: int, loss: float, lr: float, speed: dict[str, float]) -> str:
    """The line of one logged step."""
    line = f"step {step}: loss {loss:.4f}, lr {lr:.2e}"
    if not speed:
        return line
    return (
        f"{line}, {speed['perf/step_ms']:.2f} ms/step, {speed['perf/tokens_per_s']:,.0f} tokens/s, "
        f"mfu {speed['perf/mfu']:.1%}"
    )


def introduction(config: TrainerConfig, dataset: Dataset, model: LanguageModel, hardware: Hardware) -> None:
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
