"""What ``python -m trainer bench`` has measured, for people and as JSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.config import TrainerConfig
from trainer.errors import TrainerError


@dataclass(frozen=True)
class Startup:
    """Seconds from the start of the process."""

    imported_s: float
    """PyTorch and the trainer are loaded."""
    ready_s: float
    """The data is read and the model made; so is the compiled step, where it was kept for a GPU."""
    first_step_s: float
    """The first update has been made."""
    compiled_s: float | None
    """The compiled step has taken over; None where all is uncompiled."""
    compiler_imports_s: float = 0.0
    """What the modules of PyTorch's compiler took to import after `imported_s`: a duration."""

    @property
    def beyond_imports_s(self) -> float:
        """From the start of the process to the first step, without what imports took."""
        return self.first_step_s - self.imported_s - self.compiler_imports_s


@dataclass(frozen=True)
class Speed:
    """What the clock says, and what follows from it."""

    steps: int
    """How many updates were measured."""
    step_ms: float
    """The median of rounds of a few steps each."""
    step_ms_p10: float
    """A tenth of the rounds were faster."""
    step_ms_p90: float
    """A tenth of the rounds were slower."""
    cpu_ms: float
    """Processor time of the process per step, all threads together."""
    tokens_per_s: float
    flops_per_s: float
    peak_flops_per_s: float
    """The best rate of a matrix product in the same dtype, measured."""
    published_flops_per_s: float | None
    """By the data sheet of a GPU."""
    mfu: float
    """flops_per_s / peak_flops_per_s."""
    mfu_a100: float
    """flops_per_s / 312 TFLOP/s, nanoGPT's convention."""
    mfu_cpu: float | None
    """On a CPU: as `mfu`, by processor time. What other programs on the machine take does not count."""


@dataclass(frozen=True)
class Shares:
    """Parts of the wall time of a step, 0 to 1."""

    outside_model: float
    """What is not the update's own compute. On a GPU: no kernel runs."""
    batches: float | None
    """On a CPU: drawing batches."""
    loop: float | None
    """On a CPU: Python between updates, and logging."""
    between_updates: float | None
    """On a GPU: by its own clock, after the end of an update and before the begin of the next."""


@dataclass(frozen=True)
class Power:
    """None where it is not known, which `note` explains."""

    watts: float | None
    joules_per_token: float | None
    note: str


@dataclass(frozen=True)
class Report:
    """All that is measured, as in the JSON file."""

    config: TrainerConfig
    machine: dict[str, str | int | bool]
    parameters: int
    """Without position embeddings, as nanoGPT counts."""
    start_up: Startup
    speed: Speed
    shares: Shares
    power: Power
    gpu_memory_bytes: int | None
    """The most that PyTorch had reserved."""


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    config, speed, machine, start = report.config, report.speed, report.machine, report.start_up
    where = machine["device_name"]
    if machine["device"] == "cpu":
        where = f"{where}, {machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    yield (
        f"{config.n_layer}x{config.n_embd}, {config.batch_size} x {config.block_size} tokens, "
        f"{report.parameters:,} parameters; {where}, {machine['dtype']}, "
        f"{'compiled' if machine['compiled'] else 'uncompiled'}, PyTorch {machine['torch']}"
    )
    yield (
        f"step:         {speed.step_ms:.3f} ms, median of {speed.steps} steps in rounds "
        f"(10 % to 90 %: {speed.step_ms_p10:.3f} to {speed.step_ms_p90:.3f}); "
        f"processor time {speed.cpu_ms:.3f} ms"
    )
    yield f"tokens/s:     {speed.tokens_per_s:,.0f}"
    published = speed.published_flops_per_s
    sheet = f" (data sheet: {published / 1e12:.1f})" if published is not None else ""
    yield (
        f"MFU:          {speed.mfu:.2%}: {speed.flops_per_s / 1e12:.4g} TFLOP/s of "
        f"{speed.peak_flops_per_s / 1e12:.4g} by matrix products{sheet}; {speed.mfu_a100:.3%} of an A100"
        + (f"; {speed.mfu_cpu:.2%} by processor time" if speed.mfu_cpu is not None else "")
    )
    yield f"outside the model: {_described(report.shares)}"
    power = report.power
    if power.joules_per_token is None or power.watts is None:
        yield f"energy:       {power.note}"
    else:
        yield f"energy:       {power.joules_per_token:.3g} J/token, {power.watts:.1f} W ({power.note})"
    yield (
        f"start-up:     imported after {start.imported_s:.2f} s, ready after {start.ready_s:.2f} s, "
        f"first step made after {start.first_step_s:.2f} s"
        + (
            f" (imports of the compiler: {start.compiler_imports_s:.2f} s)"
            if start.compiler_imports_s
            else ""
        )
        + (f", compiled from {start.compiled_s:.2f} s on" if start.compiled_s is not None else "")
    )
    if report.gpu_memory_bytes is not None:
        yield f"GPU memory:   {report.gpu_memory_bytes / 2**20:,.0f} MiB reserved at most"


def _described(shares: Shares) -> str:
    if shares.between_updates is not None:
        return (
            f"{shares.outside_model:.1%} of the time no kernel runs; {shares.between_updates:.1%} is "
            f"between updates"
        )
    return f"{shares.outside_model:.1%}: drawing batches {shares.batches:.1%}, the loop {shares.loop:.1%}"


def write(report: Report, file: Path) -> None:
    """The report as a JSON object.

    Raises:
        TrainerError: the file cannot be written.
    """
    content = asdict(report) | {"config": report.config.model_dump(mode="json")}
    try:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as e:
        raise TrainerError(f"cannot write {file}: {e.strerror or e}") from e
