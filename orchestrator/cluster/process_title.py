"""What a forked process shows in /proc/PID/cmdline and environ: its own, not those of its parent."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

_ARGUMENTS, _ENVIRONMENT = 45, 47
"""First fields of two pairs in /proc/PID/stat (proc(5)), counted behind the command's closing bracket."""


def overwrite(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Write both over the memory that the kernel shows, cut off where they are longer than what was there.

    Only for a process that has no environment variables left in that memory: clear `os.environ` before, and
    set it again behind.
    """
    stat = Path("/proc/self/stat").read_text()
    fields = stat[stat.rindex(")") + 2 :].split()
    variables = [f"{name}={value}" for name, value in env.items()]
    for first, entries in ((_ARGUMENTS, argv), (_ENVIRONMENT, variables)):
        begin, end = int(fields[first]), int(fields[first + 1])
        data = b"".join(entry.encode(errors="surrogateescape") + b"\0" for entry in entries)
        size = end - begin
        ctypes.memmove(begin, data[: size - 1].ljust(size, b"\0"), size)
