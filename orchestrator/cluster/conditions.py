"""Tells the controller every few seconds how this machine's nodes are: their GPUs, what their owner does, and
which attempts have an agent there.

A thread of the supervisor, which lives on every machine that has nodes. A look costs well under a millisecond
where no programs are listed and no GPU is there; nothing heavy is imported for it. While the controller is
away it keeps trying, and says so once.

Which processes are ours: those that descend from a living agent. The kernel keeps that true, because every
agent has its program under a keeper that adopts whatever leaves its parent (PR_SET_CHILD_SUBREAPER) and kills
it all when the agent dies. A mark in the environment would be simpler, but programs overwrite theirs, that of
other users cannot be read, and it says nothing of who started the process that carries it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from orchestrator.agent.identity import boot_id
from orchestrator.agent.launch import LaunchNote
from orchestrator.agent.link import Link
from orchestrator.clock import SYSTEM, Clock
from orchestrator.cluster.agents import Agent, agents
from orchestrator.cluster.config import NodeConfig, StackConfig
from orchestrator.cluster.gpus import Gpus, Ours, load_nvml, sees_all_processes
from orchestrator.cluster.owner import FILE, OwnerRules, OwnerWatch, Seen, load_rules
from orchestrator.cluster.sensors import Processes, on_battery, people
from orchestrator.domain.fleet import NodeReport
from orchestrator.errors import OrchError, SetupError
from orchestrator.settings import Home

log = logging.getLogger(__name__)

PERIOD_S: Final = 5.0
SAY_S: Final = 10.0
"""What has not changed is said again after this; the controller believes a report for 30 s."""
PEOPLE_S: Final = 15.0
"""Login sessions are looked at as often as this, because that starts a process."""
ROOTS_S: Final = 1.0
"""Who our agents are is looked up once for all questions of one look."""
POST_S: Final = 5.0
"""Longest wait for the controller's answer."""


Told = tuple[NodeReport, list[str]]
"""A report, and the attempts with living agents."""


class Sensors(Protocol):
    """What a node can see."""

    def processes(self, names: tuple[str, ...]) -> dict[int, str]:
        """Living processes with one of these names: number -> name."""
        ...

    def people(self, within_s: float) -> list[str] | None:
        """Who has a login session with input during the last `within_s`; None where nobody can tell."""
        ...

    def battery(self) -> bool | None:
        """Whether the machine is on battery; None where nobody can tell."""
        ...

    def ours(self, pid: int) -> bool:
        """Whether a process is ours."""
        ...


class MachineSensors:
    """The sensors of this machine."""

    def __init__(self, home: Home, clock: Clock = SYSTEM, table: Processes | None = None) -> None:
        self._home = home
        self._clock = clock
        self._table = table or Processes()
        self._people: tuple[float, float, list[str] | None] = (-PEOPLE_S, 0.0, None)
        self._roots: tuple[float, list[int]] = (-ROOTS_S, [])

    def processes(self, names: tuple[str, ...]) -> dict[int, str]:
        """Living processes with one of these names: number -> name."""
        return self._table.named(names)

    def people(self, within_s: float) -> list[str] | None:
        """Who has a login session with recent input; looked at every PEOPLE_S."""
        looked, window, found = self._people
        now = self._clock.boottime()
        if window != within_s or now - looked >= PEOPLE_S:
            found = people(within_s, self._clock.now().timestamp())
            self._people = (now, within_s, found)
        return found

    def battery(self) -> bool | None:
        """Whether the machine is on battery."""
        return on_battery()

    def ours(self, pid: int) -> bool:
        """Whether a process is this one, or descends from it or from a living agent."""
        now = self._clock.boottime()
        looked, roots = self._roots
        if now - looked >= ROOTS_S:
            roots = [os.getpid(), *(agent.process.pid for agent in agents(self._home))]
            self._roots = (now, roots)
        return self._table.descends(pid, roots)


