"""What the scheduler knows of machines and of what occupies them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuState:
    """One GPU of a node, as the node sees it."""

    index: int
    name: str
    memory: int
    """Bytes."""
    foreign_memory: int = 0
    """Bytes that processes which are not ours have taken."""
    foreign_use: float = 0.0
    """Share of the last seconds in which kernels of such processes ran, 0 to 1; 0 while ours run too, which
    cannot be told apart."""


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself, every few seconds."""

    gpus: tuple[GpuState, ...] = ()
    busy: str = ""
    """Why its owner needs it now, in words; nothing new starts then. Empty: it is free."""
    yields: bool = False
    """Whether what runs there has to save and go, too."""


@dataclass(frozen=True)
class NodeInfo:
    """One Ray node that may run attempts."""

    ray_id: str
    name: str
    pool: str
    alive: bool
    address: str
    cpus: float
    gpus: float
    memory: int
    """Bytes."""
    report: NodeReport = NodeReport()
    draining: bool = False
    """Whether somebody has ordered it to be emptied: `orch drain`."""
    excluded: str = ""
    """Why nothing is started there for a while, in words: several different runs have failed on it."""
    boot_id: str = ""
    """Changes whenever the machine starts; empty where it is not known."""

    @property
    def closed(self) -> str:
        """Why nothing new may start there, in words; empty where it may."""
        if not self.alive:
            return "it is away"
        if self.draining:
            return "it is being drained"
        if self.excluded:
            return self.excluded
        return f"its owner uses it: {self.report.busy}" if self.report.busy else ""


@dataclass(frozen=True)
class ActorInfo:
    """What Ray says about the actor of one attempt."""

    name: str
    state: str
    """`alive`, `dead`, `pending` or `missing`."""
    agent_alive: bool | None = None
    """Whether the agent's process runs; None where the actor could not be asked."""
