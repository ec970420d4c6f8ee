"""PyTorch's profiler around a few training steps: where their time goes, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from trainer.device import Hardware
from trainer.errors import TrainerError
from trainer.progress import say
from trainer.train import Training

TRACE_FILE = "trace.json"
"""For chrome://tracing or ui.perfetto.dev."""
TABLE_FILE = "operators.txt"
TRACED_STEPS = 5
WARM_UP_STEPS = 20
_ROWS = 15


@contextmanager
def traced(
    owner: object, method: str, folder: Path, hardware: Hardware, warm_up: int = WARM_UP_STEPS
) -> Iterator[None]:
    """Within the block, trace TRACED_STEPS calls of a method of `owner` after `warm_up` calls.

    ``trace.json`` and ``operators.txt`` in the folder, and the first rows of the latter on stdout.

    Raises:
        TrainerError: they cannot be written.
    """
    call: Callable[..., object] = getattr(owner, method)
    last = warm_up + TRACED_STEPS
    calls = 0
    recording: profile | None = None

    def counted(*arguments: object) -> object:
        nonlocal calls, recording
        calls += 1
        if calls == warm_up + 1:
            recording = _start(hardware)
        result = call(*arguments)
        if recording is not None and calls == last:
            finished, recording = recording, None
            _stop(finished, hardware)
            _write(finished, folder, hardware)
        return result

    setattr(owner, method, counted)
    try:
        yield
    finally:
        setattr(owner, method, call)
        if recording is not None:
            _stop(recording, hardware)
    if calls < last:
        say(f"no trace: that takes {last} steps, and there were {calls}")


def run_traced(training: Training, folder: Path) -> int:
    """Run a training with a trace of a few of its updates in `folder`; returns the exit code."""
    with traced(training, "update", folder, training.hardware):
        return training.run()


def kernel_seconds(step: Callable[[], object], steps: int, hardware: Hardware) -> float:
    """How long a GPU is busy with at least one kernel or copy in `steps` calls of `step`, in seconds."""
    recording = _start(hardware, operators=False)
    try:
        for _ in range(steps):
            step()
    finally:
        _stop(recording, hardware)
    events: Any = recording.events()  # type: ignore[no-untyped-call]
    spans = [(e.time_range.start, e.time_range.end) for e in events if e.device_type == DeviceType.CUDA]
    return covered(spans) / 1e6


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _start(hardware: Hardware, *, operators: bool = True) -> profile:
    activities = [ProfilerActivity.CPU] if operators else []
    if hardware.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    hardware.synchronize()
    recording = profile(activities=activities, acc_events=True)  # of the one cycle; else it warns
    recording.start()
    return recording


def _stop(recording: profile, hardware: Hardware) -> None:
    hardware.synchronize()
    recording.stop()


def _write(recording: profile, folder: Path, hardware: Hardware) -> None:
    averages: Any = recording.key_averages()
    order = "self_device_time_total" if hardware.device.type == "cuda" else "self_cpu_time_total"
    table: str = averages.table(sort_by=order, row_limit=_ROWS, max_name_column_width=60)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recording.export_chrome_trace(str(folder / TRACE_FILE))
        (folder / TABLE_FILE).write_text(f"{table}\n", encoding="utf-8")
    except (OSError, RuntimeError) as e:
        raise TrainerError(f"cannot write the trace to {folder}: {e}") from e
    say(f"{TRACED_STEPS} steps in {folder / TRACE_FILE} and {folder / TABLE_FILE}; most of their own time:")
    rows = sorted(averages, key=lambda row: getattr(row, order), reverse=True)[:_ROWS]
    whole = sum(getattr(row, order) for row in averages) or 1.0
    for row in rows:
        microseconds = getattr(row, order)
        ms, calls = microseconds / 1000.0 / TRACED_STEPS, row.count / TRACED_STEPS
        say(f"  {microseconds / whole:6.1%}  {ms:9.3f} ms/step  {calls:6.0f} calls/step  {row.key[:60]}")
