"""A cluster on paper: the real controller with its ledger, spool and store, a clock that the test turns, and
agents of a few lines each, which do what agents do. No process, no Ray, no MLflow.

Time moves in strides. In each, agents speak first, then the controller's loop, sweeps and whatever else it
has take a turn, in the test's own thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.agent.job import AgentJob
from orchestrator.control.config import ControllerConfig
from orchestrator.control.controller import Controller
from orchestrator.control.fleet import Fleet
from orchestrator.domain.fleet import ActorInfo, NodeInfo
from orchestrator.domain.states import Phase, Reason
from orchestrator.messages_agent import Beat, BeatReply, CheckpointNote, Order, Outcome, Point
from orchestrator.settings import Home
from orchestrator.store.ledger import Transaction
from tests.clocks import TurnedClock
from tests.unit.records import node

Curve = Callable[[AgentJob, int], float]
"""The objective of a run at a step."""

BEGIN = datetime(2027, 3, 1, 18, 0, tzinfo=UTC)
START_S = 4.0
"""From the launch of an agent to its program's first step."""
SAVE_S = 2.0


class Inline:
    """Stands for a pool of threads: everything is done at once."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        pass


@dataclass
class Span:
    """When and where the program of an attempt ran."""

    run_id: str
    attempt: int
    node: str
    begin: float
    """Unix seconds."""
    end: float | None = None
    first: int = 0
    last: int = 0


@dataclass
class PaperAgent:
    """One attempt on its node."""

    name: str
    job: AgentJob
    clock: TurnedClock
    curve: Curve
    pace: float
    """Seconds per step."""
    total: int
    every: int
    """Steps between evaluations, each of which is a checkpoint too."""
    first: int
    launched: float = 0.0
    told: bool = False
    outcome: Outcome | None = None
    span: Span | None = None
    step: int = 0
    said: int = -1
    saved: int = 0
    fails: str = ""
    """Why its program ends with an error at its first step."""

    def __post_init__(self) -> None:
        self.launched = self.clock.at
        self.step = self.first

    @property
    def began(self) -> float:
        """When its program takes its first step."""
        return self.launched + START_S

    def _end_at(self, at: float, reason: Reason, message: str = "") -> None:
        assert self.span is not None
        self.step = min(self.total, self.first + max(0, int((at - self.began) / self.pace)))
        self.span.end, self.span.last = self._unix(at), self.step
        if reason != Reason.FENCED:
            self.saved = self.step
        self.outcome = Outcome(reason=reason, message=message, last_step=self.step)

    def _unix(self, at: float) -> float:
        return self.clock.now().timestamp() - (self.clock.at - at)

    def _measured(self, step: int) -> int:
        """Unix milliseconds of a step."""
        return int(self._unix(self.began + (step - self.first) * self.pace) * 1000)

    def work(self, spans: list[Span]) -> None:
        """What happened until now."""
        now = self.clock.at
        if self.outcome is not None or now < self.began:
            return
        if self.span is None:
            self.span = Span(
                self.job.run_id, self.job.attempt, self.job.node, self._unix(self.began), None, self.first
            )
            spans.append(self.span)
        if self.fails:
            self._end_at(self.began, Reason.USER_ERROR, self.fails)
            return
        ends = [(self.began + (self.total - self.first) * self.pace, Reason.COMPLETED)]
        if self.job.pause_at is not None and self.job.pause_at < self.total:
            ends.append((self.began + max(0, self.job.pause_at - self.first) * self.pace, Reason.RUNG))
        if self.job.seconds_left is not None:
            ends.append((self.launched + self.job.seconds_left, self.job.limit))
        at, reason = min(ends, key=lambda end: end[0])
        if at <= now:
            self._end_at(at, reason)
            return
        self.step = self.first + int((now - self.began) / self.pace)
        self.saved = max(self.saved, self.step - self.step % self.every)

    def beat(self) -> Beat:
        """What it says now."""
        upto = self.step
        marks = [s for s in range(0, upto + 1, self.every) if s > self.said]
        if self.outcome is not None and upto not in marks and upto > self.said:
            marks.append(upto)
        ended = self.outcome is not None
        running = self.clock.at >= self.began
        return Beat(
            phase=Phase.ENDED if ended else Phase.RUNNING if running else Phase.CLAIMING,
            pid=1,
            boot_id="boot",
            device="cpu",
            first_step=self.first,
            step=upto,
            points=[
                Point(key="val/loss", step=s, time_ms=self._measured(s), value=self.curve(self.job, s))
                for s in marks
            ],
            checkpoints=[
                CheckpointNote(step=s, at=self.clock.now(), size=10, seconds=0.1) for s in marks[-1:] if s
            ],
            outcome=self.outcome,
        )

    def hear(self, beat: Beat, reply: BeatReply) -> None:
        """Take the answer in."""
        self.said = max([self.said, *(point.step for point in beat.points)])
        if beat.outcome is not None:
            self.told = True
        elif reply.order is Order.STOP:
            reason = reply.reason or Reason.SHUTDOWN
            if self.span is None:
                self.outcome = Outcome(reason=reason)
            else:
                self._end_at(self.clock.at, reason)


@dataclass
class PaperGateway:
    """Launches agents on paper."""

    cluster: PaperCluster
    connected: bool = True

    def nodes(self, timeout_s: float = 5.0) -> list[NodeInfo]:
        return list(self.cluster.nodes.values())

    def launch(
        self, name: str, ray_id: str, cpus: float, memory: int, job: AgentJob, timeout_s: float = 30.0
    ) -> bool:
        return self.cluster.launched(name, job)

    def probe(self, name: str, timeout_s: float = 5.0) -> ActorInfo:
        return ActorInfo(name, "alive", True)

    def kill(self, name: str, timeout_s: float = 5.0) -> None:
        pass

    def actors(self, timeout_s: float = 5.0) -> list[str]:
        return []

    def close(self) -> None:
        pass


@dataclass
class PaperCluster:
    """See the module's description."""

    home: Path
    curve: Curve
    pools: dict[str, int] = field(default_factory=lambda: {"laptop": 2, "gpu": 2})
    """CPUs of the one node of each pool."""
    pace: Callable[[AgentJob], float] = lambda job: 1.0
    every: int = 50
    begin: datetime = BEGIN
    mlflow_url: str = ""

    def __post_init__(self) -> None:
        self.clock = TurnedClock(10_000.0, self.begin)
        self.clock._zero = self.begin - timedelta(seconds=self.clock.at)
        self.nodes = {pool: node(pool, cpus=cpus) for pool, cpus in self.pools.items()}
        self.agents: dict[str, PaperAgent] = {}
        self.spans: list[Span] = []
        self.silent: set[str] = set()
        """Nodes that are asleep: their programs stand still, and nothing is heard of them."""
        self.fails: Callable[[AgentJob], str] = lambda job: ""
        self.turns: list[Callable[[], object]] = []
        """What else gets a turn in each stride."""
        self.changed = False
        """Whether anything was recorded since the last look."""
        self.controller = self._controller()

    def _controller(self) -> Controller:
        config = ControllerConfig(
            home=Home(self.home),
            url="http://127.0.0.1:1",
            store_uri=(self.home / "store").as_uri(),
            ray_address="127.0.0.1:2",
            mlflow_url=self.mlflow_url,
        )
        controller = Controller(config, PaperGateway(self), self.clock)
        controller.loop.launching._pool = Inline()  # type: ignore[assignment]
        controller.loop.launching._releaser = Inline()  # type: ignore[assignment]
        controller.ledger.watch(self._changed)
        return controller

    def _changed(self, transaction: Transaction) -> None:
        self.changed = True

    def crash(self) -> None:
        """The controller is killed and begins again with what is on disk."""
        self.controller.spool.close()
        self.controller.ledger.close()
        self.controller = self._controller()

    def launched(self, name: str, job: AgentJob) -> bool:
        """An agent begins, once."""
        if name in self.agents:
            return False
        before = [a for a in self.agents.values() if a.job.run_id == job.run_id]
        trainer = job.spec.trainer_for(job.variant)
        total = (
            trainer.max_steps if trainer else int((job.spec.command.env if job.spec.command else {})["STEPS"])
        )
        first = max((a.saved for a in before), default=0)
        agent = PaperAgent(name, job, self.clock, self.curve, self.pace(job), total, self.every, first)
        agent.saved, agent.fails = first, self.fails(job)
        self.agents[name] = agent
        return True

    def lose(self, pool: str) -> None:
        """The machine of a pool loses power: its programs are gone, and Ray says so."""
        self.nodes[pool] = replace(self.nodes[pool], alive=False)
        for agent in self.agents.values():
            if agent.job.node == self.nodes[pool].name and not agent.told:
                agent.told = True
                if agent.span is not None and agent.span.end is None:
                    agent.span.end, agent.span.last = agent._unix(self.clock.at), agent.step

    def back(self, pool: str) -> None:
        """The machine of a pool is on again, as another Ray node after another boot."""
        count = int(self.nodes[pool].ray_id.rpartition("#")[2] or 0) if "#" in self.nodes[pool].ray_id else 0
        ray_id = f"ray-{pool}#{count + 1}"
        self.nodes[pool] = replace(self.nodes[pool], alive=True, ray_id=ray_id, boot_id=f"boot-{count + 1}")

    def step(self, seconds: float) -> None:
        """One stride."""
        self.clock.at += seconds
        for agent in list(self.agents.values()):
            if agent.told:
                continue
            if agent.job.node in self.silent:
                agent.launched += seconds  # stands still
                continue
            agent.work(self.spans)
            self._speak(agent)
        self.look()

    def _speak(self, agent: PaperAgent) -> None:
        beat = agent.beat()
        reply = self.controller.beats.take(agent.job.run_id, agent.job.attempt, beat)
        agent.hear(beat, reply)
        if agent.outcome is not None and not agent.told:
            beat = agent.beat()
            agent.hear(beat, self.controller.beats.take(agent.job.run_id, agent.job.attempt, beat))

    def look(self) -> None:
        """Everything in the controller takes a turn, until nothing follows from it."""
        watcher = self.controller.watcher
        watcher._ray = Fleet(tuple(self.nodes.values()), connected=True)
        watcher.refresh()
        self.changed = True
        while self.changed:
            self.changed = False
            self.controller.loop.tick()
            self.controller.sweeps.look()
            for turn in self.turns:
                turn()

    def run(self, seconds: float, stride: float = 10.0, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        end = self.clock.at + seconds
        while self.clock.at < end and not until():
            self.step(min(stride, end - self.clock.at))

    def executing(self) -> list[PaperAgent]:
        """Agents whose programs run."""
        return [agent for agent in self.agents.values() if agent.outcome is None and not agent.told]


def spans_of(cluster: PaperCluster, run_id: str) -> Iterator[Span]:
    """The spans of one run in order."""
    return (span for span in cluster.spans if span.run_id == run_id)


def soak() -> bool:
    """Whether there is time for long tests."""
    return bool(os.environ.get("ORCH_SOAK"))
