"""The clock of a simulated world, and what its controller has recorded."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from orchestrator.control.board import running_of, waiting_of
from orchestrator.domain.demand import Demand, Shape, shape_of
from orchestrator.domain.planner import Limits
from orchestrator.domain.queue import Queue, Waiting
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.room import Grant
from orchestrator.domain.states import RunState
from orchestrator.spec.models import Variant
from tests.simulation.fleet import BEGIN, Agent, Machine, speed


@dataclass
class Books:
    """Everything, real and recorded. :meth:`step` makes the next thing happen."""

    seed: int
    crashes: bool = True
    random: random.Random = field(init=False)
    now: float = 0.0
    runs: dict[str, RunRecord] = field(default_factory=dict)
    attempts: dict[tuple[str, int], AttemptRecord] = field(default_factory=dict)
    agents: dict[tuple[str, int], Agent] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    """Work left of a run by its committed checkpoints."""
    commits: list[tuple[str, int]] = field(default_factory=list)
    fences: dict[str, int] = field(default_factory=dict)
    queue: Queue = field(default_factory=Queue)
    coming: dict[str, Grant] = field(default_factory=dict)
    promised: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    check: Callable[[Any, str, Any], None] = lambda world, what, about: None
    events: int = 0
    looks_at: float = 0.0
    """Unix time of the next look that was asked for."""
    quiet: bool = False
    """No new runs and no more accidents: everything has to come to its end."""
    _open_attempts: dict[tuple[str, int], AttemptRecord] = field(default_factory=dict)
    _grants: dict[tuple[str, int], tuple[RunRecord, AttemptRecord, Grant]] = field(default_factory=dict)
    _shapes: dict[tuple[str, object], Shape] = field(default_factory=dict)
    _live: dict[str, RunRecord] = field(default_factory=dict)
    """Runs that have not ended."""
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    # ---- time

    @property
    def instant(self) -> datetime:
        """Now, as records have it."""
        return BEGIN + timedelta(seconds=self.now)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen later."""
        self._number += 1
        heapq.heappush(self._heap, (self.now + seconds, self._number, action))

    def step(self) -> bool:
        """The next event and what the controller makes of it; False where nothing is left."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        self.events += 1
        action()
        return True

    def _about(self, mean: float) -> float:
        return self.random.expovariate(1 / mean)

    # ---- what the controller records

    def save_run(self, run: RunRecord) -> None:
        """Commit to the ledger, and let the queue follow."""
        self.check(self, "save", run)
        self.runs[run.id] = run
        if run.state.final:
            self._live.pop(run.id, None)
        else:
            self._live[run.id] = run
        self._line_up(run)

    def _line_up(self, run: RunRecord) -> None:
        if run.state == RunState.QUEUED:
            self.queue.add(waiting_of(run))
        else:
            self.queue.remove(run.id)

    def save_attempt(self, attempt: AttemptRecord) -> None:
        """Commit to the ledger."""
        key = (attempt.run_id, attempt.number)
        self.attempts[key] = attempt
        if attempt.ended:
            self._open_attempts.pop(key, None)
            self._grants.pop(key, None)
        else:
            self._open_attempts[key] = attempt

    def open_attempts(self) -> list[AttemptRecord]:
        """Attempts that have not ended."""
        return list(self._open_attempts.values())

    def of_run(self, run_id: str) -> list[AttemptRecord]:
        """All attempts of a run."""
        newest = self.runs[run_id].attempt
        return [self.attempts[run_id, number] for number in range(1, newest + 1)]

    def grants(self) -> list[Grant]:
        """What they hold, one for each rank."""
        found = []
        for attempt in self.open_attempts():
            first = self._grant(attempt)
            found.append(first)
            for m in attempt.members:
                found.append(replace(first, ray_id=m.ray_id, node=m.node, gpu_ids=m.gpu_ids))
        return found

    def _grant(self, attempt: AttemptRecord) -> Grant:
        run, key = self.runs[attempt.run_id], (attempt.run_id, attempt.number)
        made = self._grants.get(key)
        if made is None or made[0] is not run or made[1] is not attempt:
            begun, left = attempt.created_at.timestamp(), self._guess(run.id, attempt.variant)
            grant = running_of(run, attempt, remaining=left, saved=begun, now=self.instant.timestamp())
            made = self._grants[key] = (run, attempt, grant)
        return made[2]

    def _takes(self, waiting: Waiting, demand: Demand) -> float | None:
        run = self.runs[waiting.run_id]
        return self._guess(run.id, run.spec.placement[demand.index])

    def _guess(self, run_id: str, variant: Variant) -> float | None:
        """An estimate of how long a run takes there: wrong by up to a factor of four, or none at all."""
        chance = random.Random(run_id)
        wrong = chance.choice((None, chance.uniform(0.25, 4)))
        return None if wrong is None else wrong * self.work[run_id] / speed(variant)

    def shape(self, run: RunRecord) -> Shape:
        """What the spec of a run asks for, whichever pool its user prefers."""
        key = (run.id, run.avoid)
        if key not in self._shapes:
            self._shapes[key] = shape_of(run.spec, avoid=run.avoid)
        return self._shapes[key]

    def live(self) -> list[RunRecord]:
        """Runs that have not ended."""
        return list(self._live.values())


def held_by(attempt: AttemptRecord) -> list[tuple[str, tuple[int, ...]]]:
    """Ray node and GPUs of each rank."""
    return [(attempt.ray_id, attempt.gpu_ids), *((m.ray_id, m.gpu_ids) for m in attempt.members)]
