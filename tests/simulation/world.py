"""A fleet under a simulated clock, scheduled by the real decisions: machines sleep, die and are cut off,
agents crash, users cancel, the controller forgets everything but its ledger.

What is simulated is what happens; what is decided comes from `orchestrator.domain`. The ledger is a
dictionary, the agents are a few lines each. Whatever happens is checked by :mod:`tests.simulation.checks`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.control.board import running_of, waiting_of
from orchestrator.domain import transitions
from orchestrator.domain.demand import Demand, demand_of, shape_of
from orchestrator.domain.fleet import GpuState, NodeInfo, NodeReport
from orchestrator.domain.liveness import Facts, Lost, Silent, may_leave, verdict
from orchestrator.domain.planner import Desk, Limits, plan
from orchestrator.domain.queue import Queue
from orchestrator.domain.records import AttemptRecord, Member, RunRecord
from orchestrator.domain.rivalry import Eviction, evictions, upgrades
from orchestrator.domain.room import Grant, Room, rooms_of
from orchestrator.domain.states import Phase, Reason, RunState
from orchestrator.domain.transitions import after_attempt, cancel, make_room
from orchestrator.spec.models import CommandProgram, RunSpec, Variant

GIB = 2**30
BEGIN = datetime(2026, 3, 1, 20, 0, tzinfo=UTC)
POOLS = ("laptop", "gpu", "lab")
_FAILURES = (Reason.PROGRAM_FAILED, Reason.PROGRAM_KILLED, Reason.USER_ERROR, Reason.AGENT_LOST)


@dataclass
class Machine:
    """A node as it really is."""

    name: str
    pool: str
    cpus: int
    gpus: int
    boots: int = 0
    """How often Ray has started on it: each time is another Ray node."""
    asleep: bool = False
    cut_off: bool = False
    silent_since: float = 0.0
    back_since: float = 0.0
    known_alive: bool = True
    """What Ray believes."""
    skew: float = 0.0
    """Seconds by which its clock is wrong; nothing may depend on it."""
    draining: bool = False
    busy: str = ""
    foreign: int = 0

    @property
    def silent(self) -> bool:
        """Whether nothing is heard of it."""
        return self.asleep or self.cut_off

    @property
    def ray_id(self) -> str:
        """The Ray node that it is now."""
        return f"{self.name}-{self.boots}"

    def info(self) -> NodeInfo:
        """What the controller knows."""
        states = tuple(GpuState(i, "card", 12 * GIB, self.foreign) for i in range(self.gpus))
        return NodeInfo(
            self.ray_id,
            self.name,
            self.pool,
            self.known_alive,
            "127.0.0.1",
            self.cpus,
            self.gpus,
            16 * GIB,
            NodeReport(states, self.busy),
            self.draining,
        )


@dataclass
class Agent:
    """One attempt as it really is on its machine."""

    run_id: str
    number: int
    machine: Machine
    boot: int
    work_left: float
    """Seconds of work at speed 1."""
    speed: float
    fails: Reason | None
    """What it will end with, in place of completion."""
    begun: float | None = None
    """When it last began to work; None: it does not work now."""
    version: int = 0
    ended: Reason | None = None
    """How it ended; told to the controller when that can be reached."""
    told: bool = False
    gone: bool = False
    """Its machine lost power: nobody will hear of it again."""


@dataclass
class World:
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
    limits: Limits = field(default_factory=Limits)
    check: Callable[[World, str, Any], None] = lambda world, what, about: None
    events: int = 0
    quiet: bool = False
    """No new runs and no more accidents: everything has to come to its end."""
    _open_attempts: dict[tuple[str, int], AttemptRecord] = field(default_factory=dict)
    _grants: dict[tuple[str, int], tuple[RunRecord, AttemptRecord, Grant]] = field(default_factory=dict)
    _live: dict[str, RunRecord] = field(default_factory=dict)
    """Runs that have not ended."""
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        for index in range(self.random.randint(2, 5)):
            pool = POOLS[index % len(POOLS)]
            gpus = self.random.randint(1, 2) if pool == "gpu" else 0
            machine = Machine(f"{pool}{index}", pool, self.random.randint(2, 6), gpus)
            machine.skew = self.random.uniform(-300, 300)
            self.machines[machine.name] = machine
        self.limits = Limits({"lab": 3}, {"x1": 2})
        self.after(0.0, self._submit)
        if self.crashes:
            self.after(self._about(60), self._accident)

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

    def grants(self) -> list[Grant]:
        """What they hold, one for each rank."""
        found = []
        for attempt in self.open_attempts():
            first = self._grant(attempt)
            found.append(first)
            found += [
                replace(first, ray_id=m.ray_id, node=m.node, gpu_ids=m.gpu_ids) for m in attempt.members
            ]
        return found

    def _grant(self, attempt: AttemptRecord) -> Grant:
        run, key = self.runs[attempt.run_id], (attempt.run_id, attempt.number)
        made = self._grants.get(key)
        if made is None or made[0] is not run or made[1] is not attempt:
            begun = attempt.created_at.timestamp()
            grant = running_of(run, attempt, remaining=None, saved=begun, now=self.instant.timestamp())
            made = self._grants[key] = (run, attempt, grant)
        return made[2]

    # ---- what the controller does

    def look(self) -> None:
        """One round of the controller: plan, record, launch, order."""
        self._look_after_the_silent()
        nodes = [machine.info() for machine in self.machines.values()]
        now = self.instant.timestamp()
        saving = {attempt.run_id for attempt in self.open_attempts()}
        self.coming = {run_id: grant for run_id, grant in self.coming.items() if run_id in saving}
        grants = self.grants()
        desk = plan(self.queue, rooms_of(nodes, grants), self.limits, now, self.coming.values())
        self.check(self, "plan", (desk, grants))
        out = [] if desk.plan.more else evictions(desk)
        self.check(self, "evictions", (desk, out, grants))
        for start in desk.plan.starts:
            self._start(start)
        for eviction in out:
            self._evict(eviction)
        if not desk.plan.more:
            self._upgrade(desk, now)
        self.check(self, "looked", desk)
        due = self.queue.next_due()
        if due is not None:
            self.after(max(0.01, due - self.instant.timestamp()), self.look)
        if desk.plan.more:
            self.after(0.0, self.look)

    def _start(self, start: Any) -> None:
        run = self.runs[start.waiting.run_id]
        first, *others = start.places
        number = run.attempt + 1
        attempt = AttemptRecord(
            run.id,
            number,
            first.ray_id,
            first.node,
            start.demand.index,
            run.spec.placement[start.demand.index],
            Phase.LAUNCHING,
            self.instant,
            first.gpu_ids,
            tuple(Member(place.ray_id, place.node, place.gpu_ids) for place in others),
            start.backfill,
        )
        self.check(self, "start", (run, attempt))
        self.save_run(replace(run, state=RunState.STARTING, attempt=number, message="", reason=None))
        self.save_attempt(attempt)
        self.after(self.random.uniform(0.5, 3), lambda: self._launch(attempt))

    def _evict(self, eviction: Eviction) -> None:
        victim = self.runs[eviction.victim.run_id]
        if victim.stop is None and not victim.state.final and victim.state != RunState.QUEUED:
            self._order(make_room(victim, Reason.PREEMPTED))

    def _upgrade(self, desk: Desk, now: float) -> None:
        from orchestrator.domain.rivalry import Running

        running = []
        for attempt in self.open_attempts():
            run = self.runs[attempt.run_id]
            if run.state != RunState.RUNNING or attempt.number != run.attempt:
                continue
            age = now - attempt.created_at.timestamp()
            moves = run.spec.migrate == "auto" and run.pin_pool is None and not attempt.members
            running.append(Running(self._grant(attempt), shape_of(run.spec), age, None, moves))
        for upgrade in upgrades(running, desk, lambda one, demand: None, 15.0):
            self.check(self, "upgrade", upgrade)
            grant = upgrade.running.grant
            self._order(make_room(self.runs[grant.run_id], Reason.UPGRADED))
            self.coming[grant.run_id] = replace(
                grant, ray_id=upgrade.ray_id, demand=upgrade.demand, gpu_ids=()
            )

    def _order(self, run: RunRecord) -> None:
        """Record an order to stop; the agent hears of it with its next beat."""
        self.save_run(run)
        key = (run.id, run.attempt)
        self.after(self.random.uniform(0.2, 1.5), lambda: self._hear(key))

    def _look_after_the_silent(self) -> None:
        """What the controller makes of machines of which it hears nothing."""
        for attempt in self.open_attempts():
            if any(self._given_up(member.node, member.ray_id) for member in attempt.members):
                self.end(attempt, Reason.NODE_LOST)
                continue
            facts = self._facts(attempt)
            found = verdict(attempt, facts)
            if isinstance(found, Lost):
                self.check(self, "lost", (attempt, self.agents.get((attempt.run_id, attempt.number))))
                self.end(attempt, found.reason)
            elif isinstance(found, Silent):
                self._silent(attempt, facts, found)

    def _given_up(self, name: str, ray_id: str) -> bool:
        machine = self.machines[name]
        return machine.ray_id != ray_id or not machine.known_alive

    def _facts(self, attempt: AttemptRecord) -> Facts:
        machine = self.machines[attempt.node]
        agent = self.agents.get((attempt.run_id, attempt.number))
        since = machine.silent_since if machine.silent else self.now
        if agent is None and attempt.phase != Phase.RUNNING:
            since = (attempt.created_at - BEGIN).total_seconds()
        elif agent is None or agent.gone:
            since = min(since, machine.silent_since)
        back = machine.ray_id != attempt.ray_id and machine.known_alive
        return Facts(
            silence=self.now - since,
            node_alive=machine.known_alive and machine.ray_id == attempt.ray_id,
            returned_s=self.now - machine.back_since if back else None,
            rebooted=back and agent is not None and agent.gone,
        )

    def _silent(self, attempt: AttemptRecord, facts: Facts, found: Silent) -> None:
        run = self.runs[attempt.run_id]
        if run.attempt != attempt.number or run.state.final:
            return
        after = transitions.lose_sight(run, found.message)
        if after != run:
            self.save_run(after)
            self.after(max(0.1, run.spec.away - facts.silence), self.look)
            return
        why = may_leave(run, facts, lambda: self._fits_elsewhere(run, attempt))
        if why:
            self.check(self, "left", (run, attempt, facts))
            run, attempt = transitions.abandon(run, attempt, self.instant, why)
            self.save_attempt(attempt)
            self.save_run(run)

    def _fits_elsewhere(self, run: RunRecord, attempt: AttemptRecord) -> bool:
        rooms = rooms_of([machine.info() for machine in self.machines.values()], self.grants())
        return any(
            room.node.pool == demand.pool and room.node.name != attempt.node and room.fits(demand)
            for room in rooms.values()
            if not room.node.closed
            for demand in shape_of(run.spec, run.pin_pool).demands
            if demand.ranks == 1
        )

    def end(self, attempt: AttemptRecord, reason: Reason) -> None:
        """Record the end of an attempt and what follows; a second end changes nothing."""
        known = self.attempts[attempt.run_id, attempt.number]
        if known.ended:
            return
        run = self.runs[attempt.run_id]
        owns = run.attempt == known.number and not run.state.final
        if owns:
            run, known = transitions.reach(run, known)
        self.save_attempt(replace(known, phase=Phase.ENDED, reason=reason, ended_at=self.instant))
        if owns:
            after = after_attempt(run, known, reason, "", self.instant)
            self.check(self, "ended", (run, known, reason, after))
            self.save_run(after)

    # ---- what happens on machines

    def _launch(self, attempt: AttemptRecord) -> None:
        machine = self.machines[attempt.node]
        if machine.ray_id != attempt.ray_id or machine.silent:
            return self._later(lambda: self._launch(attempt), attempt)
        if self.attempts[attempt.run_id, attempt.number].ended:
            return None
        run = self.runs[attempt.run_id]
        if attempt.number < self.fences.get(run.id, 0):
            return None
        self.fences[run.id] = attempt.number
        fails = self.random.choice(_FAILURES) if self.random.random() < 0.12 and not self.quiet else None
        speed = 5.0 if attempt.variant.gpus else 1.0
        left = self.work[run.id]
        agent = Agent(run.id, attempt.number, machine, machine.boots, left, speed, fails)
        self.agents = {key: one for key, one in self.agents.items() if not one.told}
        self.agents[run.id, attempt.number] = agent
        self.save_attempt(
            replace(self.attempts[run.id, attempt.number], phase=Phase.RUNNING, started_at=self.instant)
        )
        if run.state == RunState.STARTING:
            self.save_run(replace(run, state=RunState.RUNNING))
        self._work(agent)
        self._hear((run.id, attempt.number))
        self.look()
        return None

    def _later(self, action: Callable[[], None], attempt: AttemptRecord) -> None:
        if not self.attempts[attempt.run_id, attempt.number].ended:
            self.after(5.0, action)

    def _work(self, agent: Agent) -> None:
        agent.begun = self.now
        agent.version += 1
        version = agent.version
        rest = agent.work_left / agent.speed
        if agent.fails is not None:
            rest *= self.random.uniform(0.05, 0.9)
        self.after(rest, lambda: self._end_of_work(agent, version))

    def _pause(self, agent: Agent) -> None:
        if agent.begun is not None:
            agent.work_left = max(0.0, agent.work_left - (self.now - agent.begun) * agent.speed)
            agent.begun = None
            agent.version += 1

    def _end_of_work(self, agent: Agent, version: int) -> None:
        if agent.version != version or agent.ended is not None:
            return
        self._pause(agent)
        self._finish(agent, agent.fails or Reason.COMPLETED)

    def _finish(self, agent: Agent, reason: Reason) -> None:
        """The program has ended; what it saved is committed unless a newer attempt owns the run."""
        agent.version += 1
        key = (agent.run_id, agent.number)
        if self.fences[agent.run_id] > agent.number:
            agent.ended = Reason.FENCED
        else:
            agent.ended = reason
            if reason not in _FAILURES:
                self.check(self, "commit", key)
                self.commits.append(key)
                self.work[agent.run_id] = agent.work_left
        self._tell(agent)

    def _tell(self, agent: Agent) -> None:
        if (
            agent.told
            or agent.gone
            or agent.ended is None
            or agent.machine.silent
            or agent.machine.boots != agent.boot
        ):
            return
        agent.told = True
        self.end(self.attempts[agent.run_id, agent.number], agent.ended)
        self.look()

    def _hear(self, key: tuple[str, int]) -> None:
        """The agent's beat is answered: it learns of orders, and whether it is still wanted."""
        agent = self.agents.get(key)
        if agent is None or agent.ended is not None or agent.machine.boots != agent.boot:
            return
        if agent.machine.silent:
            self.after(5.0, lambda: self._hear(key))
            return
        run = self.runs[agent.run_id]
        attempt = self.attempts[key]
        if run.attempt != agent.number or run.state.final or attempt.ended:
            reason: Reason | None = Reason.FENCED
        else:
            if attempt.abandoned or run.state == RunState.UNREACHABLE:
                run, attempt = transitions.reach(run, attempt)
                self.save_run(run)
            if agent.machine.ray_id != attempt.ray_id:
                attempt = replace(attempt, ray_id=agent.machine.ray_id)
            self.save_attempt(attempt)
            reason = run.stop
        if reason is not None:
            self._pause(agent)
            self.after(self.random.uniform(0.2, 4), lambda: self._saved(agent, reason))

    def _saved(self, agent: Agent, reason: Reason) -> None:
        if agent.ended is None and agent.machine.boots == agent.boot:
            if agent.machine.asleep:
                self.after(5.0, lambda: self._saved(agent, reason))
            else:
                self._finish(agent, reason)

    # ---- what people and fate do

    def _submit(self) -> None:
        if self.quiet:
            return
        run_id = f"r{len(self.runs)}"
        run = RunRecord(
            run_id,
            len(self.runs),
            f"key-{run_id}",
            self._spec(run_id),
            "0",
            "",
            self.random.choice(("ada", "bob", "eve")),
            RunState.QUEUED,
            self.instant,
        )
        self.work[run_id] = self._about(200)
        self.save_run(run)
        self.look()
        waiting = len(self.queue)
        self.after(self._about(20 if waiting < 12 else 400), self._submit)

    def _spec(self, name: str) -> RunSpec:
        chance = self.random
        placement = []
        if chance.random() < 0.5:
            share = chance.choice((None, 3 * GIB, 5 * GIB))
            placement.append(Variant(pool="gpu", cpus=1, gpus=1, gpu_memory=share))
        if chance.random() < 0.2:
            placement.append(Variant(pool="lab", cpus=1, ranks=chance.randint(2, 3)))
        if not placement or chance.random() < 0.7:
            placement.append(Variant(pool=chance.choice(POOLS), cpus=chance.randint(1, 2)))
        return RunSpec(
            name=name,
            experiment=f"x{chance.randrange(3)}",
            command=CommandProgram(argv=["true"]),
            placement=placement,
            priority=chance.choice((0, 0, 0, 1, 5, -3)),
            start=chance.choice(("any", "any", "best")),
            wait=120.0,
            retries=3,
            migrate=chance.choice(("auto", "auto", "never")),
            away=chance.choice((30.0, 300.0)),
        )

    def _accident(self) -> None:
        if self.quiet:
            return
        happening = self.random.choice(
            [
                *(self._sleep, self._cut_off, self._die, self._drain, self._owner, self._forget),
                *(self._cancel, self._cancel, self._hold, self._move, self._top),
            ]
        )
        happening()
        self.look()
        self.after(self._about(60), self._accident)

    def _machine(self) -> Machine:
        return self.random.choice(list(self.machines.values()))

    def _sleep(self) -> None:
        machine = self._machine()
        if machine.silent:
            return
        machine.asleep, machine.silent_since = True, self.now
        for agent in self._on(machine):
            self._pause(agent)
        self.after(self.random.uniform(5, 200), lambda: self._wake(machine))
        self.after(self.random.uniform(8, 30), lambda: self._ray_gives_up(machine))

    def _cut_off(self) -> None:
        machine = self._machine()
        if machine.silent:
            return
        machine.cut_off, machine.silent_since = True, self.now
        self.after(self.random.uniform(5, 200), lambda: self._wake(machine))
        self.after(self.random.uniform(8, 30), lambda: self._ray_gives_up(machine))

    def _ray_gives_up(self, machine: Machine) -> None:
        if machine.silent:
            machine.known_alive = False
            self.look()

    def _wake(self, machine: Machine) -> None:
        machine.asleep = machine.cut_off = False
        if not machine.known_alive:  # Ray starts there again, as another node; the agents live on
            self._restart_ray(machine)
        for agent in self._on(machine):
            if agent.ended is None and agent.begun is None:
                self._work(agent)
            self.after(0.5, lambda key=(agent.run_id, agent.number): self._hear(key))
            self._tell(agent)
        self.look()

    def _restart_ray(self, machine: Machine) -> None:
        agents = self._on(machine)
        machine.boots += 1
        machine.known_alive, machine.back_since = True, self.now
        for agent in agents:
            agent.boot = machine.boots

    def _die(self) -> None:
        """Power off: what ran there is gone."""
        machine = self._machine()
        if machine.silent:
            return
        for agent in self._on(machine):
            agent.version += 1
            agent.ended, agent.gone = Reason.AGENT_LOST, True
        machine.asleep, machine.silent_since = True, self.now
        self.after(self.random.uniform(8, 30), lambda: self._ray_gives_up(machine))
        self.after(self.random.uniform(40, 200), lambda: self._power_on(machine))

    def _power_on(self, machine: Machine) -> None:
        machine.known_alive = False
        self._wake(machine)

    def _on(self, machine: Machine) -> list[Agent]:
        return [
            agent
            for agent in self.agents.values()
            if agent.machine is machine and agent.boot == machine.boots and not agent.told and not agent.gone
        ]

    def _some_run(self) -> RunRecord | None:
        live = self.live()
        return self.random.choice(live) if live else None

    def _cancel(self) -> None:
        run = self._some_run()
        if run is not None:
            self.check(self, "cancel", run)
            self._order(cancel(run, self.instant))

    def _hold(self) -> None:
        run = self._some_run()
        if run is not None:
            self.save_run(replace(run, held=True))
            self.after(self._about(60), lambda: self._release(run.id))

    def _release(self, run_id: str) -> None:
        run = self.runs[run_id]
        if not run.state.final:
            self.save_run(replace(run, held=False))
            self.look()

    def _top(self) -> None:
        run = self._some_run()
        if run is not None:
            highest = max(one.front for one in self.live())
            self.save_run(replace(run, front=highest + 1))

    def _move(self) -> None:
        run = self._some_run()
        if run is not None:
            self._order(transitions.move(run, self.random.choice(run.spec.placement).pool))

    def _drain(self) -> None:
        machine = self._machine()
        machine.draining = True
        self.after(self._about(100), lambda: self._open(machine))

    def _owner(self) -> None:
        machine = self._machine()
        machine.busy, machine.foreign = "a game runs", 6 * GIB
        self.after(self._about(100), lambda: self._open(machine))

    def _open(self, machine: Machine) -> None:
        machine.draining, machine.busy, machine.foreign = False, "", 0
        self.look()

    def _forget(self) -> None:
        """The controller is killed and begins again with its ledger."""
        self.queue, self.coming = Queue(), {}
        for run in self.live():
            if run.state == RunState.QUEUED:
                self.queue.add(waiting_of(run))

    def live(self) -> list[RunRecord]:
        """Runs that have not ended."""
        return list(self._live.values())

    def unfinished(self) -> list[RunRecord]:
        """Those of them that could end: something in the fleet is large enough for them."""
        rooms = [Room.of(machine.info()) for machine in self.machines.values()]
        return [
            run
            for run in self.live()
            if any(_possible(d, rooms) for d in shape_of(run.spec, run.pin_pool).demands)
        ]

    def settle(self, longest: float) -> None:
        """Nothing new and no more accidents, until nothing happens any more or `longest` seconds are over."""
        self.quiet = True
        until = self.now + longest
        self.after(0.0, self._every_now_and_then)
        while self.now < until and self._live and self.step():
            pass

    def _every_now_and_then(self) -> None:
        self.look()
        if self.unfinished():
            self.after(10.0, self._every_now_and_then)


def _possible(demand: Demand, rooms: list[Room]) -> bool:
    ranks = 0
    for room in rooms:
        trial = room.copy()
        while trial.node.pool == demand.pool and trial.fits(demand) and ranks < demand.ranks:
            gpu_ids = trial.choose(demand)
            trial.take(Grant("", "", trial.node.ray_id, demand, (0, 0, 0), gpu_ids))
            ranks += 1
    return ranks >= demand.ranks


def held_by(attempt: AttemptRecord) -> list[tuple[str, tuple[int, ...]]]:
    """Ray node and GPUs of each rank."""
    return [(attempt.ray_id, attempt.gpu_ids), *((m.ray_id, m.gpu_ids) for m in attempt.members)]


def demand_at(attempt: AttemptRecord) -> Any:
    """What each rank holds."""
    return demand_of(attempt.variant_index, attempt.variant)