class NodeConditions:
    """One node: its rules, its GPUs, and what was seen of its owner before. For one thread."""

    def __init__(self, folder: Path, sensors: Sensors, gpus: Gpus | None, ours: Ours, clock: Clock) -> None:
        self._folder = folder
        self._sensors = sensors
        self._gpus = gpus
        self._ours = ours
        self._clock = clock
        self._watch = OwnerWatch()
        self._rules = OwnerRules()
        self._rules_seen: tuple[int, int] | None = None
        self._unreadable: set[str] = set()

    def report(self) -> NodeReport:
        """How the node is now."""
        rules = self._follow_rules()
        states = self._gpus.read(self._ours) if self._gpus else []
        seen = Seen(
            gpu_use=tuple(state.foreign_use for state in states),
            processes=self._listed(rules),
            people=tuple(self._known("login sessions", self._sensors.people(rules.login)) or ())
            if rules.login is not None
            else (),
            battery=bool(rules.battery and self._known("the power supply", self._sensors.battery())),
        )
        busy = self._watch.judge(rules, seen, self._clock.boottime())
        return NodeReport(gpus=tuple(states), busy=busy, yields=bool(busy) and rules.yields)

    def _listed(self, rules: OwnerRules) -> tuple[str, ...]:
        if not rules.processes:
            return ()
        found = self._sensors.processes(rules.processes)
        return tuple(sorted({name for pid, name in found.items() if not self._sensors.ours(pid)}))

    def _known(self, what: str, answer: Any) -> Any:
        if answer is None and what not in self._unreadable:
            self._unreadable.add(what)
            log.warning("%s: %s cannot be read here, so that rule has no effect", self._folder.name, what)
        return answer

    def _follow_rules(self) -> OwnerRules:
        try:
            status = (self._folder / FILE).stat()
            changed = (status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            changed = (0, 0)
        if changed != self._rules_seen:
            self._rules_seen = changed
            try:
                self._rules = load_rules(self._folder)
            except SetupError as error:
                log.error("%s; the rules stay as they were", error.message)
        return self._rules


class Conditions:
    """Looks at every node of this machine and tells the controller, in a thread."""

    def __init__(
        self,
        config: StackConfig,
        home: Home,
        sensors: Sensors | None = None,
        nvml: Callable[[], Any | None] = cache(load_nvml),
        clock: Clock = SYSTEM,
    ) -> None:
        self._config = config
        self._home = home
        self._sensors = sensors or MachineSensors(home, clock)
        self._nvml = nvml
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="conditions", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Do not look again."""
        self._stop.set()

    def _watch(self) -> None:
        tellers = [
            Teller(self._config.controller_url, self._home, self._conditions(node), node.name, self._clock)
            for node in self._config.nodes
        ]
        while not self._stop.is_set():
            for teller in tellers:
                try:
                    teller.tell()
                except Exception:  # one look that fails must not be the last one
                    log.exception("the condition of node %s could not be told", teller.node)
            self._stop.wait(PERIOD_S)

    def _conditions(self, node: NodeConfig) -> NodeConditions:
        nvml = self._nvml() if node.gpu_ids else None
        gpus = Gpus(nvml, node.gpu_ids, sees_all_processes()) if nvml else None
        ours = Ours(self._sensors.ours, lambda: any(map(_on_gpus, self._agents(node.name))))
        return NodeConditions(self._home.node(node.name), self._sensors, gpus, ours, self._clock)

    def _agents(self, node: str) -> list[Agent]:
        return [agent for agent in agents(self._home) if agent.node == node]


def _on_gpus(agent: Agent) -> bool:
    """Whether an agent was granted GPUs; yes where it cannot be known."""
    try:
        return bool(LaunchNote.read(agent.folder / "launch.json").gpu_ids)
    except (OSError, ValueError, KeyError, TypeError):
        return True


class Teller:
    """Tells the controller about one node: at once what has changed, now and then what has not."""

    def __init__(self, url: str, home: Home, conditions: NodeConditions, node: str, clock: Clock) -> None:
        self.node = node
        self._conditions = conditions
        self._clock = clock
        self._link = Link(url, home.node(node) / "token", POST_S)
        self._home = home
        self._told: Told | None = None
        self._told_at = 0.0
        self._failing = False

    def tell(self) -> None:
        """Look, and say it where that is due."""
        report, living = self._conditions.report(), self._living()
        now = self._clock.boottime()
        if (report, living) == self._told and now - self._told_at < SAY_S:
            return
        note = asdict(report) | {"agents": living, "boot_id": boot_id()}
        try:
            self._link.post(f"/v1/agent/nodes/{self.node}/report", json.dumps(note).encode())
        except OrchError as error:
            self._told = None
            if not self._failing:
                log.info("node %s: %s; trying on", self.node, error)
                self._failing = True
            return
        if self._failing or self._told is None or report.busy != self._told[0].busy:
            log.info("node %s: told the controller: %s", self.node, report.busy or "free for runs")
        self._failing = False
        self._told, self._told_at = (report, living), now

    def _living(self) -> list[str]:
        return sorted(agent.folder.name for agent in agents(self._home) if agent.node == self.node)
