"""Whether an attempt that has gone quiet is still there. Pure.

Unreachable is not dead: a machine that sleeps, or is off the network, is a normal state with a name of its
own, and its attempt may go on there. An attempt is over only on evidence: the actor has looked and the
agent's process is gone; the machine, which Ray has given up, says the same; the machine has been started
anew; the machine is back and its agent stays silent.
Whether the run waits for a quiet attempt or goes on elsewhere is another question: :func:`may_leave`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.domain.fleet import ActorInfo
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import ENDING, Phase, Reason, RunState

QUIET_S = 4.0
"""Silence after which evidence is looked for. Agents speak about once a second."""
NODE_DEAD_S = 4.0
"""Silence after which an attempt on a node that Ray has declared dead is unreachable."""
UNREACHABLE_S = 8.0
"""Silence after which any attempt is."""
LEAVE_S = 20.0
"""Silence after which a run goes on elsewhere if it can, though Ray has not declared its node dead."""
ABANDONED_S = 90.0
"""Silence after which an attempt whose actor is gone is over: time for its agent to save and say so."""
RETURNED_S = 120.0
"""Time for an agent to speak once its machine has come back to Ray, without having been started anew."""
LAUNCH_S = 120.0
"""Time for a launch to lead to a first word of the agent."""
FORGOTTEN_S = 24 * 3600.0
"""Silence after which nobody waits for the end of an attempt that its run has left."""


@dataclass(frozen=True)
class Facts:
    """What is known of an attempt."""

    silence: float
    """Seconds since its agent last spoke, or since this controller started."""
    node_alive: bool | None = True
    """What Ray says of the Ray node that it was started on; None while Ray itself is away."""
    actor: ActorInfo | None = None
    """None where it was not asked."""
    returned_s: float | None = None
    """Seconds since its machine has been back as another Ray node; None where it is not."""
    rebooted: bool = False
    """Its machine has been started anew since its agent spoke."""
    missed: bool = False
    """Its machine has said, after its agent last spoke, that no such agent lives there."""


@dataclass(frozen=True)
class Lost:
    """The attempt is over."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Silent:
    """The attempt is unreachable; it may go on, and may have ended."""

    message: str


def needs_probe(facts: Facts) -> bool:
    """Whether to ask the actor about its agent."""
    return facts.silence > QUIET_S and facts.node_alive is True


def verdict(attempt: AttemptRecord, facts: Facts) -> Lost | Silent | None:
    """None while the attempt counts as living."""
    if facts.silence <= min(QUIET_S, NODE_DEAD_S) and not facts.rebooted:
        return None
    return _evidence(attempt, facts) or _silent(attempt, facts)


def _evidence(attempt: AttemptRecord, facts: Facts) -> Lost | None:
    silence, node, actor = facts.silence, attempt.node, facts.actor
    if facts.rebooted:
        return Lost(Reason.NODE_LOST, f"{node} was started anew")
    if attempt.phase == Phase.LAUNCHING:
        if facts.node_alive is False and silence > NODE_DEAD_S:
            return Lost(Reason.NODE_LOST, f"{node} was lost before the agent there had said a word")
        if silence > LAUNCH_S:
            text = f"no word from the agent on {node} within {LAUNCH_S:.0f} s"
            return Lost(Reason.NOT_STARTED, text)
    if actor is not None and silence > QUIET_S:
        if actor.state == "alive" and actor.agent_alive is False:
            return Lost(Reason.AGENT_LOST, f"the agent on {node} ended without a word")
        gone = actor.state in ("dead", "missing")
        if gone and attempt.phase != Phase.LAUNCHING and silence > ABANDONED_S:
            return Lost(Reason.AGENT_LOST, f"nothing heard from {node} for {silence:.0f} s")
    if facts.missed and facts.node_alive is False and attempt.phase != Phase.LAUNCHING:
        return Lost(Reason.NODE_LOST, f"Ray on {node} was lost, and the agent with it")
    if facts.returned_s is not None and min(facts.returned_s, silence) > RETURNED_S:
        return Lost(Reason.NODE_LOST, f"{node} is back, but the agent there does not speak")
    return None


def _silent(attempt: AttemptRecord, facts: Facts) -> Silent | None:
    if attempt.phase == Phase.LAUNCHING:
        return None
    dead = facts.node_alive is False and facts.silence > NODE_DEAD_S
    if dead or facts.silence > UNREACHABLE_S:
        return Silent(f"{attempt.node} cannot be reached; the run may be going on there")
    return None


def may_leave(run: RunRecord, facts: Facts, fits_elsewhere: Callable[[], bool]) -> str:
    """Why an unreachable run need not wait for its attempt any longer, in words; empty where it has to.

    After the spec's `away` in any case. Before that where the attempt is cut off for sure or for long, and
    another machine has room now (`fits_elsewhere`, asked last), unless `migrate: never`. An actor that sees
    the agent at work is a reason to wait.
    """
    if run.state != RunState.UNREACHABLE:
        return ""
    if facts.silence >= run.spec.away:
        return f"nothing was heard of it for {run.spec.away:g} s (away)"
    at_work = facts.actor is not None and facts.actor.agent_alive is True
    if facts.node_alive is not False and (facts.silence <= LEAVE_S or at_work or facts.node_alive is None):
        return ""
    if run.stop in ENDING:
        return "it cannot be reached"
    if run.stop == Reason.SHUTDOWN or (run.spec.migrate == "never" and run.stop != Reason.MOVED):
        return ""
    return "another machine has room" if fits_elsewhere() else ""
