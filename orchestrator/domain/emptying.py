"""Which runs have to leave their machines, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.domain.fleet import NodeInfo
from orchestrator.domain.records import AttemptRecord
from orchestrator.domain.states import Reason


@dataclass(frozen=True)
class Leave:
    """One run is to save and go."""

    run_id: str
    attempt: int
    reason: Reason
    text: str
    """What happened to the machine, in words."""


def leaving(nodes: Iterable[NodeInfo], attempts: Iterable[AttemptRecord]) -> list[Leave]:
    """Whoever executes on a node that is being drained, or whose owner wants it for himself.

    A gang leaves as a whole as soon as one of its nodes is to be empty. Nodes are told apart by name, because
    a node whose Ray was started again has another id, and its agents run on.
    """
    orders = {node.name: order for node in nodes if (order := _order(node))}
    found = []
    for attempt in attempts if orders else ():
        names = [attempt.node, *(member.node for member in attempt.members)]
        name = next((name for name in names if name in orders), None)
        if name is not None and not attempt.ended:
            found.append(Leave(attempt.run_id, attempt.number, *orders[name]))
    return found


def _order(node: NodeInfo) -> tuple[Reason, str] | None:
    if node.draining:
        return Reason.DRAINED, f"{node.name} is being drained"
    if node.report.busy and node.report.yields:
        return Reason.OWNER, f"the owner of {node.name} needs it: {node.report.busy}"
    return None
