"""What is known of nodes besides what Ray says: their own reports, and which of them are being drained."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from orchestrator.clock import Clock
from orchestrator.domain.fleet import GpuState, NodeInfo, NodeReport
from orchestrator.errors import SetupError
from orchestrator.messages_agent import NodeNote
from orchestrator.settings import write_private
from orchestrator.store.posix import sync_folder

FRESH_S: Final = 30.0
"""A report that is older does not count: nobody knows what the node does now."""
LATE_S: Final = 6.0
"""So long before it was heard a report may have been made; the node waits 5 s for it to arrive."""
_NOTHING: Final = NodeReport()


class Drains:
    """Names of the nodes that are being drained, in a small file. A change that returned is on disk."""

    def __init__(self, file: Path, clock: Clock) -> None:
        """SetupError where the file cannot be understood."""
        self._file = file
        self._clock = clock
        self._since = _read(file)
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._since

    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(self._since)

    def add(self, name: str) -> None:
        """Drain this node from now on; nothing where it is being drained already."""
        with self._lock:
            if name not in self._since:
                self._write({**self._since, name: self._clock.now().isoformat()})

    def remove(self, name: str) -> None:
        """Do not drain it any more."""
        with self._lock:
            if name in self._since:
                self._write({other: at for other, at in self._since.items() if other != name})

    def _write(self, since: dict[str, str]) -> None:
        write_private(self._file, json.dumps({"draining": since}, indent=1) + "\n")
        sync_folder(self._file.parent)
        self._since = since


def _read(file: Path) -> dict[str, str]:
    try:
        return {str(name): str(at) for name, at in json.loads(file.read_text())["draining"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{file} cannot be understood: {error}",
            remedy="Remove it and name the nodes again: orch drain NODE",
        ) from error


@dataclass(frozen=True)
class _Heard:
    report: NodeReport
    at: float
    """Seconds of the clock that goes on while this machine is suspended."""
    agents: frozenset[str] | None
    boot_id: str


class NodeBook:
    """Reports in memory, drains on disk. Safe to use from several threads."""

    def __init__(self, drains: Drains, clock: Clock) -> None:
        self.drains = drains
        self._clock = clock
        self._heard: dict[str, _Heard] = {}

    def take(self, name: str, note: NodeNote) -> None:
        """A node has said this of itself now."""
        living = None if note.agents is None else frozenset(note.agents)
        self._heard[name] = _Heard(_report(note), self._clock.boottime(), living, note.boot_id)

    def told(self, node: NodeInfo) -> NodeInfo:
        """What Ray says of a node, with the rest."""
        report, draining = self._report(node.name), node.name in self.drains
        if report == node.report and draining == node.draining:
            return node
        return replace(node, report=report, draining=draining)

    def silent_s(self, name: str) -> float | None:
        """Seconds since a node last spoke of itself; None where it never has since this controller began."""
        heard = self._heard.get(name)
        return None if heard is None else self._clock.boottime() - heard.at

    def misses(self, name: str, attempt: str, silent_s: float, boot_id: str) -> bool:
        """Whether a node has said that an attempt (`RUN-aN`) has no agent there, well after that last spoke.

        Only the machine that the agent spoke from can say so: `boot_id` is what the agent called it.
        """
        heard = self._heard.get(name)
        if heard is None or heard.agents is None or not boot_id or heard.boot_id != boot_id:
            return False
        return self._clock.boottime() - heard.at < silent_s - LATE_S and attempt not in heard.agents

    def _report(self, name: str) -> NodeReport:
        heard = self._heard.get(name)
        if heard is None or self._clock.boottime() - heard.at > FRESH_S:
            return _NOTHING
        return heard.report


def _report(note: NodeNote) -> NodeReport:
    gpus = tuple(
        GpuState(gpu.index, gpu.name, gpu.memory, gpu.foreign_memory, gpu.foreign_use) for gpu in note.gpus
    )
    return NodeReport(gpus=gpus, busy=note.busy, yields=note.yields)
