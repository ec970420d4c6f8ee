"""What a training program may rely on when it runs under `orch`. Standard library only.

A program uses :func:`run_context` and writes checkpoints, metrics and artifacts through it. Outside an
orchestrator the context is a null object that does nothing, so the program needs no special case.

Environment variables (all optional):

==========================  =========================================================================
``ORCH_RUN_ID``             the run's id, stable across machines
``ORCH_ATTEMPT``            the number of this launch of the run, from 1
``ORCH_CHECKPOINT_DIR``     write ``step-00002000/`` here under another name, then rename it
``ORCH_RESTORE_DIR``        directory of the checkpoint to go on from; unset when there is none
``ORCH_METRICS_FILE``       append JSON lines ``{"step": 3, "time": unix_ms, "metrics": {"a": 1.0}}``
``ORCH_ARTIFACT_DIR``       files left here are kept with the run
``ORCH_DEVICE``             ``cpu`` or ``cuda``: what the placement granted
``ORCH_CPUS``               how many threads the placement granted
``ORCH_GPU_MEMORY``         bytes of the GPU that the program may use, where it shares one; see
                            :func:`gpu_allowance`
``ORCH_PAUSE_STEP``         step at which to log, save and end with :data:`EXIT_SAVED` unasked: a sweep
                            compares its runs there. A program that ignores it is asked by SIGTERM
``ORCH_CACHE_DIR``          what later runs on this node can use again; the user's cache when unset
``ORCH_COMPILED_WANTED``    folder for an empty file named by the key of the compiled step that is needed. It
                            goes once the step is in the cache or cannot be had. Unset where none are shared
==========================  =========================================================================

``SIGTERM`` means "save and stop"; exit code :data:`EXIT_SAVED` answers "saved, resume me" and
:data:`EXIT_USER_ERROR` "the configuration or data is wrong, trying again will not help". Exit code 0 always
means "finished", also after SIGTERM.

A program of several ranks finds ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and
``MASTER_PORT`` as torchrun sets them. Rank 0's checkpoints, metrics and artifacts are kept. A rank that ends
only because another has gone says so with exit code :data:`EXIT_LOST_RANK`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

EXIT_SAVED: Final = 75
"""Saved a checkpoint after SIGTERM and ended; the run is not finished."""
EXIT_USER_ERROR: Final = 78
"""The last line on stderr says what the user has to change."""
EXIT_LOST_RANK: Final = 76
"""Another rank has ended or does not answer; what is to blame, that one knows."""

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk that is full: they pass once somebody makes room."""
_UNWRITTEN_MOST: Final = 64 << 20

BESIDE_TRAINING: Final = 10
"""Niceness of what goes on beside training: a ninth of the time where somebody else wants the processor."""

GPU_CONTEXT: Final = 512 << 20
"""Bytes of a GPU that CUDA takes for each process before the program has any; an upper estimate."""

DATASET_FILE: Final = "dataset.json"
"""Optional artifact: ``{"name": …, "digest": …, "profile": {…}}`` of the data that the program trains on."""
SAMPLE_FILE: Final = "sample.txt"
"""Optional artifact: text that the trained model has written."""
STEP_PREFIX: Final = "step-"
MARK_FILE: Final = "checkpoint.json"
"""Optional file in a checkpoint directory: ``{"step": 2000, "metrics": {"val/loss": 1.9}, "versions":
{"torch": "2.13"}}``."""


def yield_processor() -> None:
    """Let this thread, and those that it starts from now on, work only where others leave time.

    For what goes on beside training, such as writing and uploading checkpoints.
    """
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):  # a sandbox may forbid it; then it competes
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, max(now, BESIDE_TRAINING))


