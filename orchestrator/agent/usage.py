"""How much time of the processors some processes have used, and the whole machine. Reads /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

from orchestrator.agent.procfs import PROC, Proc

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PARENT: Final = 1
_TIMES: Final = slice(11, 15)
"""utime, stime and, of children that were waited for, cutime and cstime; counted behind the command."""
_NOT_BUSY: Final = frozenset({3, 4, 7})
"""Of the machine's line: idle, iowait, and steal, in which another machine had the processor."""
_BUSY: Final = tuple(field for field in range(8) if field not in _NOT_BUSY)
"""What follows, guest time, is in user time already."""
_REVIEW: Final = 30
"""Looks after which the number of a process may be another's."""


class Usage(Protocol):
    """Seconds of processors that were used. Both numbers never fall."""

    def ours(self) -> float:
        """By what is watched."""
        ...

    def machine(self) -> float | None:
        """By everything; None where the system does not tell."""
        ...


class TreeUsage:
    """The usage of one process with all that came from it, also of what has ended meanwhile.

    A process that ends adds its time to its parent's once that has waited for it; one whose parent ignores
    SIGCHLD is lost with its time. Those that lose their parent go to a subreaper in the tree, the keeper.
    """

    def __init__(self, root: int, proc: Path = PROC) -> None:
        self._root = root
        self._proc = Proc(proc)
        self._foreign: set[int] = set()
        """Processes that came from elsewhere: they need not be looked at again."""
        self._looks = 0
        self._highest = 0

    def ours(self) -> float:
        """By the tree. Between a process's end and the look at its parent its time may be missing, for one
        look."""
        pids = set(self._proc.pids())
        self._foreign = self._foreign & pids if self._looks % _REVIEW else set()
        self._looks += 1
        # Parents have mostly the lower numbers, and are read first: what ends in between is missing in this
        # look rather than counted twice.
        found = {pid: stat for pid in sorted(pids - self._foreign) if (stat := self._proc.stat(pid))}
        parents = {pid: int(stat[_PARENT]) for pid, stat in found.items()}
        ours = [pid for pid in found if self._belongs(pid, parents)]
        total = sum(int(ticks) for pid in ours for ticks in found[pid][_TIMES])
        self._highest = max(self._highest, total)
        return self._highest / _TICKS_PER_SECOND

    def machine(self) -> float | None:
        """By everything that runs here."""
        name, *ticks = self._proc.read("stat").partition("\n")[0].split()[:9] or [""]
        if name != "cpu" or len(ticks) < len(_BUSY) + len(_NOT_BUSY):
            return None
        return sum(int(ticks[field]) for field in _BUSY) / _TICKS_PER_SECOND

    def _belongs(self, pid: int, parents: dict[int, int]) -> bool:
        """Whether it came from the root; notes those of which it is certain that they did not."""
        way: list[int] = []
        while pid in parents and pid != self._root and pid not in way:
            way.append(pid)
            pid = parents[pid]
        if pid == 0 or pid in self._foreign:
            self._foreign.update(way)
        return pid == self._root
