"""The checkpoints of runs as people see them: their list, their tags, and the garbage around them."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta
from typing import Any, Final

from orchestrator.clock import Clock
from orchestrator.control.tracking import checkpoint_uri
from orchestrator.control.views import checkpoint
from orchestrator.domain.records import RunRecord
from orchestrator.domain.states import RunState
from orchestrator.errors import ConflictError, NotFoundError, OrchError
from orchestrator.messages import CheckpointView, GarbageView
from orchestrator.store import compiled
from orchestrator.store.checkpoints import checkpoints
from orchestrator.store.gc import collect, stored_runs
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import ObjectStore
from orchestrator.store.protocol import LEFTOVER
from orchestrator.store.records import CheckpointRecord, Tag, check_tag
from orchestrator.store.runlog import History, RunLog

log = logging.getLogger(__name__)

_FIRST_S: Final = 300.0
_EVERY_S: Final = 3600.0
_GRACE_S: Final = 3600.0
"""For data of runs that this ledger does not know."""


class Keeping:
    """Reads and marks the logs of runs in the store. Once an hour it collects the garbage of ended runs, in a
    thread of its own; running ones are thinned out by their agents.
    """

    def __init__(self, ledger: Ledger, store: ObjectStore, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._clean: set[str] = set()
        """Ended runs that have no garbage and will have none."""
        self._collecting = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="garbage", daemon=True)

    def start(self) -> None:
        """Begin to collect."""
        self._thread.start()

    def stop(self) -> None:
        """Collect nothing more after the run that is looked at."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    # ------------------------------------------------------------------ what people ask

    def checkpoints(self, ref: str) -> list[CheckpointView]:
        """Committed checkpoints, oldest first, as the run log in the store has them."""
        run = self._find(ref)
        return [self._view(record) for record in checkpoints(self._store, run.id)]

    def tag(self, ref: str, step: int, name: str) -> CheckpointView:
        """Give a checkpoint a name; retention leaves it alone from then on. The name leaves the checkpoint
        that had it before. NotFoundError where there is no such checkpoint (any more).
        """
        try:
            check_tag(name)
        except ValueError as error:
            raise ConflictError(str(error)) from error
        run_log = RunLog(self._store, self._find(ref).id)

        def make(stamp: dict[str, Any], history: History) -> Tag:
            return Tag(**stamp, name=name, checkpoint=history.named(str(step)).id)

        made = run_log.note(make)
        found = next(record for record in run_log.history().checkpoints if record.id == made.checkpoint)
        if name not in found.tags:
            raise ConflictError(f"the checkpoint of step {step} was removed meanwhile")
        return self._view(found)

    def untag(self, ref: str, name: str) -> CheckpointView:
        """Take a name away, and tell which checkpoint had it."""
        run = self._find(ref)
        had: list[CheckpointRecord] = []

        def make(stamp: dict[str, Any], history: History) -> Tag:
            found = history.tagged(name)
            if found is None:
                raise NotFoundError(f"no checkpoint of run {run.id} has the tag {name!r}")
            had[:] = [found]
            return Tag(**stamp, name=name)

        RunLog(self._store, run.id).note(make)
        left = tuple(tag for tag in had[0].tags if tag != name)
        return self._view(had[0].model_copy(update={"tags": left}))

    def collect(self, *, dry_run: bool = False) -> list[GarbageView]:
        """Delete what no checkpoint in the store needs, or say what that would be; runs without any are left
        out. What cannot be read is said, and the rest goes on.
        """
        with self._collecting:
            now = self._clock.now()
            unfinished = self._store.tidy(now - LEFTOVER, dry_run=dry_run)
            with self._ledger.read() as ledger:
                known = {run.id: run for run in ledger.runs()}
            found = [
                self._collect(run_id, known.get(run_id), dry_run=dry_run)
                for run_id in stored_runs(self._store)
            ]
            found.append(self._collect_steps(now, dry_run))
        if unfinished:
            size = sum(info.size for info in unfinished)
            found.append(GarbageView(run="", objects=len(unfinished), size=size))
        return [view for view in found if view.objects or view.problem]

    # ------------------------------------------------------------------ by itself

    def _run(self) -> None:
        pause = _FIRST_S
        while not self._stop.wait(pause):
            pause = _EVERY_S
            try:
                self._collect_ended()
            except Exception:
                # The edge of a thread: garbage that stays for an hour harms nobody.
                log.exception("garbage could not be collected")

    def _collect_ended(self) -> None:
        with self._ledger.read() as ledger:
            ended = ledger.runs(states=[state for state in RunState if state.final])
        for run in ended:
            if run.id in self._clean or self._stop.is_set():
                continue
            with self._collecting:
                view = self._collect(run.id, run)
            if view.objects:
                log.info("run %s: collected %d objects, %d bytes", run.id, view.objects, view.size)
            if not view.problem and self._over(run):
                self._clean.add(run.id)

    def _over(self, run: RunRecord) -> bool:
        """Its grace is over, so that what was collected was all."""
        ended = run.ended_at or run.created_at
        return self._clock.now() - ended > timedelta(seconds=run.spec.checkpoint.grace)

    def _collect(self, run_id: str, run: RunRecord | None, *, dry_run: bool = False) -> GarbageView:
        name = run.spec.name if run else ""
        grace = timedelta(seconds=run.spec.checkpoint.grace if run else _GRACE_S)
        try:
            found = collect(
                self._store,
                run_id,
                ended=run is not None and run.state.final,
                retired_before=self._clock.now() - grace,
                dry_run=dry_run,
            )
        except OrchError as error:
            log.warning("run %s: garbage could not be collected: %s", run_id, error.message)
            return GarbageView(run=run_id, name=name, problem=error.message)
        return GarbageView(run=run_id, name=name, objects=found.objects, size=found.size)

    def _collect_steps(self, now: datetime, dry_run: bool) -> GarbageView:
        try:
            found = compiled.collect(self._store, now - compiled.LIFETIME, dry_run=dry_run)
        except OrchError as error:
            return GarbageView(run="", name="compiled steps", problem=error.message)
        size = sum(info.size for info in found)
        return GarbageView(run="", name="compiled steps", objects=len(found), size=size)

    def _find(self, ref: str) -> RunRecord:
        with self._ledger.read() as ledger:
            return ledger.find(ref)

    def _view(self, record: CheckpointRecord) -> CheckpointView:
        return checkpoint(record, record.run, checkpoint_uri(self._store, record))
