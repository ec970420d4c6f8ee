"""Which nodes are to be left alone for a while, because several different runs have failed there. Pure.

A run that fails proves little: it may be broken itself. So a node is excluded only once several *different*
runs have failed on it without an explanation, none having got on there in between, and a run that has failed
on another node too does not count. The node is let in again after a while; if another run fails there before
one gets on, it is excluded again, for longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.domain.records import AttemptRecord
from orchestrator.domain.states import Reason

RUNS = 3
"""Different runs that have to fail."""
WINDOW_S = 1800.0
"""Within this time."""
FIRST_S = 300.0
"""How long a node is excluded the first time; twice as long each time that follows."""
LONGEST_S = 4 * 3600.0
MEMORY_S = 24 * 3600.0
"""Attempts that ended longer ago than this need not be told of."""

UNEXPLAINED = frozenset({Reason.AGENT_LOST, Reason.NOT_STARTED, Reason.PROGRAM_FAILED, Reason.PROGRAM_KILLED})
"""Ends that may be the node's fault. Lost machines, full memory and full stores are explained."""
_GOT_ON = frozenset(
    {
        *(Reason.MOVED, Reason.PREEMPTED, Reason.UPGRADED, Reason.DRAINED, Reason.OWNER),
        *(Reason.SHUTDOWN, Reason.RUNG),
    }
)
"""Orders to save and go: whoever had made steps until then shows that the node works."""


@dataclass(frozen=True)
class Exclusion:
    """A node that is left alone."""

    node: str
    since: datetime
    until: datetime
    runs: tuple[str, ...]
    """Ids of the runs that failed there."""
    run_id: str
    """The last of them."""

    @property
    def why(self) -> str:
        """In words, without anything that changes from second to second."""
        count = len(self.runs)
        what = f"{count} different runs have failed" if count > 1 else "another run has failed"
        return f"excluded until {self.until:%H:%M} UTC, because {what} there ({', '.join(self.runs)})"


def exclusions(attempts: Iterable[AttemptRecord], now: datetime) -> dict[str, Exclusion]:
    """The nodes that are excluded now, by name, from the attempts that have ended lately, in any order."""
    ended = sorted(
        (a for a in attempts if a.ended and a.ended_at is not None and a.ended_at <= now),
        key=lambda a: (a.ended_at, a.run_id, a.number),
    )
    failed_on: dict[str, set[str]] = {}
    for attempt in ended:
        if attempt.reason in UNEXPLAINED:
            failed_on.setdefault(attempt.run_id, set()).add(attempt.node)
    nodes: dict[str, _Node] = {}
    for attempt in ended:
        node = nodes.setdefault(attempt.node, _Node(attempt.node))
        if _got_on(attempt):
            node.clear()
        elif attempt.reason in UNEXPLAINED and len(failed_on[attempt.run_id]) == 1:
            node.fail(attempt)
    found = (node.exclusion for node in nodes.values())
    return {e.node: e for e in found if e is not None and e.until > now}


@dataclass
class _Node:
    """What one node's ended attempts add up to, in the order of their ends."""

    name: str
    exclusion: Exclusion | None = None
    _times: int = 0
    """Exclusions in a row."""
    _failures: dict[str, datetime] = field(default_factory=dict)

    def clear(self) -> None:
        """A run has got on here: all is forgotten, and the node is let in."""
        self.exclusion, self._times = None, 0
        self._failures.clear()

    def fail(self, attempt: AttemptRecord) -> None:
        at = attempt.ended_at
        assert at is not None
        if self.exclusion is not None and attempt.created_at < self.exclusion.until:
            return  # It began before the node was let in again: no news.
        self._failures[attempt.run_id] = at
        oldest = at - timedelta(seconds=WINDOW_S)
        self._failures = {run: when for run, when in self._failures.items() if when >= oldest}
        if len(self._failures) >= (RUNS if self._times == 0 else 1):
            pause = timedelta(seconds=min(LONGEST_S, FIRST_S * 2**self._times))
            self.exclusion = Exclusion(self.name, at, at + pause, tuple(self._failures), attempt.run_id)
            self._times += 1
            self._failures.clear()


def _got_on(attempt: AttemptRecord) -> bool:
    """Whether it shows that the node works: it finished, or was saved and has made steps."""
    steps = (attempt.last_step or 0) - (attempt.first_step or 0)
    return attempt.reason == Reason.COMPLETED or (attempt.reason in _GOT_ON and steps > 0)
