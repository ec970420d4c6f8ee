"""Processes of a service, found and ended by id.

Every service is started in a session of its own. Ray's daemons move to process groups of their own and some
wipe their environment, but none leaves the session; so the session's number finds them all. An agent is in a
session of its own on purpose (see :mod:`orchestrator.agent.detach`) and is never found here.

A session's number cannot be given to another process while one member lives. When the last has ended it can,
so a number that was written down is believed only together with the time at which its session began, and
only where a member carries our marker (or is a Ray worker, which has wiped it).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.identity import ProcessId, identify
from orchestrator.clock import SYSTEM, Clock

MARKER = "ORCH_SERVICE"
"""Environment variable `STACK/SERVICE` of our services; agents and programs never have it."""
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_KILL_S = 5.0
"""How long a killed process may take to go; longer means that it waits for the system."""
RAY_GRACE_S = 1.0
"""Told to stop, Ray's daemons wait 10 s for one another; their workers get no grace either way."""


@dataclass(frozen=True)
class Member:
    """One living process of a session."""

    id: ProcessId
    name: str
    command: str

    @property
    def pid(self) -> int:
        """Its number."""
        return self.id.pid


def members(sid: int, since: float) -> list[Member]:
    """Living processes of session `sid`, which began `since` seconds after the machine started.

    Empty where the number belongs to a younger session by now.
    """
    leader = identify(sid)
    if leader is not None and leader.alive() and leader.create_time != since:
        return []
    found = [_member(pid) for pid, session in _sessions() if session == sid]
    alive = [member for member in found if member is not None and member.id.create_time >= since]
    return alive if any(_is_ours(member) for member in alive) else []


def marked_sessions(stack: str) -> dict[int, float]:
    """Sessions that hold a process with the marker of this stack: number -> when the session began.

    Processes that wipe their environment are found through others of their session.
    """
    prefix = f"{MARKER}={stack}/".encode()
    found: dict[int, float] = {}
    for pid, session in _sessions():
        if any(entry.startswith(prefix) for entry in _read(pid, "environ").split(b"\0")):
            member = identify(pid)
            if member is not None and member.alive():
                leader = identify(session)
                began = leader.create_time if leader is not None else member.create_time
                found[session] = min(began, found.get(session, began))
    return found


def end_sessions(sessions: dict[int, float], grace_s: float, clock: Clock = SYSTEM) -> list[Member]:
    """SIGTERM to every member, SIGKILL to those left after the grace. Returns who is left even then.

    Looks again until nobody is there: a daemon may be starting a worker at this moment.
    """
    began = clock.monotonic()
    told: set[ProcessId] = set()
    quiet = 0
    # Nobody twice in a row: a process that is becoming another program shows no marker for an instant.
    while quiet < 2 and clock.monotonic() - began < grace_s + _KILL_S:
        alive = _all_members(sessions)
        quiet = 0 if alive else quiet + 1
        passed_s = clock.monotonic() - began
        late = [m for m in alive if passed_s >= (min(RAY_GRACE_S, grace_s) if _is_ray(m) else grace_s)]
        _signal(late, signal.SIGKILL)
        _signal([m for m in alive if m.id not in told], signal.SIGTERM)
        told |= {member.id for member in alive}
        clock.sleep(_POLL_S)
    return _all_members(sessions)


def signal_process(process: ProcessId, number: signal.Signals) -> bool:
    """Send a signal to this very process; False where it has ended."""
    try:
        # The descriptor pins the process: between the check and the signal the number cannot be reused.
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not process.alive():
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that this process learns of their ends.

    Without this they become children of PID 1, which in many containers never collects them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def collect_exits() -> dict[int, int]:
    """Exit codes of children that have ended since the last call; negative: the signal that ended it."""
    codes: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return codes
        if pid == 0:
            return codes
        codes[pid] = os.waitstatus_to_exitcode(status)


def _all_members(sessions: dict[int, float]) -> list[Member]:
    return [member for sid, since in sessions.items() for member in members(sid, since)]


def _signal(targets: Iterable[Member], number: signal.Signals) -> None:
    for member in targets:
        signal_process(member.id, number)


def _sessions() -> Iterable[tuple[int, int]]:
    """(process, its session) of everything that runs."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                yield int(entry.name), os.getsid(int(entry.name))
            except ProcessLookupError:
                continue


def _is_ray(member: Member) -> bool:
    return member.name.startswith("ray::") or member.name in ("raylet", "gcs_server")


def _is_ours(member: Member) -> bool:
    marker = f"{MARKER}=".encode()
    marked = any(entry.startswith(marker) for entry in _read(member.pid, "environ").split(b"\0"))
    return marked or member.name.startswith("ray::")


def _member(pid: int) -> Member | None:
    who = identify(pid)
    if who is None or not who.alive():
        return None
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return Member(who, _read(pid, "comm").decode(errors="replace").strip(), command)


def _read(pid: int, file: str) -> bytes:
    """A file of the process; empty where it has ended or belongs to somebody else."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:
        return b""
