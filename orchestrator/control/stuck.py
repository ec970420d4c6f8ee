"""Notices runs that do not get on: no step for long, a machine of theirs unused, or one out of reach."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from orchestrator.clock import Clock
from orchestrator.control.board import Board
from orchestrator.control.fleet import FleetWatcher
from orchestrator.control.live import LiveBoard
from orchestrator.control.scheduling import Scheduling
from orchestrator.domain import gang
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import RunState
from orchestrator.domain.stuck import LEFT_S, WAIT_S, could_start, should_step, stands_still
from orchestrator.notify.texts import time
from orchestrator.store.ledger import Ledger

LOOK_S: Final = 15.0
_IDLE_S: Final = 60.0
_LISTENING_S: Final = 60.0
"""An agent that has been silent for longer is another matter: see :mod:`orchestrator.control.sight`."""
_MOST: Final = 50
"""Runs that are told of at a time."""

Tell = Callable[[RunRecord, str, str, list[str]], None]
"""Tell of a run: the key of the occurrence, what is the matter, lines of details."""


class Stuck:
    """Called now and then. Tells of each occurrence once; perhaps once more after a restart, with its key."""

    def __init__(
        self,
        ledger: Ledger,
        live: LiveBoard,
        board: Board,
        scheduling: Scheduling,
        watcher: FleetWatcher,
        clock: Clock,
        tell: Tell,
    ) -> None:
        self._ledger = ledger
        self._live = live
        self._board = board
        self._scheduling = scheduling
        self._watcher = watcher
        self._clock = clock
        self._tell = tell
        self._told: set[tuple[str, str]] = set()
        self._beside: dict[str, float] = {}
        """Runs that wait beside an unused machine -> since when, in monotonic seconds."""

    def look(self) -> float:
        """Tell of what is stuck; seconds until it is worth another look."""
        with self._board.lock:
            idle, attempts = self._board.idle, self._board.open_attempts()
        if idle:
            self._beside.clear()
            self._told.clear()
            return _IDLE_S
        for attempt in attempts:
            self._look_at(attempt)
        self._look_at_waiting()
        return LOOK_S

    def _look_at(self, attempt: AttemptRecord) -> None:
        with self._ledger.read() as ledger:
            run = ledger.run(attempt.run_id)
        if run.attempt != attempt.number:
            return
        if attempt.abandoned or run.state == RunState.UNREACHABLE:
            self._unreachable(run, attempt)
        else:
            self._no_step(run, attempt)

    def _no_step(self, run: RunRecord, attempt: AttemptRecord) -> None:
        sign = self._live.sign(run.id, attempt.number)
        if sign is None or not sign.spoke or not should_step(run, attempt, sign.step):
            return
        now = self._clock.monotonic()
        still_s = now - sign.stepped
        step_s = sign.step_s
        if now - sign.at > _LISTENING_S or not stands_still(still_s, step_s):
            return
        key = f"a{attempt.number} step {sign.step}"
        at = "it has not made a step yet" if sign.step is None else f"at step {sign.step}"
        pace = f"; a step took {step_s:.3g} s" if step_s is not None else ""
        where = f"{at}, on {gang.where(attempt)}{pace}"
        lines = [where, f"what it says: orch logs {run.id}"]
        self._say(run, key, f"no step for {time(still_s)}", lines)

    def _unreachable(self, run: RunRecord, attempt: AttemptRecord) -> None:
        silence = self._live.silence(run.id, attempt.number)
        if run.state == RunState.UNREACHABLE and silence > run.spec.away + LEFT_S:
            waits = "its run waits for it"
        elif run.state == RunState.QUEUED and self._since(attempt.ended_at) > LEFT_S:
            waits = "the run waits until it is back, or for another machine"
        else:
            return
        where = gang.where(attempt)
        lines = [f"{where} has not been heard of for {time(silence)}; {waits}", f"why: orch why {run.id}"]
        self._say(run, f"a{attempt.number} away", f"{where} cannot be reached", lines)

    def _since(self, at: datetime | None) -> float:
        return 0.0 if at is None else (self._clock.now() - at).total_seconds()

    def _look_at_waiting(self) -> None:
        now = self._clock.monotonic()
        beside = set() if self._scheduling.draining else self._waiting_beside()
        self._beside = {run_id: self._beside.get(run_id, now) for run_id in beside}
        late = [run_id for run_id, since in self._beside.items() if now - since > WAIT_S]
        for run_id in late[:_MOST]:
            self._waits(run_id, now - self._beside[run_id])

    def _waiting_beside(self) -> set[str]:
        """Runs that could start, while nothing runs on a machine of a pool that they name."""
        rooms = self._scheduling.rooms(self._watcher.fleet).values()
        unused = {
            room.node.pool for room in rooms if room.node.alive and not room.node.closed and not room.grants
        }
        if not unused:
            return set()
        now = self._clock.now().timestamp()
        with self._board.lock:
            return {
                one.run_id
                for one in self._board.queue
                if could_start(one, now) and any(demand.pool in unused for demand in one.shape.demands)
            }

    def _waits(self, run_id: str, waited_s: float) -> None:
        fleet = self._watcher.fleet
        verdict = self._scheduling.why(run_id, fleet)
        with self._ledger.read() as ledger:
            run = ledger.run(run_id)
        if verdict is None or run.state != RunState.QUEUED:
            return
        why = verdict.why if fleet.connected else "Ray does not answer; nothing starts until it does"
        lines = [why, f"more: orch why {run_id}"]
        what = f"waits for {time(waited_s)} beside a machine that does nothing"
        self._say(run, f"a{run.attempt} waits", what, lines)

    def _say(self, run: RunRecord, key: str, what: str, lines: list[str]) -> None:
        if (run.id, key) not in self._told:
            self._tell(run, key, what, lines)
            self._told.add((run.id, key))
