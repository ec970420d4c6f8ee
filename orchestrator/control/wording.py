"""Puts the ends of runs into words."""

from __future__ import annotations

from typing import Final

from orchestrator.control.pages import pages
from orchestrator.domain.notice import beats
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.notify import texts
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool

ENDED: Final = tuple(state for state in RunState if state.final)
OTHERS: Final = 500
"""Ended runs of an experiment, the newest, that a run is compared with."""


class Wording:
    """Reads what there is to say of a run from the ledger and the spool."""

    def __init__(self, ledger: Ledger, spool: Spool, mlflow_url: str) -> None:
        self._ledger = ledger
        self._spool = spool
        self._mlflow_url = mlflow_url

    def ended(self, run: RunRecord) -> texts.Words:
        """Title and body for the end of a run. Looks at all values of the run's metric."""
        policy = run.spec.checkpoint
        with self._ledger.read() as ledger:
            attempts = ledger.attempts(run.id)
            ended = ledger.runs(states=ENDED, experiment=run.spec.experiment, limit=OTHERS)
        others = [one.id for one in ended if one.id != run.id]
        found = self._spool.best([run.id, *others], policy.metric, policy.mode)
        own = found.pop(run.id, None)
        record = own is not None and bool(found)
        if own is not None:
            record = record and all(beats(own[1], value, policy.mode) for _, value in found.values())
        latest = self._spool.latest_many([run.id], keys=[policy.metric]).get(run.id, {})
        last = next(iter(latest.values()), None)
        return texts.ended(texts.Facts(run, attempts, last, own, record, self.links(run)))

    def links(self, run: RunRecord) -> dict[str, str]:
        """The pages about a run."""
        return pages(self._spool, self._mlflow_url, run.id)
