"""Which run starts where: a pure function of the queue and of the machines.

Runs are considered by priority, then in the order they were accepted; each takes the first of its variants
that fits a node now. The same function answers why a run waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.domain.fleet import NodeInfo
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.spec.models import Variant


@dataclass(frozen=True)
class NodeLoad:
    """A node and what attempts that have not ended occupy on it."""

    node: NodeInfo
    cpus_used: float = 0
    gpus_used: float = 0
    memory_used: int = 0
    runs: tuple[str, ...] = ()

    def with_variant(self, run_name: str, variant: Variant) -> NodeLoad:
        """The load after one more attempt was placed here."""
        return replace(
            self,
            cpus_used=self.cpus_used + variant.cpus,
            gpus_used=self.gpus_used + variant.gpus,
            memory_used=self.memory_used + (variant.memory or 0),
            runs=(*self.runs, run_name),
        )


@dataclass(frozen=True)
class VariantVerdict:
    """What one variant meets now: a node, or the reason why none will do."""

    index: int
    variant: Variant
    node: NodeInfo | None
    why: str


@dataclass(frozen=True)
class Verdict:
    """What the planner says of one waiting run."""

    run_id: str
    chosen: VariantVerdict | None
    variants: tuple[VariantVerdict, ...]

    @property
    def why(self) -> str:
        """Why the run waits, in words; empty where it starts."""
        return "" if self.chosen else "; ".join(verdict.why for verdict in self.variants)


def loads(
    nodes: Iterable[NodeInfo], attempts: Iterable[AttemptRecord], names: dict[str, str]
) -> list[NodeLoad]:
    """The load of every living node. An attempt counts until it has ended, whatever Ray believes."""
    result = {node.ray_id: NodeLoad(node) for node in nodes if node.alive}
    for attempt in attempts:
        load = result.get(attempt.ray_id)
        if load is not None and not attempt.ended:
            label = names.get(attempt.run_id, attempt.run_id)
            result[attempt.ray_id] = load.with_variant(label, attempt.variant)
    return list(result.values())


def plan(queue: Iterable[RunRecord], fleet: Sequence[NodeLoad], now: datetime) -> list[Verdict]:
    """A verdict for every waiting run, best first; later verdicts see what earlier ones took."""
    current = {load.node.ray_id: load for load in fleet}
    verdicts = []
    for run in sorted(queue, key=lambda run: (-run.spec.priority, run.seq)):
        verdict = judge(run, list(current.values()), now)
        if verdict.chosen and verdict.chosen.node:
            ray_id = verdict.chosen.node.ray_id
            current[ray_id] = current[ray_id].with_variant(run.spec.name, verdict.chosen.variant)
        verdicts.append(verdict)
    return verdicts


def judge(run: RunRecord, fleet: Sequence[NodeLoad], now: datetime) -> Verdict:
    """What each variant of one run meets on these machines."""
    if run.not_before is not None and run.not_before > now:
        wait = (run.not_before - now).total_seconds()
        why = f"tries again in {wait:.0f} s"
        blocked = tuple(VariantVerdict(i, v, None, why) for i, v in enumerate(run.spec.placement[:1]))
        return Verdict(run.id, None, blocked)
    variants = [
        _judge_variant(index, variant, fleet)
        for index, variant in enumerate(run.spec.placement)
        if run.pin_pool in (None, variant.pool)
    ]
    chosen = next((verdict for verdict in variants if verdict.node), None)
    return Verdict(run.id, chosen, tuple(variants))


def _judge_variant(index: int, variant: Variant, fleet: Sequence[NodeLoad]) -> VariantVerdict:
    pool = [load for load in fleet if load.node.pool == variant.pool]
    if not pool:
        known = sorted({load.node.pool for load in fleet})
        there = f"pools there are: {', '.join(known)}" if known else "no node is connected"
        return VariantVerdict(index, variant, None, f"no node of pool {variant.pool} is there ({there})")
    fitting = [load for load in pool if not _lacking(load, variant)]
    if fitting:
        best = min(fitting, key=lambda load: (load.node.cpus - load.cpus_used, load.node.name))
        return VariantVerdict(index, variant, best.node, f"fits on {best.node.name} now")
    reasons = ", ".join(f"{load.node.name}: {_lacking(load, variant)}" for load in pool)
    return VariantVerdict(index, variant, None, f"pool {variant.pool} has no room ({reasons})")


def _lacking(load: NodeLoad, variant: Variant) -> str:
    """What this node lacks for the variant, in words; empty where it fits."""
    node = load.node
    demands = (
        ("CPUs", variant.cpus, node.cpus, load.cpus_used),
        ("GPUs", variant.gpus, node.gpus, load.gpus_used),
        ("bytes of memory", variant.memory or 0, node.memory, load.memory_used),
    )
    for what, wanted, total, used in demands:
        if wanted > total:
            return f"it has {total:g} {what}, {wanted:g} wanted"
        if wanted > total - used:
            users = ", ".join(load.runs)
            return f"{total - used:g} of {total:g} {what} free, {wanted:g} wanted, in use by {users}"
    return ""
