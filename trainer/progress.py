"""Timing, and what people read while it trains."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.contract import NO_ROOM
from trainer.config import TrainerConfig
from trainer.counters import EnergyCounter
from trainer.data import Dataset
from trainer.device import Hardware
from trainer.flops import A100_BF16_FLOPS, flops_per_step
from trainer.model_fast import LanguageModel
from trainer.peak import gemm_peak
from trainer.power import EnergyMeter, find_energy

_saying = threading.Lock()
_unsaid: deque[str] = deque(maxlen=1000)
"""Lines that the disk of the log had no room for yet; the oldest are forgotten."""


def say(line: str) -> None:
    """One line on stdout, at once and in one piece, whichever thread says it.

    A log on a full disk gets it later, and training goes on.
    """
    with _saying:
        _unsaid.append(line)
        try:
            sys.stdout.write("".join(f"{unsaid}\n" for unsaid in _unsaid))
            sys.stdout.flush()
        except OSError as e:
            if e.errno not in NO_ROOM:
                raise
        else:
            _unsaid.clear()


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
        self._energy = EnergyMeter(lambda: energy or find_energy(hardware.device).counter)
        self._tokens_per_step = config.batch_size * config.block_size
        self._flops_per_step = flops_per_step(config, parameters)
        self._world = world
        self._peak: float | None = None
        self._doubted = False
        self._elapsed_s = 0.0
        self._steps = 0
        self._since: float | None = None
        self._settled = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for something that is not training."""
        self._stop()
        self._energy.end()
        yield
        self._start()

    def count(self, steps: int = 1) -> None:
        """So many more steps are made, from now on if the clock did not run."""
        if self._since is None:
            self._start()
        self._steps += steps
        self._energy.count(steps)

    def lap(self) -> dict[str, float]:
        """Speed since the last lap. Empty for the first lap, in which the device was still warming up.

        Energy comes with a lap once a second was measured since it came last.
        """
        self._stop()
        seconds, steps = self._elapsed_s, self._steps
        self._elapsed_s, self._steps = 0.0, 0
        if not self._settled or not steps:
            self._settled = True
            self._start()
            return {}
        flops = self._flops_per_step * steps / seconds / self._world
        speed = {
            "perf/tokens_per_s": self._tokens_per_step * steps / seconds,
            "perf/step_ms": seconds / steps * 1000.0,
            "perf/mfu": flops / self.peak(flops),
            "perf/mfu_a100": flops / A100_BF16_FLOPS,
            **self._power(),
        }
        self._start()
        return speed

    def peak(self, seen: float = 0.0) -> float:
        """The device's own peak in FLOP/s, looked up or measured when first asked for.

        It is measured anew where training was `seen` to be faster, which it can only be if the device was
        slowed down when it was measured; if that does not help, what was seen is the peak.
        """
        if self._peak is None:
            self._energy.end()
            self._peak = gemm_peak(self._hardware)
        if seen > self._peak and not self._doubted:
            self._doubted = True
            self._energy.end()
            self._peak = gemm_peak(self._hardware, again=True)
        self._peak = max(self._peak, seen)
        return self._peak

    def _power(self) -> dict[str, float]:
        """Watts and joules per token once there is enough to tell; nothing where no energy is known."""
        used = self._energy.take()
        if used is None:
            return {}
        joules, tokens = used.joules * self._world, self._tokens_per_step * used.steps
        return {"perf/watts": joules / used.seconds, "perf/joules_per_token": joules / tokens}

    def _start(self) -> None:
        if self._settled:
            self._energy.begin()
        self._since = time.perf_counter()

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


def introduction(
    config: TrainerConfig,
    dataset: Dataset,
    model: LanguageModel,
    hardware: Hardware,
    deterministic: bool,
    world: int,
) -> None:
    """What is trained, on what, and where, by how many ranks."""
    B, T = config.batch_size, config.block_size
    say(
        f"{dataset.name}: {len(dataset.train):,} {dataset.vocabulary.unit} to train, "
        f"{len(dataset.val):,} to validate, {len(dataset.vocabulary)} distinct"
    )
    say(f"model: {model.parameter_count():,} parameters; batch: {B} x {T} = {B * T:,} tokens per step")
    where = f"{hardware.threads} threads" if hardware.device.type == "cpu" else hardware.name()
    dtype = str(hardware.dtype).removeprefix("torch.")
    repeatable = str(deterministic).lower()
    ranks = f"{world} ranks, " if world > 1 else ""
    say(f"device: {hardware.device.type} ({where}), {ranks}{dtype}, deterministic: {repeatable}")
