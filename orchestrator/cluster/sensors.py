"""What can be seen of the machine and its owner: processes, login sessions, the power supply.

Each sensor answers None where the system does not let it look; that is no reason for anything.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil

from orchestrator.agent.procfs import PROC, Proc

POWER: Final = Path("/sys/class/power_supply")
LOGIND: Final = Path("/run/systemd/sessions")
_COMM: Final = 15
"""Bytes of a program's name that the kernel keeps."""
_PARENT: Final = 1
_STATE: Final = 0
_LOGINCTL_S: Final = 5.0
_SESSION_FIELDS: Final = ("Name", "Class", "State", "Type", "LockedHint", "IdleHint", "IdleSinceHint")


class Processes:
    """The process table. `proc` is where the system shows it."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = Proc(proc)

    def named(self, wanted: Iterable[str]) -> dict[int, str]:
        """Living processes that are called like one of `wanted`: number -> that name.

        By the name that the kernel shows, or by the file that their command line begins with, which is the
        one that counts for a Windows program under Wine. Upper and lower case are the same.
        """
        names = {name.casefold(): name for name in wanted}
        short = {name[:_COMM]: name for name in names}
        found = {}
        for pid in self._proc.pids() if names else ():
            shown = self._proc.read(f"{pid}/comm").strip().casefold()
            command = self._proc.read(f"{pid}/cmdline").partition("\0")[0]
            file = command.replace("\\", "/").rpartition("/")[2].casefold()
            key = file if file in names else short.get(shown)
            if key is not None and self._lives(pid):
                found[pid] = names[key]
        return found

    def descends(self, pid: int, roots: Iterable[int]) -> bool:
        """Whether a process is one of `roots` or came from one."""
        wanted, seen = set(roots), set[int]()
        while pid > 0 and pid not in seen:
            if pid in wanted:
                return True
            seen.add(pid)
            stat = self._proc.stat(pid)
            pid = int(stat[_PARENT]) if stat else 0
        return False

    def _lives(self, pid: int) -> bool:
        stat = self._proc.stat(pid)
        return bool(stat) and stat[_STATE] not in ("Z", "X")


def on_battery(folder: Path = POWER) -> bool | None:
    """Whether the machine lives on its battery; False where it has none, None where nobody can tell."""
    if not folder.is_dir():
        return None
    supplies = [_supply(entry) for entry in sorted(folder.iterdir())]
    if any(kind != "Battery" and online == "1" for kind, _, online, _ in supplies):
        return False
    # A mouse has a battery as well; its scope is "Device".
    return any(
        kind == "Battery" and scope != "Device" and status == "Discharging"
        for kind, scope, _, status in supplies
    )


def _supply(folder: Path) -> tuple[str, str, str, str]:
    """Type, scope, online and status; empty where a supply does not have it."""
    kind, scope, online, status = (_text(folder / name) for name in ("type", "scope", "online", "status"))
    return kind, scope, online, status


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def people(within_s: float, now: float, folder: Path = LOGIND) -> list[str] | None:
    """Who has a login session with input during the last `within_s`; None where nobody can tell.

    `now` is in seconds since 1970. Asks logind where it runs, else looks at the terminals of utmp's sessions.
    """
    if folder.is_dir():
        sessions = [name for name in os.listdir(folder) if not name.endswith(".ref")]
        return logind_people(sessions, within_s, now) if sessions else []
    return terminal_people(within_s, now)


def logind_people(
    sessions: list[str], within_s: float, now: float, ask: Callable[[list[str]], str | None] | None = None
) -> list[str] | None:
    """The same of logind's sessions. `ask` answers what `loginctl show-session` prints for them.

    A desktop says itself when it is idle, and that it is locked; of other sessions logind knows when their
    terminal was last read from.
    """
    told = (ask or _loginctl)(sessions)
    if told is None:
        return None
    found = set()
    for block in told.split("\n\n"):
        session = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if _at_work(session, within_s, now):
            found.add(session.get("Name") or "somebody")
    return sorted(found)


def _at_work(session: dict[str, str], within_s: float, now: float) -> bool:
    if session.get("Class") != "user" or session.get("State") == "closing":
        return False
    since = int(session.get("IdleSinceHint") or 0) / 1e6
    recent = since > 0 and now - since < within_s
    if session.get("Type") not in ("x11", "wayland", "mir"):
        return recent
    if session.get("LockedHint") == "yes" or session.get("State") != "active":
        return False
    return session.get("IdleHint") == "no" or recent


def _loginctl(sessions: list[str]) -> str | None:
    fields = [part for name in _SESSION_FIELDS for part in ("-p", name)]
    try:
        done = subprocess.run(
            ["loginctl", "show-session", *sessions, *fields],
            capture_output=True,
            text=True,
            timeout=_LOGINCTL_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Not 0 where one of the sessions has ended meanwhile; what it says of the others counts.
    return done.stdout if done.stdout or done.returncode == 0 else None


def terminal_people(within_s: float, now: float, dev: Path = Path("/dev")) -> list[str] | None:
    """The same of the sessions that utmp lists, by when each terminal was last read from."""
    try:
        users = psutil.users()
    except (OSError, psutil.Error):
        return None
    found = set()
    for user in users:
        try:
            used = os.stat(dev / (user.terminal or "none")).st_atime
        except OSError:
            continue
        if now - used < within_s:
            found.add(user.name)
    return sorted(found)
