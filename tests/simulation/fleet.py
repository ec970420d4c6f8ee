"""Machines and agents as they really are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.domain.fleet import GpuState, NodeInfo, NodeReport
from orchestrator.domain.states import Reason
from orchestrator.spec.models import Variant

GIB = 2**30
BEGIN = datetime(2026, 3, 1, 20, 0, tzinfo=UTC)
POOLS = ("laptop", "gpu", "lab")


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
    _told: tuple[object, NodeInfo] | None = None
    """The same as long as nothing has changed."""

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
        known = (self.boots, self.known_alive, self.draining, self.busy, self.foreign)
        if self._told is None or self._told[0] != known:
            self._told = (known, self._info())
        return self._told[1]

    def _info(self) -> NodeInfo:
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
    stops: float = math.inf
    """When its run's hours end, less the time to save; on a clock that goes on while it sleeps."""
    slept: bool = False
    """Since it began."""
    version: int = 0
    ended: Reason | None = None
    """How it ended; told to the controller when that can be reached."""
    told: bool = False
    gone: bool = False
    """Its machine lost power: nobody will hear of it again."""


def speed(variant: Variant) -> float:
    """How fast work is done there."""
    return 5.0 if variant.gpus else 1.0
