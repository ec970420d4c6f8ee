"""Fires: decides due times when they come, and creates their work.

Deciding is one transaction: the records of due times, and up to when they are decided. A fire that is to
create work waits in the ledger, is submitted with a key of its own, and is noted as created. After a crash
between the two the key finds what was submitted, so no fire creates work twice, and none is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from orchestrator.clock import Clock
from orchestrator.domain.notice import NoticeKind
from orchestrator.domain.records import RunRecord
from orchestrator.domain.schedules import (
    FireRecord,
    FireState,
    Overlap,
    Ruling,
    ScheduleRecord,
    ScheduleState,
    decide,
    next_due,
)
from orchestrator.domain.states import Reason
from orchestrator.domain.sweeps import SweepRecord
from orchestrator.errors import OrchError, StoreUnavailableError, UnavailableError
from orchestrator.messages import SubmitRequest, Submitted
from orchestrator.messages_sweeps import SweepRequest, SweepSubmitted
from orchestrator.notify.texts import barren
from orchestrator.spec.sweep import SweepSpec
from orchestrator.store.ledger import Ledger, Transaction

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 5.0
"""While there is something to come the clock is read this often: it may be set, and the machine may sleep."""
WAITING_PAUSE_S = 1.0
"""How often it is looked whether what a fire waits for has ended."""
TROUBLE_PAUSE_S = 10.0
"""Pause after something did not answer."""

Work = RunRecord | SweepRecord


class Runs(Protocol):
    """Where runs are submitted."""

    def submit(self, request: SubmitRequest) -> Submitted:
        """Accept a spec; the same key with the same spec is the same run."""
        ...

    def cancel(self, ref: str) -> object:
        """End a run for good; durable once it returns."""
        ...


class Sweeps(Protocol):
    """Where sweeps are submitted."""

    def submit(self, request: SweepRequest) -> SweepSubmitted:
        """Accept a sweep; the same key with the same spec is the same sweep."""
        ...

    def cancel(self, ref: str) -> object:
        """End a sweep and its runs for good; durable once it returns."""
        ...


class Firing:
    """Runs in a thread of its own; :meth:`wake` makes it look at once."""

    def __init__(self, ledger: Ledger, runs: Runs, sweeps: Sweeps, clock: Clock) -> None:
        self._ledger = ledger
        self._runs = runs
        self._sweeps = sweeps
        self._clock = clock
        self.lock = threading.RLock()
        """Held while fires are decided and while one is submitted: nobody decides otherwise meanwhile."""
        self._changed = True
        self._more = self._waiting = self._trouble = False
        self._next: datetime | None = None
        self._seen = clock.now()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="firing", daemon=True)

    def start(self) -> None:
        """Begin to fire."""
        self._thread.start()

    def stop(self) -> None:
        """Fire no more; what has fired goes on."""
        self._stop.set()
        self._wake.set()
        self._thread.join(10)

    def wake(self) -> None:
        """A schedule has changed: look now."""
        self._changed = True
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
                pause = self._pause()
            except Exception:
                # The edge of a thread.
                log.exception("a look at the schedules failed; the next one tries again")
                self._changed, pause = True, TROUBLE_PAUSE_S
            self._wake.wait(pause)
            self._wake.clear()

    def _pause(self) -> float | None:
        """Seconds until the next look; None: until somebody calls."""
        if self.more:
            return 0.0
        if self._next is None and not self._waiting:
            return None
        longest = WAITING_PAUSE_S if self._waiting else LONGEST_PAUSE_S
        longest = TROUBLE_PAUSE_S if self._trouble else longest
        ahead = (self._next - self._clock.now()).total_seconds() if self._next else longest
        return min(max(ahead, 0.0), longest)

    def look(self) -> None:
        """Decide what is due and submit what is to be submitted. Safe to repeat at any time; reads nothing
        where nothing has changed and nothing is due."""
        now = self._clock.now()
        due = self._next is not None and self._next <= now
        turned_back, self._seen = now < self._seen, now
        undecided = due or turned_back or self._changed or self._more
        with self.lock:
            if undecided:
                self._changed = self._more = False
                self._decide_all(now)
            if undecided or self._waiting or self._trouble:
                self._trouble = False
                self._submit_waiting()

    @property
    def more(self) -> bool:
        """Whether the next look has something to do at once."""
        return self._more or self._changed

    def _decide_all(self, now: datetime) -> None:
        for schedule in self._active():
            if schedule.cursor > now or _is_due(schedule, now):
                while self.decide(schedule.id):
                    pass
        self._next = min(filter(None, map(next_due, self._active())), default=None)

    def _active(self) -> list[ScheduleRecord]:
        with self._ledger.read() as ledger:
            return ledger.schedules.all(states=[ScheduleState.ACTIVE])

    # ---- deciding

    def decide(self, schedule_id: str) -> bool:
        """Decide due times of a schedule up to now; whether there are more."""
        now = self._clock.now()

        def ruling(
            ledger: Transaction, schedule: ScheduleRecord, waiting: list[FireRecord], busy: str
        ) -> Ruling:
            known = ledger.schedules.fires_after(schedule.id, min(schedule.cursor, now))
            decided = decide(schedule, now, known, waiting, busy)
            before = next(iter(ledger.schedules.fires(schedule.id, 1)), None)
            for fire in [*decided.dropped, *decided.fires]:
                # A schedule that fires every minute beside long work is not to send a message every minute.
                if before is None or fire.state is not before.state:
                    self._tell(ledger, schedule, fire)
                before = fire
            return decided

        return self.rule(schedule_id, ruling).more

    def rule(self, schedule_id: str, ruling: Rule) -> Ruling:
        """Apply a decision about a schedule, in the transaction in which it was made."""
        with self.lock, self._ledger.begin() as ledger:
            schedule = ledger.schedules.get(schedule_id)
            waiting = self._settle(ledger, schedule)
            decided = ruling(ledger, schedule, waiting, _busy(ledger, schedule))
            if decided.schedule != schedule:
                ledger.schedules.save(decided.schedule)
            for fire in decided.dropped:
                ledger.schedules.save_fire(fire)
            for fire in decided.fires:
                ledger.schedules.add_fire(fire)
        return decided

    def _settle(self, ledger: Transaction, schedule: ScheduleRecord) -> list[FireRecord]:
        """Note the work of fires that were submitted before a crash; the fires that do wait."""
        waiting = []
        for fire in ledger.schedules.waiting(schedule.id):
            work = _work(ledger, schedule, fire)
            if work is None:
                waiting.append(fire)
            else:
                self._note(ledger, schedule, fire, work.id)
        return waiting

    def _note(self, ledger: Transaction, schedule: ScheduleRecord, fire: FireRecord, work_id: str) -> None:
        if isinstance(schedule.spec, SweepSpec):
            created = replace(fire, state=FireState.CREATED, message="", sweep_id=work_id)
        else:
            created = replace(fire, state=FireState.CREATED, message="", run_id=work_id)
            text = f"created by schedule {schedule.name} ({schedule.id}), due {schedule.local(fire.due)}"
            ledger.add_event(work_id, self._clock.now(), "schedule", text)
        ledger.schedules.save_fire(created)

    # ---- submitting

    def _submit_waiting(self) -> None:
        """Let the first fire that waits of each schedule go ahead, where it can."""
        with self._ledger.read() as ledger:
            waiting = ledger.schedules.waiting()
        first = {fire.schedule_id: fire for fire in reversed(waiting)}
        for fire in first.values():
            self._go_ahead(fire)
        with self._ledger.read() as ledger:
            self._waiting = bool(ledger.schedules.waiting())

    def _go_ahead(self, fire: FireRecord) -> None:
        with self._ledger.read() as ledger:
            schedule = ledger.schedules.get(fire.schedule_id)
            earlier = _unfinished(ledger, schedule)
        if earlier is None:
            self._submit(schedule, fire)
        elif schedule.overlap is Overlap.REPLACE:
            self._cancel(earlier)

    def _cancel(self, earlier: Work) -> None:
        """Order work to save and end for good, once."""
        if isinstance(earlier, SweepRecord):
            if earlier.state.final:
                return
            self._sweeps.cancel(earlier.id)
        elif earlier.stop == Reason.CANCELLED:
            return
        else:
            self._runs.cancel(earlier.id)
        self._more = True

    def _submit(self, schedule: ScheduleRecord, fire: FireRecord) -> None:
        try:
            work_id = self._work_for(schedule, fire)
        except (UnavailableError, StoreUnavailableError) as error:
            self._trouble = True
            self._change(schedule, fire, message=f"not submitted yet: {error.message}")
        except OrchError as error:
            log.warning("the fire %s of schedule %s has failed: %s", fire.local, schedule.name, error.message)
            self._more = True
            self._change(schedule, fire, state=FireState.FAILED, message=error.message)
        else:
            self._more = True
            with self._ledger.begin() as ledger:
                self._note(ledger, schedule, fire, work_id)

    def _change(self, schedule: ScheduleRecord, fire: FireRecord, **values: Any) -> None:
        changed = replace(fire, **values)
        if changed != fire:
            with self._ledger.begin() as ledger:
                ledger.schedules.save_fire(changed)
                self._tell(ledger, schedule, changed)

    def _tell(self, ledger: Transaction, schedule: ScheduleRecord, fire: FireRecord) -> None:
        """Have people told where a fire has come to nothing: with the record of it, or not at all."""
        if fire.state in (FireState.WAITING, FireState.CREATED):
            return
        spec = schedule.spec
        experiment = spec.base.experiment if isinstance(spec, SweepSpec) else spec.experiment
        title, body = barren(schedule, fire)
        ledger.notices.add(
            NoticeKind.SCHEDULE,
            schedule.id,
            self._clock.now(),
            key=fire.local,
            name=spec.name,
            experiment=experiment,
            title=title,
            body=body,
        )

    def _work_for(self, schedule: ScheduleRecord, fire: FireRecord) -> str:
        """The id of the fire's work: what was submitted before, whatever the spec means by now, or new."""
        with self._ledger.read() as ledger:
            known = _work(ledger, schedule, fire)
        if known is not None:
            return known.id
        source, user = schedule.source, schedule.user
        if isinstance(schedule.spec, SweepSpec):
            sweep = SweepRequest(
                spec=schedule.spec, key=fire.key, source=source, user=user, schedule_id=schedule.id
            )
            return self._sweeps.submit(sweep).sweep_id
        return self._runs.submit(
            SubmitRequest(spec=schedule.spec, key=fire.key, source=source, user=user)
        ).run_id


