"""What a run asks of machines: the same for thousands of runs, so it is kept once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from orchestrator.spec.models import RunSpec, Variant


@dataclass(frozen=True, slots=True)
class Demand:
    """What one variant needs on each node that takes a rank of it."""

    index: int
    """Place in the spec's list."""
    pool: str
    cpus: float
    gpus: int = 0
    gpu_memory: int | None = None
    """Bytes of one GPU that is shared; None: whole GPUs."""
    memory: int = 0
    """Bytes."""
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """All that the planner has to know of a spec. Runs of one shape fit, or do not fit, together."""

    demands: tuple[Demand, ...]
    """Best first."""
    best: bool = False
    """Whether to wait for the first one, for `wait` seconds at most."""
    wait: float = 0.0


def shape_of(spec: RunSpec, pin_pool: str | None = None) -> Shape:
    """The shape of a spec; with a pool that its user moved it to, of its variants there only."""
    demands = tuple(
        demand_of(index, variant)
        for index, variant in enumerate(spec.placement)
        if pin_pool in (None, variant.pool)
    )
    best = spec.start == "best" and len(demands) > 1
    return _same(Shape(demands, best, spec.wait if best else 0.0))


def demand_of(index: int, variant: Variant) -> Demand:
    """What one variant needs."""
    return Demand(
        index,
        variant.pool,
        float(variant.cpus),
        variant.gpus,
        variant.gpu_memory,
        variant.memory or 0,
        variant.ranks,
    )


@lru_cache(maxsize=10_000)
def _same(shape: Shape) -> Shape:
    """One object for equal shapes, so that a long queue stays small."""
    return shape
