"""What the scheduler knows of machines and of what occupies them."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class ActorInfo:
    """What Ray says about the actor of one attempt."""

    name: str
    state: str
    """`alive`, `dead`, `pending` or `missing`."""
    agent_alive: bool | None = None
    """Whether the agent's process runs; None where the actor could not be asked."""