Rule = Callable[[Transaction, ScheduleRecord, list[FireRecord], str], Ruling]
"""What decides about a schedule, from the fires that wait and what has not ended, in words."""


def _is_due(schedule: ScheduleRecord, now: datetime) -> bool:
    due = next_due(schedule)
    return due is not None and due <= now


def _work(ledger: Transaction, schedule: ScheduleRecord, fire: FireRecord) -> Work | None:
    """What was submitted for a fire."""
    if isinstance(schedule.spec, SweepSpec):
        return ledger.sweeps.by_key(fire.key)
    return ledger.run_by_key(fire.key)


def _unfinished(ledger: Transaction, schedule: ScheduleRecord) -> Work | None:
    """The work that the schedule created last, where it has not ended. There is no other that has not: a fire
    goes ahead only when all work before it has ended."""
    last = ledger.schedules.newest_created(schedule.id)
    if last is None:
        return None
    if last.sweep_id is not None:
        sweep = ledger.sweeps.get(last.sweep_id)
        return None if sweep.state.final and not ledger.schedules.open_runs(sweep.id) else sweep
    assert last.run_id is not None
    run = ledger.run(last.run_id)
    return None if run.state.final else run


def _busy(ledger: Transaction, schedule: ScheduleRecord) -> str:
    work = _unfinished(ledger, schedule)
    if work is None:
        return ""
    kind = "sweep" if isinstance(work, SweepRecord) else "run"
    return f"{kind} {work.id} ({work.spec.name}) of an earlier fire had not ended"
