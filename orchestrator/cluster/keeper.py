"""Keeps one service running: decides from what it sees when to start, to wait, and to start again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, Protocol

from orchestrator.clock import Clock
from orchestrator.cluster.processes import Member
from orchestrator.cluster.program import program_digest
from orchestrator.cluster.services import Service
from orchestrator.cluster.state import Process, ServicePhase, ServiceRecord
from orchestrator.errors import SetupError

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pause before start number 2, 3, … in a row."""
STARTING_PROBE_S: Final = 0.2
READY_PROBE_S: Final = 10.0
NEED_PROBE_S: Final = 0.5
STEADY_S: Final = 60.0
"""A service that was ready for this long begins again with the shortest pause."""
TAIL_LINES: Final = 3


class Machine(Protocol):
    """What a keeper does; :class:`orchestrator.cluster.host.Host` is the real one."""

    clock: Clock

    def start(self, service: Service) -> Process:
        """Start it in a session of its own."""
        ...

    def exit_code(self, process: Process) -> int | None:
        """How it ended; None while it runs and where nobody knows."""
        ...

    def alive(self, process: Process) -> bool:
        """Whether it runs."""
        ...

    def members(self, leader: Process) -> list[Member]:
        """Living processes of its session."""
        ...

    def end(self, leader: Process) -> None:
        """End its session."""
        ...

    def port_problem(self, host: str, port: int) -> str | None:
        """Why nobody can listen there; None where one can."""
        ...

    def listens(self, leader: Process, port: int) -> bool:
        """Whether a process of its session listens on the port."""
        ...

    def kill(self, member: Member) -> None:
        """End one process at once."""
        ...

    def log_file(self, name: str) -> Path:
        """Where its output goes."""
        ...


