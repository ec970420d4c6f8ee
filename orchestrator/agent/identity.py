"""Which process is meant by a number, and what this machine is. Reads /proc; no process is started.

A process id alone is not an identity, because the system gives the number to another process later. With the
time of its creation it is one, as long as the machine stays up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_STATE, _SESSION, _CREATED = 0, 3, 19
"""Fields of /proc/PID/stat (proc(5)), counted behind the command's closing bracket."""


@dataclass(frozen=True)
class ProcessId:
    """One process of this boot. `create_time` is in seconds since the machine started."""

    pid: int
    create_time: float

    def alive(self) -> bool:
        """False once it has ended, also while nobody has collected its exit status."""
        stat = _stat(self.pid)
        return stat is not None and stat[_STATE] not in ("Z", "X") and _created(stat) == self.create_time


def identify(pid: int) -> ProcessId | None:
    """The process that has this number now; None where there is none."""
    stat = _stat(pid)
    return None if stat is None else ProcessId(pid, _created(stat))


def session_members(session: int) -> list[int]:
    """The processes of one session."""
    found = []
    for entry in os.listdir("/proc"):
        stat = _stat(int(entry)) if entry.isdigit() else None
        if stat is not None and int(stat[_SESSION]) == session:
            found.append(int(entry))
    return found


def boot_id() -> str:
    """Changes whenever the machine starts."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def cpu_name() -> str | None:
    """The processor's name as its maker writes it; None where the system does not say."""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def gpu_name() -> str | None:
    """The name of the machine's first NVIDIA GPU, from the driver's files; None where there is none."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in _read(str(file)).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                return value.strip()
    return None


def oom_kills() -> int | None:
    """How many processes of this cgroup the kernel has killed for lack of memory; None where it cannot be
    read."""
    for candidate in _cgroup_event_files():
        for line in _read(candidate).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.strip().isdigit():
                return int(value)
    return None


def _cgroup_event_files() -> list[str]:
    """memory.events in the unified hierarchy, memory.oom_control in the one before it."""
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found.append(f"/sys/fs/cgroup{path}/memory.events")
        elif "memory" in controllers.split(","):
            found.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
            found.append("/sys/fs/cgroup/memory/memory.oom_control")
    return found


def _stat(pid: int) -> list[str] | None:
    text = _read(f"/proc/{pid}/stat")
    return text[text.rindex(")") + 2 :].split() if ")" in text else None


def _created(stat: list[str]) -> float:
    return int(stat[_CREATED]) / _TICKS_PER_SECOND


def _read(path: str) -> str:
    """The file's text; empty where it is missing, unreadable, or its process ends while we read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
