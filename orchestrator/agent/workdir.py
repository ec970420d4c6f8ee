"""The folder of one attempt on its node: its layout, what stays of it as evidence, and when it goes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.identity import ProcessId

log = logging.getLogger(__name__)

KEEP_ATTEMPTS = 20
"""Folders of ended attempts that stay on a node."""
_BULK = ("program", "checkpoints", "taken", "restore", "wanted")
_DATA = ("artifacts", "metrics.jsonl", "output.log", "config.json", "keeper.json")


@dataclass(frozen=True)
class WorkDir:
    """Paths of one attempt. Nothing else joins paths below it."""

    root: Path

    @property
    def job(self) -> Path:
        """What the agent was told to do."""
        return self.root / "job.json"

    @property
    def launch(self) -> Path:
        """Who launched the agent, with which GPUs, and when."""
        return self.root / "launch.json"

    @property
    def agent(self) -> Path:
        """Identity of the agent's process."""
        return self.root / "agent.json"

    @property
    def agent_log(self) -> Path:
        """The agent's own log."""
        return self.root / "agent.log"

    @property
    def outcome(self) -> Path:
        """How the attempt ended."""
        return self.root / "outcome.json"

    @property
    def config(self) -> Path:
        """The trainer's resolved configuration."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """What the program measured, as JSON lines."""
        return self.root / "metrics.jsonl"

    @property
    def output(self) -> Path:
        """What the program wrote to stdout and stderr."""
        return self.root / "output.log"

    @property
    def program(self) -> Path:
        """The program's working directory, unless its spec names another."""
        return self.root / "program"

    @property
    def restore(self) -> Path:
        """The checkpoint to go on from."""
        return self.root / "restore"

    @property
    def checkpoints(self) -> Path:
        """Where the program publishes checkpoints."""
        return self.root / "checkpoints"

    @property
    def taken(self) -> Path:
        """Published checkpoints that the agent has taken over."""
        return self.root / "taken"

    @property
    def artifacts(self) -> Path:
        """Files that are kept with the run."""
        return self.root / "artifacts"

    @property
    def wanted(self) -> Path:
        """Where the trainer asks for compiled steps."""
        return self.root / "wanted"

    def prepare(self) -> None:
        """Create the folders that the program finds."""
        for folder in (self.program, self.checkpoints, self.taken, self.artifacts, self.wanted):
            folder.mkdir(exist_ok=True)

    def clean(self, everything_delivered: bool) -> None:
        """Leave small evidence; program data that the controller does not have yet stays too."""
        for name in (*_BULK, *(_DATA if everything_delivered else ())):
            remove(self.root / name)

    def abandoned(self) -> bool:
        """True where the agent that worked here is dead."""
        try:
            who = json.loads(self.agent.read_text())
            return not ProcessId(int(who["pid"]), float(who["create_time"])).alive()
        except (OSError, ValueError, KeyError, TypeError):
            return False


def remove(path: Path) -> None:
    """Delete a file or a folder; what cannot be deleted stays and is logged."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder, of those that can be looked at."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # whoever reads them says what is wrong
                total += os.stat(os.path.join(parent, name), follow_symlinks=False).st_size
    return total


def prune(attempts: Path, keep: int = KEEP_ATTEMPTS) -> None:
    """Free what dead agents left behind: bulk data at once, whole folders beyond the newest `keep`."""
    ended = [WorkDir(folder) for folder in attempts.iterdir() if WorkDir(folder).abandoned()]
    ended.sort(key=_age, reverse=True)
    for number, folder in enumerate(ended):
        if number < keep:
            folder.clean(everything_delivered=False)
        else:
            remove(folder.root)


def _age(folder: WorkDir) -> float:
    try:
        return folder.agent.stat().st_mtime
    except OSError:
        return 0.0
