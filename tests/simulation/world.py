"""A fleet under a simulated clock, scheduled by the real decisions: machines sleep, die and are cut off,
agents crash, users cancel, the controller forgets everything but its ledger.

What is simulated is what happens; what is decided comes from `orchestrator.domain`. The ledger is a
dictionary, the agents are a few lines each. Whatever happens is checked by :mod:`tests.simulation.checks`.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.domain import transitions
from orchestrator.domain.demand import Demand, shape_of
from orchestrator.domain.planner import Limits
from orchestrator.domain.queue import Queue
from orchestrator.domain.records import RunRecord
from orchestrator.domain.room import Grant, Room
from orchestrator.domain.states import Reason, RunState
from orchestrator.domain.transitions import cancel
from orchestrator.spec.models import CommandProgram, RunSpec, Variant
from tests.simulation.execution import Executing
from tests.simulation.fleet import GIB, POOLS, Agent, Machine
from tests.simulation.hours import some_window


class World(Executing):
    """A world with people and fate."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        self.work[run_id] = self._about(800 if run.spec.window else 200)
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
            window=some_window(chance),
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
            agent.slept = True
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
        self.queue, self.coming, self.promised = Queue(), {}, {}
        for run in self.live():
            if run.state == RunState.QUEUED:
                self._line_up(run)

    def unfinished(self) -> list[RunRecord]:
        """Those of them that could end: something in the fleet is large enough for them."""
        rooms = [Room.of(machine.info()) for machine in self.machines.values()]
        return [
            run
            for run in self.live()
            if any(possible(d, rooms) for d in shape_of(run.spec, run.pin_pool).demands)
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


def possible(demand: Demand, rooms: list[Room]) -> bool:
    """Whether empty nodes take all ranks of it."""
    ranks = 0
    for room in rooms:
        trial = room.copy()
        while trial.node.pool == demand.pool and trial.fits(demand) and ranks < demand.ranks:
            gpu_ids = trial.choose(demand)
            trial.take(Grant("", "", trial.node.ray_id, demand, (0, 0, 0), gpu_ids))
            ranks += 1
    return ranks >= demand.ranks
