"""One round of one sweep: settle what its runs have done, compare, let go on or end, and begin new trials."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from orchestrator.clock import Clock
from orchestrator.control.ids import new_id
from orchestrator.control.live_sweep import LiveSweep, Searching, Suggested, Told
from orchestrator.control.measured import OWN_METRICS
from orchestrator.control.origin import Origin
from orchestrator.domain import trials as judging
from orchestrator.domain.median import worse_than_median
from orchestrator.domain.records import RunRecord
from orchestrator.domain.rungs import Promotion, bracket_of, decide, pool_at, rungs
from orchestrator.domain.states import Reason, RunState
from orchestrator.domain.sweeps import SweepRecord, SweepState, TrialRecord, TrialState
from orchestrator.domain.transitions import cancel
from orchestrator.domain.trials import Reading
from orchestrator.errors import SpecError
from orchestrator.spec.identity import spec_hash
from orchestrator.spec.models import RunSpec
from orchestrator.store.ledger import Ledger, Transaction
from orchestrator.store.spool import Spool

_MOST_POINTS = 1_000_000

Question = Callable[[], Suggested | None]
"""Asks a sampler for a point, which can take seconds. It touches nothing of the round."""
Round = Generator[Question, Suggested | None, None]
_Next = tuple[int, int, dict[str, Any], dict[str, Any]]


class SweepRound:
    """Makes rounds. Each is repeatable: it looks at what is recorded, and records what follows."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        clock: Clock,
        told: Told,
        search: Callable[[SweepRecord], Searching],
        origin: Callable[[str | None], Origin],
        wake: Callable[[], None],
        draining: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._clock = clock
        self._told = told
        self._search = search
        self._origin = origin
        self._wake = wake
        self._draining = draining

    def live(self, ledger: Transaction, sweep: SweepRecord) -> LiveSweep:
        """A sweep as the ledger has it."""
        live = LiveSweep(sweep, self._search(sweep))
        live.trials = {trial.number: trial for trial in ledger.sweeps.trials(sweep.id)}
        live.runs = {trial.run_id: ledger.run(trial.run_id) for trial in live.open}
        return live

    def make(self, live: LiveSweep, changed: dict[str, RunRecord]) -> Round:
        """One round. It yields the questions for new points, and wants to be sent the answers."""
        if live.stale:
            with self._ledger.read() as ledger:
                fresh = self.live(ledger, ledger.sweeps.get(live.sweep.id))
            live.sweep, live.trials, live.runs, live.stale = fresh.sweep, fresh.trials, fresh.runs, False
        live.runs |= {run_id: run for run_id, run in changed.items() if run_id in live.runs}
        self._settle(live)
        if live.sweep.state == SweepState.RUNNING and not self._draining():
            yield from self._go_on(live)

    # ---- what runs have done

    def _settle(self, live: LiveSweep) -> None:
        """Record what became of trials."""
        after = [(trial, self._settled(live, trial)) for trial in live.open]
        news = [new for old, new in after if new != old]
        if not news:
            return
        lost = [t for t in news if t.state == TrialState.FAILED and not live.runs[t.run_id].state.final]
        runs = self._record(live, news, [(trial, Reason.SWEEP_ENDED, trial.message) for trial in lost])
        ended = [trial for trial in news if trial.state.final]
        self._told.runs_ended(run for run in runs if run.state.final)
        self._told.trials_ended(live, ended)

    def _settled(self, live: LiveSweep, trial: TrialRecord) -> TrialRecord:
        run = live.runs[trial.run_id]
        if run.state.final:
            return self._ended(live, trial, run)
        if trial.state == TrialState.OPEN and run.held and run.reason == Reason.RUNG and run.pause_at:
            found = self._reading(live, trial, run.pause_at)
            if found is None:
                return self._without_value(live, trial)
            values = {**trial.values, trial.rung: found.value}
            return replace(trial, state=TrialState.RUNG, values=values, value=found.value, step=found.step)
        return trial

    def _ended(self, live: LiveSweep, trial: TrialRecord, run: RunRecord) -> TrialRecord:
        states = {RunState.SUCCEEDED: TrialState.COMPLETE, RunState.FAILED: TrialState.FAILED}
        state = states.get(run.state, TrialState.CANCELLED)
        if run.reason == Reason.PRUNED:
            state = TrialState.PRUNED
        found = self._reading(live, trial, None)
        if state == TrialState.COMPLETE and found is None:
            return self._without_value(live, trial)
        value, step = (found.value, found.step) if found else (trial.value, trial.step)
        at = run.ended_at or self._clock.now()
        return replace(trial, state=state, value=value, step=step, message=run.message, ended_at=at)

    def _without_value(self, live: LiveSweep, trial: TrialRecord) -> TrialRecord:
        metric = live.sweep.spec.objective.metric
        known = [key for key in self._spool.keys(trial.run_id) if not key.startswith(OWN_METRICS)]
        keys = ", ".join(known) or "nothing"
        message = f"it logged no {metric} (objective.metric); it logged {keys}"
        return replace(trial, state=TrialState.FAILED, message=message, ended_at=self._clock.now())

    def _reading(self, live: LiveSweep, trial: TrialRecord, until: int | None) -> Reading | None:
        objective = live.sweep.spec.objective
        return judging.reading(self._curve(live, trial), objective, until)

    def _curve(self, live: LiveSweep, trial: TrialRecord) -> list[tuple[int, float]]:
        key = live.sweep.spec.objective.metric
        points = self._spool.points(trial.run_id, keys=[key], limit=_MOST_POINTS)
        return [(point.step, point.value) for point in points]

    # ---- what follows

    def _go_on(self, live: LiveSweep) -> Round:
        spec, history = live.sweep.spec, live.history
        if judging.hopeless(history):
            last = max((t for t in history if t.message), key=lambda t: t.number, default=None)
            why = f": {last.message}" if last else ""
            self._close(live, SweepState.FAILED, f"its first {judging.HOPELESS} trials failed{why}")
            return
        why = self._enough(live)
        if why:
            self._close(live, SweepState.FINISHED, why)
            return
        self._compare(live)
        while self._slots(live) > 0 and self._more(live):
            yield from self._begin(live)
        if not live.open and not self._more(live):
            best = next(iter(judging.standings(history, spec.objective, spec.repeat)), None)
            self._finish(live, SweepState.FINISHED, "" if best else "no trial came to its end with a value")

    def _enough(self, live: LiveSweep) -> str:
        """Why the sweep ends before all of its points were tried, in words; empty: it goes on."""
        spec = live.sweep.spec
        if judging.reached(live.history, spec.budget, spec.objective, spec.repeat):
            return f"its target of {spec.budget.target:g} is reached"
        if not (spec.budget.duration or spec.budget.gpu_hours or spec.budget.kwh):
            return ""
        with self._ledger.read() as ledger:
            return judging.spent(ledger.sweeps.used(live.sweep.id, self._clock.now()), spec.budget)

    def _more(self, live: LiveSweep) -> bool:
        """Whether there are points, or repetitions of points, that have not begun."""
        spec, total = live.sweep.spec, judging.total_points(live.sweep.spec)
        if len(live.trials) < live.points * spec.repeat:
            return True
        return not live.exhausted and (total is None or live.points < total)

    def _slots(self, live: LiveSweep) -> int:
        executing = sum(trial.state == TrialState.OPEN for trial in live.open)
        return live.sweep.spec.parallel - executing

    def _compare(self, live: LiveSweep) -> None:
        """Let the best go on, and end those that others have left behind."""
        pruner = live.sweep.spec.pruner
        if pruner.kind == "median":
            self._end(live, self._behind(live), Reason.PRUNED)
        elif pruner.has_rungs:
            assert live.max_steps is not None
            more, slots = self._more(live), max(0, self._slots(live))
            verdict = decide(live.history, live.sweep.spec, live.max_steps, more, slots)
            self._promote(live, verdict.promote)
            self._end(live, [live.trials[number] for number in verdict.prune], Reason.PRUNED)

    def _behind(self, live: LiveSweep) -> list[TrialRecord]:
        """Executing trials that are worse than the median of the others."""
        executing = [trial for trial in live.open if live.runs[trial.run_id].stop is None]
        curves = [(trial, dict(self._curve(live, trial))) for trial in executing]
        if not any(curve for _, curve in curves):
            return []
        spec = live.sweep.spec
        complete = [trial for trial in live.history if trial.state == TrialState.COMPLETE]
        others = [dict(self._curve(live, trial)) for trial in complete]
        return [
            trial
            for trial, curve in curves
            if worse_than_median(curve, others, spec.pruner, spec.objective.direction)
        ]

    def _promote(self, live: LiveSweep, promotions: Sequence[Promotion]) -> None:
        if not promotions:
            return
        with self._ledger.begin() as ledger:
            changed = [self._promoted(live, ledger, one) for one in promotions]
        for trial, run in changed:
            live.trials[trial.number], live.runs[run.id] = trial, run
        self._wake()

    def _promoted(
        self, live: LiveSweep, ledger: Transaction, promotion: Promotion
    ) -> tuple[TrialRecord, RunRecord]:
        """Let a trial go on to its next rung, or to its end, from its checkpoint."""
        trial = live.trials[promotion.trial_number]
        run, now = ledger.run(trial.run_id), self._clock.now()
        trial = replace(trial, state=TrialState.OPEN, rung=promotion.rung)
        run = replace(run, held=False, **self._stage(live, trial.rung))
        to = f"to step {run.pause_at}" if run.pause_at else "to its end"
        where = f" in pool {run.pin_pool}" if run.pin_pool else ""
        ledger.save_run(run)
        ledger.add_event(run.id, now, "rung", f"among the best of its rung: it goes on {to}{where}")
        ledger.sweeps.save_trial(trial)
        return trial, run

    def _stage(self, live: LiveSweep, rung: int) -> dict[str, Any]:
        """Where a trial pauses, and in which pool it runs, on its way to a rung."""
        pruner = live.sweep.spec.pruner
        if not pruner.has_rungs:
            return {}
        assert live.max_steps is not None
        *steps, _ = rungs(pruner, live.max_steps)
        return {"pause_at": steps[rung] if rung < len(steps) else None, "pin_pool": pool_at(pruner, rung)}

    # ---- new trials

    def _begin(self, live: LiveSweep) -> Round:
        """Record the next trial and its run."""
        spec, number = live.sweep.spec, len(live.trials)
        found = yield from self._next(live)
        if found is None:
            live.exhausted = True
            return
        point, repeat, params, attrs = found
        try:
            run_spec = spec.trial_spec(params, number, repeat)
        except SpecError as error:
            self._close(live, SweepState.FAILED, f"the point {params} does not fit the base: {error.message}")
            return
        bracket = bracket_of(point, spec.pruner, live.max_steps) if live.max_steps else 0
        run = self._run(live, run_spec, number)
        run = replace(run, **self._stage(live, bracket))
        trial = TrialRecord(
            sweep_id=live.sweep.id,
            number=number,
            run_id=run.id,
            point=point,
            repeat=repeat,
            params=params,
            state=TrialState.OPEN,
            created_at=run.created_at,
            attrs=attrs,
            bracket=bracket,
            rung=bracket,
        )
        with self._ledger.begin() as ledger:
            run = ledger.add_run(run)
            ledger.sweeps.add_trial(trial)
            text = f"accepted as {run.id}, trial {number} of sweep {spec.name}"
            ledger.add_event(run.id, run.created_at, "submitted", text)
        live.trials[number], live.runs[run.id] = trial, run
        self._told.trial_begun(live.sweep, trial, run)
        self._wake()

    def _next(self, live: LiveSweep) -> Generator[Question, Suggested | None, _Next | None]:
        """Point, repetition, values and what the sampler keeps of the next trial; None: there is none."""
        last = live.trials[len(live.trials) - 1] if live.trials else None
        if last is not None and last.repeat + 1 < live.sweep.spec.repeat:
            return last.point, last.repeat + 1, last.params, last.attrs
        point = live.points
        suggestion = yield partial(live.search.ask, live.history, point)
        return None if suggestion is None else (point, 0, suggestion.params, suggestion.attrs)

    def _run(self, live: LiveSweep, spec: RunSpec, number: int) -> RunRecord:
        sweep, origin = live.sweep, self._origin(spec.resume_from)
        return RunRecord(
            id=new_id(),
            seq=0,
            key=f"sweep/{sweep.id}/{number}",
            spec=spec,
            spec_hash=spec_hash(spec),
            source="",
            user=sweep.user,
            state=RunState.QUEUED,
            created_at=self._clock.now(),
            restore_run=origin.run_id,
            restore_step=origin.step,
            restore_path=origin.path,
        )

    # ---- ends

    def _close(self, live: LiveSweep, state: SweepState, message: str) -> None:
        """End what is open; the sweep has ended once that has."""
        self._end(live, live.open, Reason.SWEEP_ENDED, f"its sweep has ended: {message}")
        self._settle(live)
        if not live.open:
            self._finish(live, state, message)

    def _end(self, live: LiveSweep, trials: Sequence[TrialRecord], reason: Reason, message: str = "") -> None:
        """Order trials' runs to end."""
        if trials:
            runs = self._record(live, (), [(trial, reason, message) for trial in trials])
            self._told.runs_ended(run for run in runs if run.state.final)

    def _record(
        self,
        live: LiveSweep,
        trials: Sequence[TrialRecord],
        ends: Sequence[tuple[TrialRecord, Reason, str]],
    ) -> list[RunRecord]:
        """Record trials, and orders to end runs; the runs that have changed."""
        changed: list[RunRecord] = []
        now = self._clock.now()
        with self._ledger.begin() as ledger:
            for trial in trials:
                ledger.sweeps.save_trial(trial)
            for trial, reason, message in ends:
                before = ledger.run(trial.run_id)
                run = cancel(before, now, reason, message)
                if run != before:
                    ledger.save_run(run)
                    ledger.add_event(run.id, now, reason.value, message or "its sweep asked to end it")
                    changed.append(run)
        for trial in trials:
            live.trials[trial.number] = trial
            if trial.state.final:
                live.runs.pop(trial.run_id, None)
        live.runs |= {run.id: run for run in changed if run.id in live.runs}
        if changed:
            self._wake()
        return changed

    def _finish(self, live: LiveSweep, state: SweepState, message: str) -> None:
        now = self._clock.now()
        live.sweep = replace(live.sweep, state=state, message=message, ended_at=now)
        with self._ledger.begin() as ledger:
            ledger.sweeps.save(live.sweep)
        self._told.ended(live.sweep)
