"""Sweeps: accepts them, and goes on with each whenever one of its runs has changed.

The ledger is the truth. A trial and its run are recorded in one transaction, and everything that a round
does follows from what is recorded and measured, so that a controller that dies anywhere is replaced by one
that goes on, with no trial twice and none lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from orchestrator.clock import Clock
from orchestrator.control.ids import key_taken, new_id
from orchestrator.control.live_sweep import LiveSweep, Suggested, Told
from orchestrator.control.sweep_round import Question, Round, SweepRound
from orchestrator.domain.records import RunRecord
from orchestrator.domain.sweeps import SweepRecord, SweepState
from orchestrator.domain.transitions import cancel
from orchestrator.errors import ConflictError, OrchError
from orchestrator.messages_sweeps import ExtendRequest, SweepRequest, SweepSubmitted
from orchestrator.spec.identity import sweep_hash
from orchestrator.spec.sweep import SweepSpec
from orchestrator.spec.sweep_loading import check_sweep
from orchestrator.store.ledger import Ledger, Transaction

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often a sweep is looked at whose budget, target or pruner depends on what runs are doing meanwhile."""
_LATELY, _AGAIN = timedelta(hours=1), 5
"""Sweeps that ended within this time, at most so many, are said to have ended once more at the start."""
AGAIN_S = 5.0
"""Pause after a round that failed."""


