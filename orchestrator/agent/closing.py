"""The end of an attempt: everything goes to the controller, the outcome last; small evidence stays."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.agent.artifacts import Artifacts
from orchestrator.agent.reporter import Reporter
from orchestrator.agent.workdir import WorkDir, prune
from orchestrator.clock import Clock
from orchestrator.messages_agent import Outcome

log = logging.getLogger(__name__)

_POLL_S = 0.2


@dataclass(frozen=True)
class Patience:
    """How long the end of an attempt may take, in seconds."""

    store_away: float = 600.0
    """For a store that refuses the last checkpoint to take it after all. An upload that goes well may take as
    long as it takes."""
    store_full: float = 60.0
    """The same where the store is full: somebody has to make room."""
    cancelled: float = 30.0
    """For the last checkpoint of a run whose result may not be wanted."""
    compiled: float = 10.0
    """For a compiled step to be stored, where nobody has asked the run to end."""
    artifacts: float = 120.0
    """For artifacts to be sent."""
    deliver: float = 600.0
    """For the controller to have taken everything."""
    hurried: float = 5.0
    """The last two once the agent has been asked to end, for instance because the machine shuts down."""


class Closing:
    """Delivers and cleans up."""

    def __init__(
        self,
        folder: WorkDir,
        reporter: Reporter,
        artifacts: Artifacts,
        patience: Patience,
        rest: Callable[[float], None],
        hurried: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._reporter = reporter
        self._artifacts = artifacts
        self._patience = patience
        self._rest = rest
        self._hurried = hurried
        self._clock = clock

    def run(self, outcome: Outcome, with_artifacts: bool) -> None:
        """Deliver as long as patience lasts. An outcome that nobody took stays on disk, with its data."""
        log.info("outcome: %s", outcome.model_dump_json())
        self._write(outcome, acknowledged=False)
        if with_artifacts:
            self._artifacts.finish()
            self._wait(self._artifacts.complete.is_set, self._patience.artifacts)
        self._reporter.finish(outcome)
        delivered = self._wait(self._reporter.finished.is_set, self._patience.deliver)
        self._reporter.close()
        if delivered:
            self._write(outcome, acknowledged=True)
        else:
            log.warning("the controller did not take everything; %s says how it ended", self._folder.outcome)
        self._folder.clean(everything_delivered=delivered)
        prune(self._folder.root.parent)

    def _wait(self, condition: Callable[[], bool], patience: float) -> bool:
        began = self._clock.monotonic()
        while not condition():
            limit = min(patience, self._patience.hurried) if self._hurried() else patience
            if self._clock.monotonic() - began > limit:
                return False
            self._rest(_POLL_S)
        return True

    def _write(self, outcome: Outcome, acknowledged: bool) -> None:
        data = {**outcome.model_dump(mode="json"), "acknowledged": acknowledged}
        temporary = self._folder.root / ".outcome.json"
        try:
            temporary.write_text(json.dumps(data, indent=1))
            temporary.replace(self._folder.outcome)
        except OSError as error:  # The controller should hear of the end all the same.
            log.error("cannot write %s: %s", self._folder.outcome, error)
