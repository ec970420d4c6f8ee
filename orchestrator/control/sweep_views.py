"""What clients see of sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.clock import Clock
from orchestrator.control.reporting import REPORT_FILE
from orchestrator.control.views import Views
from orchestrator.domain.energy import KWH_J
from orchestrator.domain.limits import HOUR_S
from orchestrator.domain.rungs import rungs
from orchestrator.domain.sweeps import SweepRecord, SweepState, TrialRecord
from orchestrator.domain.trials import Used, standings, total_points
from orchestrator.messages import RunView
from orchestrator.messages_sweeps import SweepDetail, SweepUse, SweepView, TrialView
from orchestrator.store.ledger import Ledger, Transaction
from orchestrator.store.spool import Spool
from orchestrator.tracking.links import artifact_link, charts_link, compare_link, run_link, trials_of

_COMPARED = 10
"""Of the best trials that MLflow is asked to show side by side: it has a column for each."""


class SweepViews:
    """Builds what is shown of sweeps."""

    def __init__(self, ledger: Ledger, spool: Spool, views: Views, clock: Clock, mlflow_url: str) -> None:
        self._ledger = ledger
        self._spool = spool
        self._views = views
        self._clock = clock
        self._mlflow_url = mlflow_url

    def sweeps(self, states: Sequence[SweepState], limit: int) -> list[SweepView]:
        """Sweeps, newest first."""
        with self._ledger.read() as ledger:
            found = ledger.sweeps.all(states=states, limit=limit)
            return [self._sweep(ledger, sweep) for sweep in found]

    def sweep(self, sweep: SweepRecord) -> SweepView:
        """One sweep."""
        with self._ledger.read() as ledger:
            return self._sweep(ledger, sweep)

    def detail(self, ref: str) -> SweepDetail:
        """Everything about one sweep."""
        with self._ledger.read() as ledger:
            sweep = ledger.sweeps.find(ref)
            trials = ledger.sweeps.trials(sweep.id)
            runs = [ledger.run(trial.run_id) for trial in trials]
            used = ledger.sweeps.used_by_run(sweep.id, self._clock.now())
            view = self._sweep(ledger, sweep)
        shown = {run.id: run for run in self._views.runs(runs)}
        return SweepDetail(
            sweep=view,
            spec=sweep.spec,
            trials=[self._trial(sweep, trial, shown[trial.run_id], used[trial.run_id]) for trial in trials],
            rungs=_rungs(sweep),
            links=self._links(sweep, trials),
        )

    def _sweep(self, ledger: Transaction, sweep: SweepRecord) -> SweepView:
        spec = sweep.spec
        first, best = ledger.sweeps.best(sweep) or (None, None)
        used = ledger.sweeps.used(sweep.id, self._clock.now())
        return SweepView(
            id=sweep.id,
            name=spec.name,
            experiment=spec.base.experiment,
            state=sweep.state,
            message=sweep.message,
            metric=spec.objective.metric,
            direction=spec.objective.direction,
            counts=ledger.sweeps.count(sweep.id),
            total=total_points(spec),
            use=SweepUse(
                trials=ledger.sweeps.points(sweep.id),
                seconds=used.seconds,
                gpu_hours=used.gpu_seconds / HOUR_S,
                kwh=_kwh(used),
                energy_source=used.source,
                cost=used.cost,
                currency=self._views.currency if used.cost is not None else None,
            ),
            best_trial=first.number if first else None,
            best_value=best,
            best_params=first.params if first else {},
            created_at=sweep.created_at,
            ended_at=sweep.ended_at,
            user=sweep.user,
        )

    def _trial(self, sweep: SweepRecord, trial: TrialRecord, run: RunView, used: Used) -> TrialView:
        value = trial.value
        if value is None:
            latest = self._spool.latest_many([trial.run_id], keys=[sweep.spec.objective.metric])
            value = next((found for _, found in latest.get(trial.run_id, {}).values()), None)
        return TrialView(
            number=trial.number,
            point=trial.point,
            repeat=trial.repeat,
            run_id=trial.run_id,
            name=run.name,
            params=trial.params,
            state=trial.state,
            run_state=run.state,
            rung=trial.rung,
            values=trial.values,
            value=value,
            step=run.step,
            pool=run.pool,
            node=run.node,
            message=trial.message or run.message,
            seconds=used.seconds,
            gpu_seconds=used.gpu_seconds,
            energy_kwh=_kwh(used),
            cost=used.cost,
            created_at=trial.created_at,
            ended_at=trial.ended_at,
        )

    def _links(self, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> dict[str, str]:
        """MLflow's pages of the sweep, of all its trials and of the best ones beside each other."""
        if not self._mlflow_url:
            return {}
        base, found = self._mlflow_url, {}
        own = self._spool.mlflow_run(sweep.id)
        if own is not None:
            found["run"] = run_link(base, *own)
            if sweep.state.final:
                found["report"] = artifact_link(base, *own, REPORT_FILE)
        ranked = [n for s in standings(trials, sweep.spec.objective, sweep.spec.repeat) for n in s.trials]
        by_number = {trial.number: trial for trial in trials}
        ordered = [*ranked, *(trial.number for trial in trials if trial.number not in ranked)]
        known = [self._spool.mlflow_run(by_number[number].run_id) for number in ordered[:_COMPARED]]
        runs = [one for one in known if one is not None]
        if runs:
            experiments = list(dict.fromkeys(experiment for experiment, _ in runs))
            objective = sweep.spec.objective
            ascending = objective.direction == "minimize"
            chosen = trials_of(sweep.id)
            found["charts"] = charts_link(base, experiments[0], chosen, objective.metric, ascending=ascending)
            found["compare"] = compare_link(base, experiments, [run_id for _, run_id in runs])
        return found


def _rungs(sweep: SweepRecord) -> list[int]:
    spec = sweep.spec
    if not spec.pruner.has_rungs or spec.max_steps is None:
        return []
    return [*rungs(spec.pruner, spec.max_steps)]


def _kwh(used: Used) -> float | None:
    return None if used.joules is None else used.joules / KWH_J
