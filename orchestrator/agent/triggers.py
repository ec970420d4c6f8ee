"""What can end an attempt early, and which of several reasons counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.agent.identity import ProcessId
from orchestrator.agent.verdict import Stop
from orchestrator.agent.waking import Waking
from orchestrator.clock import Clock
from orchestrator.domain.states import CONSEQUENCES, ENDING, Reason
from orchestrator.messages_agent import BeatReply, Order

GRACE_S = 60.0
"""Time to save where the controller does not say."""
FENCED_GRACE_S = 5.0
"""A fenced program cannot commit any more; this only lets it end in an orderly way."""

_RANK = {**dict.fromkeys(ENDING, 1), Reason.FENCED: 2}
"""A reason of a higher rank replaces one of a lower rank; of equal ranks the first stays."""


@dataclass
class Triggers:
    """Looks at everything that may end an attempt. `fences` answer why the run is no longer ours, or None."""

    clock: Clock
    watched: ProcessId
    """The Ray actor. When it is gone, nobody holds the resources for us any more."""
    deadline: float | None
    """When the first of the run's limits is met, on the boot-time clock, which goes on while the machine
    sleeps."""
    reply: Callable[[], BeatReply | None]
    fences: list[Callable[[], str | None]] = field(default_factory=list)
    limit: tuple[Reason, str] = (Reason.TIME_LIMIT, "the run has reached its longest duration")
    """Which limit that is, and in words."""
    at_rung: Callable[[], bool] = lambda: False
    """Whether the program has reached the step at which its sweep compares it."""
    spent: Callable[[], str | None] = lambda: None
    """Why the run may use no more energy, or None."""
    limit_grace_s: float = GRACE_S
    """Time to save then."""
    terminated: bool = False
    """SIGTERM has come to the agent."""
    waking: Waking | None = None
    """Where it is given, an actor that ends as the machine wakes is no reason to stop."""
    orphaned: bool = False
    """The actor has ended so, and the attempt goes on without one."""
    stop: Stop | None = None
    """What counts at present."""

    def look(self) -> bool:
        """Look again; True where `stop` has changed."""
        found = self._find()
        if found is None or (self.stop is not None and _rank(found) <= _rank(self.stop)):
            return False
        self.stop = found
        return True

    def _find(self) -> Stop | None:
        for fence in self.fences:
            why = fence()
            if why is not None:
                return Stop(Reason.FENCED, why, FENCED_GRACE_S)
        reply = self.reply()
        if reply is not None and reply.order is Order.STOP:
            reason = reply.reason or Reason.SHUTDOWN
            return Stop(reason, CONSEQUENCES[reason].text, reply.grace_s)
        return self._find_local()

    def _find_local(self) -> Stop | None:
        if self.deadline is not None and self.clock.boottime() >= self.deadline:
            return Stop(*self.limit, self.limit_grace_s)
        if self.at_rung():
            return Stop(Reason.RUNG, CONSEQUENCES[Reason.RUNG].text, GRACE_S)
        if (why := self.spent()) is not None:
            return Stop(Reason.ENERGY, why, GRACE_S)
        if self.terminated:
            return Stop(Reason.SHUTDOWN, "the agent was asked to end", GRACE_S)
        if not self.orphaned and not self.watched.alive():
            if self.waking is not None and self.waking.fresh:
                self.orphaned = True
                self.waking.say("Ray had given this machine up while it slept; the program goes on")
                return None
            return Stop(Reason.ACTOR_LOST, f"the Ray actor (process {self.watched.pid}) has ended", GRACE_S)
        return None


def _rank(stop: Stop) -> int:
    return _RANK.get(stop.reason, 0)
