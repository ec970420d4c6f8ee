"""Agents that live on this machine, by the files that they leave in their attempts' folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.identity import ProcessId
from orchestrator.settings import Home


@dataclass(frozen=True)
class Agent:
    """A living agent on this machine."""

    process: ProcessId
    folder: Path

    @property
    def node(self) -> str:
        """Name of the node that it works for."""
        return self.folder.parent.parent.name


def agents(home: Home) -> list[Agent]:
    """Agents that run here."""
    found = []
    for file in home.nodes.glob("*/attempts/*/agent.json"):
        try:
            who = json.loads(file.read_text())
            process = ProcessId(int(who["pid"]), float(who["create_time"]))
        except (FileNotFoundError, ValueError, KeyError):
            continue
        if process.alive():
            found.append(Agent(process, file.parent))
    return found
