"""Whether an attempt that has gone quiet is still there. Pure.

Unreachable is not dead: silence alone ends an attempt only after a long time. What ends it sooner is
evidence: Ray has declared the node dead, or the actor has looked and the agent's process is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.fleet import ActorInfo
from orchestrator.domain.records import AttemptRecord
from orchestrator.domain.states import Phase, Reason

QUIET_S = 4.0
"""Silence after which evidence is looked for. Agents speak about once a second."""
NODE_DEAD_S = 4.0
"""Silence after which an attempt on a node that Ray has declared dead is over."""
ABANDONED_S = 90.0
"""Silence after which an attempt whose actor is gone is over: time for its agent to save and say so."""
LAUNCH_S = 120.0
"""Time for a launch to lead to a first word of the agent."""


@dataclass(frozen=True)
class Lost:
    """The attempt is over."""

    reason: Reason
    message: str


def needs_probe(silence: float) -> bool:
    """Whether to ask the actor about its agent."""
    return silence > QUIET_S


def verdict(
    attempt: AttemptRecord, silence: float, node_alive: bool | None, actor: ActorInfo | None
) -> Lost | None:
    """None while the attempt counts as living.

    `silence` is seconds since its agent last spoke (or since this controller started); `node_alive` is None
    while Ray itself is away; `actor` is None where it was not asked.
    """
    if node_alive is False and silence > NODE_DEAD_S:
        return Lost(Reason.NODE_LOST, f"{attempt.node} was lost")
    if silence <= QUIET_S or actor is None:
        return None
    if actor.state == "alive" and actor.agent_alive is False:
        return Lost(Reason.AGENT_LOST, f"the agent on {attempt.node} ended without a word")
    gone = actor.state in ("dead", "missing")
    if gone and attempt.phase != Phase.LAUNCHING and silence > ABANDONED_S:
        return Lost(Reason.AGENT_LOST, f"nothing heard from {attempt.node} for {silence:.0f} s")
    if attempt.phase == Phase.LAUNCHING and silence > LAUNCH_S:
        return Lost(Reason.NOT_STARTED, f"no word from the agent on {attempt.node} within {LAUNCH_S:.0f} s")
    return None