class Keeper:
    """One service. `tick` is called a few times a second and never waits longer than a probe."""

    def __init__(self, service: Service, machine: Machine, record: ServiceRecord | None = None) -> None:
        self.service = service
        self.record = record or ServiceRecord(name=service.name, since=machine.clock.now())
        self._machine = machine
        now = machine.clock.monotonic()
        self._next_start = now
        self._next_probe = now
        self._phase_since = now
        self._answered_at = now
        self._in_a_row = 0

    def tick(self) -> None:
        """Look, and act on what was seen."""
        if self.record.leader is not None and self.record.fingerprint != self.service.fingerprint:
            self._restart("its settings changed", count=False)
        match self.record.phase:
            case ServicePhase.WAITING:
                self._try_start()
            case ServicePhase.STARTING:
                self._watch_start()
            case ServicePhase.READY | ServicePhase.SILENT:
                self._watch()

    def replace(self, why: str) -> None:
        """Start it again, because somebody else knows that it is of no use any more."""
        self._restart(why, count=True)

    def ready_for_s(self) -> float:
        """How long it has been ready; 0 where it is not."""
        return self._in_phase_s() if self.record.phase is ServicePhase.READY else 0.0

    # ------------------------------------------------------------------ waiting

    def _try_start(self) -> None:
        now = self._machine.clock.monotonic()
        if now < self._next_start:
            return
        if self.service.needs is not None and not self.service.needs():
            self._next_start = now + NEED_PROBE_S
            self.record.message = "what it needs does not answer yet"
            return
        busy = self._machine.port_problem(*self.service.listens) if self.service.listens else None
        if busy is not None:
            self._failed(busy)
            return
        program = program_digest() if self.service.ours else ""
        try:
            leader = self._machine.start(self.service)
        except (OSError, SetupError) as error:
            self._failed(f"cannot be started: {error}")
            return
        self.record.leader, self.record.vital = leader, []
        self.record.fingerprint = self.service.fingerprint
        self.record.program = program
        self._enter(ServicePhase.STARTING)
        log.info("%s: started as process %d", self.service.name, leader.pid)

    # ------------------------------------------------------------------ starting

    def _watch_start(self) -> None:
        ended = self._why_ended() if self.record.vital else self._find_vital()
        if ended is not None:
            self._failed(ended)
        elif self.record.vital and self._answers(STARTING_PROBE_S) and self._answered_itself():
            self._became_ready()
        elif self._in_phase_s() > self.service.start_s:
            self._failed(f"did not answer within {self.service.start_s:.0f} s")

    def _find_vital(self) -> str | None:
        """Learn which processes are the service; a reason where it is known not to start."""
        leader = self._leader()
        if not self.service.daemons:
            self.record.vital = [leader]
            return self._why_ended()
        if self._machine.alive(leader):
            return None
        code = self._machine.exit_code(leader)
        found = [m for m in self._machine.members(leader) if m.name in self.service.daemons]
        missing = set(self.service.daemons) - {member.name for member in found}
        if code not in (0, None) or missing:
            return f"ended with {code} before {' and '.join(sorted(missing)) or 'it'} ran{self._tail()}"
        self.record.vital = [Process(pid=m.id.pid, create_time=m.id.create_time) for m in found]
        return None

    def _answered_itself(self) -> bool:
        """False where the answer came from a stranger who took the port while the service was starting."""
        listens = self.service.listens
        return listens is None or self._machine.listens(self._leader(), listens[1])

    def _became_ready(self) -> None:
        self.record.start_s = round(self._in_phase_s(), 2)
        self.record.failures = 0
        self._enter(ServicePhase.READY)
        self._answered_at = self._machine.clock.monotonic()
        log.info("%s: ready after %.1f s", self.service.name, self.record.start_s)
        if self.service.unwanted:
            self._end_unwanted()

    def _end_unwanted(self) -> None:
        vital = {process.pid for process in self.record.vital}
        for member in self._machine.members(self._leader()):
            if self.service.unwanted in member.command and member.pid not in vital:
                log.info("%s: ending process %d, which is of no use", self.service.name, member.pid)
                self._machine.kill(member)

    # ------------------------------------------------------------------ running

    def _watch(self) -> None:
        why = self._why_ended()
        if why is not None:
            self._restart(why, count=True)
            return
        answers = self._answers(READY_PROBE_S)
        silent_s = self._machine.clock.monotonic() - self._answered_at
        if answers and self.record.phase is ServicePhase.SILENT:
            log.info("%s: answers again", self.service.name)
            self._enter(ServicePhase.READY)
        elif answers is False and silent_s > self.service.silent_s:
            self._restart(f"has not answered for {silent_s:.0f} s", count=True)
        elif answers is False and self.record.phase is ServicePhase.READY:
            log.warning("%s: does not answer", self.service.name)
            self._enter(ServicePhase.SILENT)
            self.record.message = "it runs but does not answer"

    def _why_ended(self) -> str | None:
        for process in self.record.vital:
            if not self._machine.alive(process):
                code = self._machine.exit_code(process)
                how = f"ended with {code}" if code is not None else "ended"
                # What started a daemon has written the log, and knows nothing of its end.
                return f"process {process.pid} {how}{'' if self.service.daemons else self._tail()}"
        return None

    def _answers(self, every_s: float) -> bool | None:
        """Whether it answers; None where it was asked less than `every_s` ago."""
        if self.service.probe is None:
            return True
        if self._machine.clock.monotonic() < self._next_probe:
            return None
        answers = self.service.probe()
        now = self._machine.clock.monotonic()
        self._next_probe = now + every_s
        if answers:
            self._answered_at = now
        return answers

    # ------------------------------------------------------------------ again

    def _failed(self, why: str) -> None:
        self.record.failures += 1
        self._restart(why, count=True)

    def _restart(self, why: str, count: bool) -> None:
        """End what is left and start again: after a pause where that counts as a failure, else at once."""
        log.warning("%s: starting again: %s", self.service.name, why)
        if not count or self.ready_for_s() > STEADY_S:
            self._in_a_row = 0
        if self.record.leader is not None:
            self._machine.end(self.record.leader)
            self.record.restarts += count
        pause_s = BACKOFF_S[min(self._in_a_row, len(BACKOFF_S) - 1)] if count else 0.0
        self._in_a_row += count
        self._next_start = self._machine.clock.monotonic() + pause_s
        self.record.leader, self.record.vital = None, []
        self._enter(ServicePhase.WAITING)
        self.record.message = why

    def _enter(self, phase: ServicePhase) -> None:
        self.record.phase = phase
        self.record.message = ""
        self.record.since = self._machine.clock.now()
        self._phase_since = self._machine.clock.monotonic()
        self._next_probe = self._phase_since

    def _in_phase_s(self) -> float:
        return self._machine.clock.monotonic() - self._phase_since

    def _leader(self) -> Process:
        assert self.record.leader is not None, "only asked while it is started"
        return self.record.leader

    def _tail(self) -> str:
        """The last lines of the log, for the reason."""
        lines = tail(self._machine.log_file(self.service.name), TAIL_LINES)
        return ": " + " | ".join(lines) if lines else ""


def tail(path: Path, lines: int) -> list[str]:
    """The last lines with text of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 200 * lines - 2000))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip()[:300] for line in text.splitlines() if line.strip()][-lines:]