def gpu_allowance(share: int) -> int:
    """Bytes that a program may allocate of its share of a GPU: CUDA's own part comes from it too."""
    return max(share - GPU_CONTEXT, share // 2)


def step_name(step: int) -> str:
    """The directory name of a finished checkpoint, ``step-00002000``."""
    return f"{STEP_PREFIX}{step:08d}"


def parse_step(name: str) -> int | None:
    """The step of a finished checkpoint directory, None for any other name."""
    digits = name.removeprefix(STEP_PREFIX)
    return int(digits) if digits != name and digits.isdigit() else None


class RunContext(Protocol):
    """How a training program talks to whatever runs it."""

    run_id: str | None
    attempt: int
    device: str | None
    """``cpu``, ``cuda`` or None: the program decides."""
    cpus: int | None
    gpu_memory: int | None
    """Bytes of the GPU that this process may use, CUDA's own included; None: all."""
    pause_step: int | None
    """Step at which to log, save and end, to be resumed later; None: go on to the end."""
    restore_dir: Path | None
    checkpoint_dir: Path | None
    artifact_dir: Path | None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record measurements of one step; finite numbers only, others are recorded as ``KEY/nonfinite``."""
        ...

    def publish(self, directory: Path, step: int) -> Path:
        """Rename a finished directory to its final name beside it, which says "complete".

        OSError where that cannot be done, or where what was measured before it could not be written yet.
        """
        ...

    def stop_requested(self) -> bool:
        """True once SIGTERM has come: save and exit with EXIT_SAVED."""
        ...


class NullContext:
    """Stands in where nothing orchestrates: logs nothing, keeps checkpoints where the program puts them."""

    run_id: str | None = None
    attempt: int = 1
    device: str | None = None
    cpus: int | None = None
    gpu_memory: int | None = None
    pause_step: int | None = None

    def __init__(self, checkpoint_dir: Path | None = None, restore_dir: Path | None = None) -> None:
        self.checkpoint_dir = checkpoint_dir
        self.restore_dir = restore_dir
        self.artifact_dir = checkpoint_dir
        self._stop = _StopFlag()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Drop the measurements."""

    def publish(self, directory: Path, step: int) -> Path:
        """Rename to the final name, replacing an older checkpoint of the same step."""
        return _publish(directory, step)

    def stop_requested(self) -> bool:
        """True once SIGTERM or SIGINT has come."""
        return self._stop.requested


class EnvContext:
    """The context that an agent describes through the environment."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.run_id: str | None = env["ORCH_RUN_ID"]
        self.attempt = int(env.get("ORCH_ATTEMPT", "1"))
        self.device = env.get("ORCH_DEVICE")
        self.cpus = int(env["ORCH_CPUS"]) if "ORCH_CPUS" in env else None
        self.gpu_memory = int(env["ORCH_GPU_MEMORY"]) if "ORCH_GPU_MEMORY" in env else None
        self.pause_step = int(env["ORCH_PAUSE_STEP"]) if "ORCH_PAUSE_STEP" in env else None
        self.restore_dir = _path(env, "ORCH_RESTORE_DIR")
        self.checkpoint_dir = _path(env, "ORCH_CHECKPOINT_DIR")
        self.artifact_dir = _path(env, "ORCH_ARTIFACT_DIR")
        self._metrics_file = _path(env, "ORCH_METRICS_FILE")
        self._unwritten = b""
        """Measurements that the disk had no room for yet."""
        self._lock = threading.Lock()
        self._stop = _StopFlag()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. What a full disk has no room for is kept in memory and goes first next time."""
        if self._metrics_file is None:
            return
        values: dict[str, float] = {}
        for key, value in metrics.items():
            if math.isfinite(value):
                values[key] = float(value)
            else:
                values[f"{key}/nonfinite"] = 1.0
        line = json.dumps({"step": step, "time": time.time_ns() // 1_000_000, "metrics": values})
        try:
            self._write(self._metrics_file, line.encode() + b"\n")
        except OSError as error:
            if error.errno not in NO_ROOM or len(self._unwritten) > _UNWRITTEN_MOST:
                raise

    def publish(self, directory: Path, step: int) -> Path:
        """Rename to the final name, replacing an older checkpoint of the same step."""
        if self._metrics_file is not None:
            self._write(self._metrics_file, b"")
        return _publish(directory, step)

    def _write(self, file: Path, data: bytes) -> None:
        """Append what is unwritten and this, usually by one write, so that a reader never sees half a line.

        Of a line that is cut off by a full disk the rest follows, before anything else.
        """
        with self._lock:
            self._unwritten += data
            if not self._unwritten:
                return
            with file.open("ab", buffering=0) as out:
                while self._unwritten:
                    self._unwritten = self._unwritten[out.write(self._unwritten) :]

    def stop_requested(self) -> bool:
        """True once SIGTERM or SIGINT has come."""
        return self._stop.requested


def run_context(env: Mapping[str, str] | None = None) -> RunContext:
    """The context of this process: the agent's when ``ORCH_RUN_ID`` is set, else a null object."""
    env = os.environ if env is None else env
    return EnvContext(env) if env.get("ORCH_RUN_ID") else NullContext()


class _StopFlag:
    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(env[name]) if env.get(name) else None


def _publish(directory: Path, step: int) -> Path:
    final = directory.parent / step_name(step)
    if final.exists():
        shutil.rmtree(final, ignore_errors=True)  # The agent may be taking it over at this very moment.
    directory.rename(final)
    return final