class Sweeps:
    """All sweeps. The use cases may be called from any thread; rounds are made in a thread of their own."""

    def __init__(self, ledger: Ledger, rounds: SweepRound, told: Told, clock: Clock) -> None:
        self._ledger = ledger
        self._rounds = rounds
        self._told = told
        self._clock = clock
        self._lock = threading.RLock()
        """Held by use cases, and by rounds but while a sampler thinks: they never see each other's half."""
        self._live: dict[str, LiveSweep] = {}
        self._changed: dict[str, RunRecord] = {}
        """Runs of trials that have changed since they were last looked at."""
        self._news = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeps", daemon=True)
        ledger.watch(self._follow)
        with ledger.read() as reading:
            for sweep in reading.sweeps.unsettled():
                self._live[sweep.id] = rounds.live(reading, sweep)

    # ---- the thread

    def start(self) -> None:
        """Begin to make rounds."""
        for live in self._live.values():
            self._told.again(live)
        with self._ledger.read() as reading:
            ended = reading.sweeps.all(states=[state for state in SweepState if state.final], limit=_AGAIN)
        for sweep in ended:  # the controller before this one may have ended before it could say so
            if sweep.ended_at is not None and self._clock.now() - sweep.ended_at < _LATELY:
                self._told.ended(sweep)
        self._thread.start()

    def stop(self) -> None:
        """Make no more rounds."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            self._wake.wait(self.look())

    def look(self) -> float | None:
        """One round of every sweep; the pause until the next, None where only news are a reason for one."""
        with self._lock:
            changed = self._take_changed()
            sweeps = list(self._live.values())
        pauses = [self._round(live, changed) for live in sweeps]
        return min((pause for pause in pauses if pause is not None), default=None)

    def _round(self, live: LiveSweep, changed: dict[str, RunRecord]) -> float | None:
        making = self._rounds.make(live, changed)
        try:
            question = self._go_on(live, making, None)
            while question is not None:
                # Without the lock: a Gaussian process thinks for seconds, and nobody has to wait for it.
                question = self._go_on(live, making, question())
        except OrchError as error:
            log.warning("sweep %s waits: %s", live.sweep.id, error)
            return AGAIN_S
        except Exception:
            # The edge of a thread: one sweep must not hold up the others.
            log.exception("a round of sweep %s failed; the next one tries again", live.sweep.id)
            live.stale = True
            return AGAIN_S
        with self._lock:
            if live.settled and self._is_current(live):
                del self._live[live.sweep.id]
        return LOOK_S if live.must_be_watched else None

    def _go_on(self, live: LiveSweep, making: Round, answer: Suggested | None) -> Question | None:
        """Go on with a round up to its next question. It ends where a use case has changed the sweep."""
        with self._lock:
            if not self._is_current(live):
                return None
            try:
                return making.send(answer)
            except StopIteration:
                return None

    def _is_current(self, live: LiveSweep) -> bool:
        return self._live.get(live.sweep.id) is live

    def _follow(self, transaction: Transaction) -> None:
        if not self._live:
            return
        with self._news:
            self._changed |= transaction.runs_changed
        self._wake.set()

    def _take_changed(self) -> dict[str, RunRecord]:
        with self._news:
            changed, self._changed = self._changed, {}
        return changed

    # ---- use cases

    def submit(self, request: SweepRequest) -> SweepSubmitted:
        """Accept a sweep. On return it is on disk.

        The same key with the same spec is the same sweep; ConflictError where the key was used for another.
        SpecError where not every trial would be accepted as a run.
        """
        digest = sweep_hash(request.spec)
        with self._ledger.read() as reading:
            if reading.sweeps.by_key(request.key) is None:
                check_sweep(request.spec)  # takes up to a second
        with self._lock, self._ledger.begin() as ledger:
            known = ledger.sweeps.by_key(request.key)
            if known is None:
                sweep = ledger.sweeps.add(self._new(request, digest))
                self._live[sweep.id] = self._rounds.live(ledger, sweep)
        if known is not None:
            if known.spec_hash != digest:
                raise key_taken(request.key, f"sweep {known.id}")
            return SweepSubmitted(sweep_id=known.id, name=known.spec.name, created=False)
        self._told.created(sweep)
        self._wake.set()
        return SweepSubmitted(sweep_id=sweep.id, name=sweep.spec.name, created=True)

    def _new(self, request: SweepRequest, digest: str) -> SweepRecord:
        return SweepRecord(
            id=new_id(),
            seq=0,
            key=request.key,
            spec=request.spec,
            spec_hash=digest,
            source=request.source,
            user=request.user,
            state=SweepState.RUNNING,
            created_at=self._clock.now(),
            schedule_id=request.schedule_id,
        )

    def pause(self, ref: str) -> SweepRecord:
        """No new trials and no promotions until it is resumed; what executes goes on."""
        return self._change(ref, lambda sweep: _state(sweep, SweepState.PAUSED, "paused by its user"))

    def resume(self, ref: str) -> SweepRecord:
        """Go on with a paused sweep."""
        return self._change(ref, lambda sweep: _state(sweep, SweepState.RUNNING, ""))

    def extend(self, ref: str, request: ExtendRequest) -> SweepRecord:
        """Give a sweep a larger budget; one that has finished goes on."""

        def extended(sweep: SweepRecord) -> SweepRecord:
            if sweep.state == SweepState.CANCELLED:
                raise ConflictError(f"sweep {sweep.id} was cancelled", remedy="submit it anew")
            spec = _extended(sweep.spec, request)
            return replace(sweep, spec=spec, state=SweepState.RUNNING, message="", ended_at=None)

        return self._change(ref, extended, ended_too=True)

    def cancel(self, ref: str) -> SweepRecord:
        """End a sweep and the runs of its trials for good. Durable once it returns."""
        now = self._clock.now()
        ended: list[RunRecord] = []
        with self._lock, self._ledger.begin() as ledger:
            before = ledger.sweeps.find(ref)
            if before.state.final:
                return before
            sweep = replace(before, state=SweepState.CANCELLED, message="cancelled by its user", ended_at=now)
            ledger.sweeps.save(sweep)
            for run in map(ledger.run, ledger.sweeps.open_run_ids(sweep.id)):
                after = cancel(run, now)
                if after != run:
                    ledger.save_run(after)
                    ledger.add_event(run.id, now, "cancel", f"its sweep {sweep.spec.name} was cancelled")
                ended += [after] if after.state.final else []
            self._take(sweep, ledger)
        self._told.runs_ended(ended)
        self._told.ended(sweep)
        self._wake.set()
        return sweep

    def _change(
        self, ref: str, change: Callable[[SweepRecord], SweepRecord], *, ended_too: bool = False
    ) -> SweepRecord:
        with self._lock, self._ledger.begin() as ledger:
            sweep = ledger.sweeps.find(ref)
            if sweep.state.final and not ended_too:
                raise ConflictError(
                    f"sweep {sweep.id} has ended ({sweep.state.value})",
                    remedy="`orch sweep extend` lets a finished one go on",
                )
            changed = change(sweep)
            if changed != sweep:
                ledger.sweeps.save(changed)
                self._take(changed, ledger)
        self._told.changed(changed)
        self._wake.set()
        return changed

    def _take(self, sweep: SweepRecord, ledger: Transaction) -> None:
        """Be at one with the ledger."""
        self._live[sweep.id] = self._rounds.live(ledger, sweep)


def _state(sweep: SweepRecord, state: SweepState, message: str) -> SweepRecord:
    return sweep if sweep.state == state else replace(sweep, state=state, message=message)


def _extended(spec: SweepSpec, request: ExtendRequest) -> SweepSpec:
    """The spec with a larger budget; ConflictError where a part of it would become smaller."""
    changes = request.model_dump(exclude_none=True)
    parallel = changes.pop("parallel", spec.parallel)
    for key, value in changes.items():
        now = getattr(spec.budget, key)
        if now is not None and value < now:
            raise ConflictError(f"the budget has {key} {now:g} already", remedy="give a larger number")
    budget = spec.budget.model_copy(update=changes)
    return spec.model_copy(update={"budget": budget, "parallel": parallel})
