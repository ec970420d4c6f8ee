"""``python -m trainer bench``: how fast a configuration trains here, and where the time goes.

It makes the updates that training would make, with its logging, and without evaluations and checkpoints.
How each figure is measured is told in ``docs/measuring.md``.
"""

from __future__ import annotations

import io
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

import psutil
import torch

from orchestrator.contract import RunContext
from trainer.config import TrainerConfig
from trainer.errors import UserError
from trainer.flops import A100_BF16_FLOPS, flops_per_step, published_flops
from trainer.in_process import importing_s
from trainer.peak import gemm_peak
from trainer.power import find_energy
from trainer.progress import say
from trainer.report import Power, Report, Shares, Speed, Startup, lines, write
from trainer.tracing import TRACED_STEPS, kernel_seconds, traced
from trainer.train import Training, train

_COMPILING_S = 300.0
_WARM_UP_STEPS = 5
_WARM_UP_S = 1.0
_MEASURED_S = 10.0
_ROUNDS = 20
_LEAST_STEPS = 10
_MOST_STEPS = 20_000
_SPAN_STEPS = 200
_KERNEL_STEPS = 50
_UPDATE = "update"
_LEAST_ENERGY_S = 1.0


def bench(
    config: TrainerConfig,
    context: RunContext,
    *,
    steps: int | None = None,
    json_file: Path | None = None,
    profile: Path | None = None,
) -> int:
    """Measure `steps` updates, else about ten seconds of them, and print the report; returns the exit code.

    Raises:
        TrainerError: training cannot go on, or a file cannot be written.
    """
    imported_s = _process_age()

    def measure(training: Training) -> int:
        if training.ranks.world > 1:
            raise UserError("the benchmark is of one process: start it without torchrun")
        bench = Bench(training, imported_s)
        report = bench.report(steps)
        with redirect_stdout(stdout):
            for line in lines(report):
                say(line)
            if json_file is not None:
                write(report, json_file)
            if profile is not None:
                with traced(bench, "update", profile, training.hardware, warm_up=0):
                    for _ in range(TRACED_STEPS):
                        bench.update()
        training.close()
        return 0

    stdout = sys.stdout
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        return train(config, context, Path(folder), use=measure)


