"""What happens on the machines of a simulated world: agents work, save, end, and tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.control.board import hours_of_run
from orchestrator.domain import transitions
from orchestrator.domain.limits import first_limit
from orchestrator.domain.records import AttemptRecord
from orchestrator.domain.states import Phase, Reason, RunState
from tests.simulation.controller import Controlled
from tests.simulation.fleet import Agent, speed

_FAILURES = (
    *(Reason.PROGRAM_FAILED, Reason.PROGRAM_KILLED, Reason.USER_ERROR, Reason.AGENT_LOST),
    *(Reason.HOST_MEMORY, Reason.HOST_MEMORY),
)


class Executing(Controlled):
    """A world whose attempts are executed."""

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
        left = self.work[run.id]
        agent = Agent(run.id, attempt.number, machine, machine.boots, left, speed(attempt.variant), fails)
        self.agents = {key: one for key, one in self.agents.items() if not one.told}
        self.agents[run.id, attempt.number] = agent
        self.save_attempt(
            replace(self.attempts[run.id, attempt.number], phase=Phase.RUNNING, started_at=self.instant)
        )
        if run.state == RunState.STARTING:
            self.save_run(replace(run, state=RunState.RUNNING))
        limit = first_limit(run, attempt.variant, self.instant, hours=hours_of_run(run, None))
        if limit is not None:
            agent.stops = self.now + limit.seconds
            self.after(limit.seconds, lambda: self._hours_end(agent))
        self._work(agent)
        self._hear((run.id, attempt.number))
        self.look()
        return None

    def _later(self, action: Callable[[], None], attempt: AttemptRecord) -> None:
        if not self.attempts[attempt.run_id, attempt.number].ended:
            self.after(5.0, action)

    def _hours_end(self, agent: Agent) -> None:
        """Its node ends it by itself, whether or not anybody can be heard."""
        if agent.ended is None and not agent.gone and not agent.machine.asleep:
            self._pause(agent)
            self.after(self.random.uniform(0.2, 4), lambda: self._saved(agent, Reason.WINDOW))

    def _work(self, agent: Agent) -> None:
        if self.now >= agent.stops:
            return self._hours_end(agent)
        agent.begun = self.now
        agent.version += 1
        version = agent.version
        rest = agent.work_left / agent.speed
        if agent.fails is not None:
            rest *= self.random.uniform(0.05, 0.9)
        self.after(rest, lambda: self._end_of_work(agent, version))
        return None

    def _pause(self, agent: Agent) -> None:
        if agent.begun is not None:
            self.check(self, "worked", agent)
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
        self.check(self, "finish", agent)
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