class Bench:
    """One training that is measured. `imported_s` is the age of the process when everything was imported."""

    def __init__(self, training: Training, imported_s: float) -> None:
        self._config = training.config
        self._tokens = training.config.batch_size * training.config.block_size
        self._training = training
        self.hardware = training.hardware
        ready_s = _process_age()
        training.update()
        self.hardware.synchronize()
        first_step_s = _process_age()
        self._wait_for_compiler()
        compiled_s = _process_age() if training.engine.compiled else None
        self._start_up = Startup(imported_s, ready_s, first_step_s, compiled_s, importing_s())
        training.meter.peak()  # measured now, training will not stop for it later

    def update(self) -> None:
        """One step of training, without what it prints."""
        with redirect_stdout(io.StringIO()):
            self._training.update()

    def report(self, steps: int | None) -> Report:
        """Warm up and measure."""
        step_s = self._warm_up()
        total = steps or round(min(max(_MEASURED_S / step_s, _LEAST_STEPS), _MOST_STEPS))
        size = max(1, total // _ROUNDS)
        if size > self._config.log_interval:
            size -= size % self._config.log_interval
        energy = find_energy(self.hardware.device)
        with _Parts(self._training) as parts:
            before, cpu_s = energy.joules(), time.process_time()
            rounds = [self._round(size) for _ in range(max(1, total // size))]
            cpu_s = time.process_time() - cpu_s
            after = energy.joules()
        memory, wall_s = self._gpu_memory(), sum(rounds)
        speed = self._speed(rounds, size, cpu_s)
        shares = parts.shares(wall_s) if self.hardware.device.type == "cpu" else self._gpu_shares(speed)
        return Report(
            config=self._config,
            machine=self._machine(),
            parameters=self._training.model.parameter_count(positions=False),
            start_up=self._start_up,
            speed=speed,
            shares=shares,
            power=_power(before, after, wall_s, speed.steps * self._tokens, energy.note),
            gpu_memory_bytes=memory,
        )

    def _wait_for_compiler(self) -> None:
        """Train until a compiled step has taken over, if one will."""
        deadline = time.perf_counter() + _COMPILING_S
        while self._training.engine.waiting and time.perf_counter() < deadline:
            self._round(1)

    def _warm_up(self) -> float:
        """Seconds per step in the second half of warming up."""
        self._round(_WARM_UP_STEPS)
        begin, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - begin < _WARM_UP_S:
            self._round(1)
            steps += 1
        return (time.perf_counter() - begin) / steps

    def _round(self, steps: int) -> float:
        """Make so many updates; how many seconds they took together."""
        begin = time.perf_counter()
        for _ in range(steps):
            self._training.update()
        self.hardware.synchronize()
        return time.perf_counter() - begin

    def _speed(self, rounds: list[float], size: int, cpu_s: float) -> Speed:
        each = sorted(seconds / size * 1000.0 for seconds in rounds)
        step_ms = statistics.median(each)
        parameters = self._training.model.parameter_count(positions=False)
        flops = flops_per_step(self._config, parameters)
        rate = flops / step_ms * 1000.0
        peak = max(gemm_peak(self.hardware, again=True), rate)
        steps = size * len(rounds)
        on_cpu = self.hardware.device.type == "cpu"
        return Speed(
            steps=steps,
            step_ms=step_ms,
            step_ms_p10=each[len(each) // 10],
            step_ms_p90=each[-1 - len(each) // 10],
            cpu_ms=cpu_s / steps * 1000.0,
            tokens_per_s=self._tokens / step_ms * 1000.0,
            flops_per_s=rate,
            peak_flops_per_s=peak,
            published_flops_per_s=published_flops(self.hardware.name(), self.hardware.dtype),
            mfu=rate / peak,
            mfu_a100=rate / A100_BF16_FLOPS,
            mfu_cpu=flops * steps / cpu_s * self.hardware.threads / peak if on_cpu else None,
        )

    def _gpu_shares(self, speed: Speed) -> Shares:
        with _Spans(self._training.engine) as spans:
            self._round(min(speed.steps, _SPAN_STEPS))
        steps = min(speed.steps, _KERNEL_STEPS)
        busy_ms = kernel_seconds(self._training.update, steps, self.hardware) / steps * 1000.0
        return Shares(max(0.0, 1.0 - busy_ms / speed.step_ms), None, None, spans.between())

    def _machine(self) -> dict[str, str | int | bool]:
        machine: dict[str, str | int | bool] = self.hardware.environment(
            self._training.engine.compiled, self._training.engine.deterministic
        ).model_dump()
        return {**machine, "python": platform.python_version(), "system": platform.platform()}

    def _gpu_memory(self) -> int | None:
        device = self.hardware.device
        return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


class _Parts:
    """Times the parts of training on a CPU within the block."""

    def __init__(self, training: Training) -> None:
        self._update, self._draw = Stopwatch(), Stopwatch()
        self._watches = ExitStack()
        self._training = training

    def __enter__(self) -> _Parts:
        self._watches.enter_context(self._update.on(self._training.engine, "update"))
        self._watches.enter_context(self._draw.on(self._training.batches, "train"))
        self._watches.enter_context(self._draw.on(self._training.batches, "starts"))
        return self

    def __exit__(self, *error: object) -> None:
        self._watches.close()

    def shares(self, wall_s: float) -> Shares:
        """Batches are drawn within updates."""
        loop, batches = 1.0 - self._update.seconds / wall_s, self._draw.seconds / wall_s
        return Shares(loop + batches, batches, loop, None)


class Stopwatch:
    """Adds up the seconds spent in some methods; one that is called by another of them counts with that."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running = False

    @contextmanager
    def on(self, owner: object, name: str) -> Iterator[None]:
        """Measure a method of `owner` within the block."""
        call: Callable[..., object] = getattr(owner, name)

        def measured(*arguments: object) -> object:
            if self._running:
                return call(*arguments)
            self._running = True
            begin = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin
                self._running = False

        setattr(owner, name, measured)
        try:
            yield
        finally:
            setattr(owner, name, call)


class _Spans:
    """Marks the begin and the end of an engine's updates on the GPU's own clock within the block."""

    def __init__(self, engine: object) -> None:
        self._engine = engine
        self._call: Callable[..., object] = engine.update  # type: ignore[attr-defined]
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> _Spans:
        setattr(self._engine, _UPDATE, self._marked)
        return self

    def __exit__(self, *error: object) -> None:
        setattr(self._engine, _UPDATE, self._call)

    def _marked(self, *arguments: object) -> object:
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        result = self._call(*arguments)
        end.record()
        self._spans.append((begin, end))
        return result

    def between(self) -> float:
        """The share of time from the first begin to the last end in which no update was on."""
        inside: float = sum(begin.elapsed_time(end) for begin, end in self._spans)
        whole: float = self._spans[0][0].elapsed_time(self._spans[-1][1])
        return max(0.0, 1.0 - inside / whole)


def _power(before: float | None, after: float | None, seconds: float, tokens: int, note: str) -> Power:
    if before is None or after is None:
        return Power(None, None, note)
    if seconds < _LEAST_ENERGY_S:
        return Power(None, None, f"less than {_LEAST_ENERGY_S:.0f} s is too short to measure it")
    return Power((after - before) / seconds, (after - before) / tokens, note)


def _process_age() -> float:
    """Seconds since this process began."""
    return time.time() - psutil.Process().create_time()
