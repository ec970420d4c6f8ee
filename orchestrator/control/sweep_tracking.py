"""What MLflow is told about sweeps: a run of the sweep's own, the parent of its trials' runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from orchestrator.clock import Clock
from orchestrator.control.live_sweep import LiveSweep
from orchestrator.control.tracking import Tracking, spec_files
from orchestrator.domain.records import RunRecord
from orchestrator.domain.sweeps import SweepRecord, SweepState, TrialRecord, TrialState
from orchestrator.domain.trials import Standing, standings
from orchestrator.messages_agent import Point
from orchestrator.spec.sweep import Parameter, SweepSpec
from orchestrator.store.ledger import Ledger
from orchestrator.store.outbox import AnyTask, CreateRun, SetDescription, SetStatus, SetTags
from orchestrator.store.spool import Spool

_STATUS = {
    SweepState.FINISHED: "FINISHED",
    SweepState.FAILED: "FAILED",
    SweepState.CANCELLED: "KILLED",
}
_SHOWN = 20
"""Rows of the table in the description."""

SweepEnded = Callable[[SweepRecord], None]


class SweepTracking:
    """Tells MLflow, through the spool, and whoever else wants to hear of a sweep's end."""

    def __init__(
        self, ledger: Ledger, spool: Spool, tracking: Tracking, clock: Clock, *, enabled: bool
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._tracking = tracking
        self._clock = clock
        self._enabled = enabled
        self.listeners: list[SweepEnded] = []
        """Called once a sweep has ended; they must not block, nor raise."""

    def created(self, sweep: SweepRecord) -> None:
        """The sweep's MLflow run, with its spec as artifacts."""
        if not self._enabled:
            return
        spec = sweep.spec
        create = CreateRun(
            name=spec.name,
            experiment=spec.base.experiment,
            start_ms=_ms(sweep.created_at),
            user=sweep.user,
            source_name="orch submit",
            tags={"orch.sweep_id": sweep.id, "orch.kind": "sweep", **spec.tags},
            params=_parameters(spec),
            description=_description(sweep, [], []),
        )
        running = SetStatus(status="RUNNING", time_ms=_ms(sweep.created_at))
        self._spool.enqueue(sweep.id, create, running, files=spec_files(spec, sweep.source))

    def again(self, live: LiveSweep) -> None:
        """Say what a controller that died may not have said."""
        if self._spool.mlflow_run(live.sweep.id) is None:
            self.created(live.sweep)
        for trial in live.open:
            if self._spool.mlflow_run(trial.run_id) is None:
                self._tracking.run_created(live.runs[trial.run_id])

    def changed(self, sweep: SweepRecord) -> None:
        """It was paused, resumed or extended."""
        if sweep.state in (SweepState.RUNNING, SweepState.PAUSED):
            self._tell(sweep, SetStatus(status="RUNNING", time_ms=_ms(self._clock.now())))

    def trial_begun(self, sweep: SweepRecord, trial: TrialRecord, run: RunRecord) -> None:
        """The trial's MLflow run, a child of the sweep's."""
        self._tracking.run_created(run)

    def trials_ended(self, live: LiveSweep, ended: Sequence[TrialRecord]) -> None:
        """The best value so far, as a curve over the trials that have ended, and the table."""
        if not self._enabled or not ended:
            return
        spec, now = live.sweep.spec, self._clock.now()
        ranked = standings(live.history, spec.objective, spec.repeat)
        if ranked:
            done = sum(trial.state.final for trial in live.trials.values())
            key = f"best/{spec.objective.metric}"
            self._spool.add_points(
                live.sweep.id, 0, [Point(key=key, step=done, time_ms=_ms(now), value=ranked[0].value)]
            )
        self._say(live.sweep, live.history, ranked)

    def runs_ended(self, runs: Iterable[RunRecord]) -> None:
        """Runs were ended while they waited: nobody else will say so."""
        for run in runs:
            self._tracking.attempt_ended(run)

    def ended(self, sweep: SweepRecord) -> None:
        """Its last status; then the listeners."""
        at = _ms(sweep.ended_at or self._clock.now())
        self._tell(sweep, SetStatus.model_validate({"status": _STATUS[sweep.state], "time_ms": at}))
        for listener in self.listeners:
            listener(sweep)

    def _tell(self, sweep: SweepRecord, *more: AnyTask) -> None:
        if not self._enabled:
            return
        with self._ledger.read() as ledger:
            trials = ledger.sweeps.trials(sweep.id)
        self._say(sweep, trials, standings(trials, sweep.spec.objective, sweep.spec.repeat), *more)

    def _say(
        self, sweep: SweepRecord, trials: Sequence[TrialRecord], ranked: Sequence[Standing], *more: AnyTask
    ) -> None:
        tags = {"orch.state": sweep.state.value, "orch.trials": str(len(trials))}
        text = SetDescription(text=_description(sweep, trials, ranked))
        self._spool.enqueue(sweep.id, text, SetTags(tags=tags), *more)


def _parameters(spec: SweepSpec) -> dict[str, str]:
    values = {
        "objective": f"{spec.objective.direction} {spec.objective.metric} ({spec.objective.value})",
        "sampler": spec.sampler.kind,
        "pruner": spec.pruner.kind,
        "parallel": str(spec.parallel),
    }
    space = {f"space/{key}": _said(parameter) for key, parameter in spec.space.items()}
    budget = {f"budget/{key}": str(value) for key, value in spec.budget.model_dump(exclude_none=True).items()}
    return values | space | budget


def _said(parameter: Parameter) -> str:
    if parameter.choice is not None:
        return ", ".join(map(str, parameter.choice))
    low, high = parameter.int or parameter.float or (0, 0)
    scale = ", log" if parameter.log else f", step {parameter.step:g}" if parameter.step else ""
    return f"{low:g} to {high:g}{scale}"


def _description(sweep: SweepRecord, trials: Sequence[TrialRecord], ranked: Sequence[Standing]) -> str:
    """Markdown: what is looked for, how far it is, and the best points."""
    spec, count = sweep.spec, Counter(trial.state for trial in trials)
    states = ", ".join(f"{count[s]} {s.value}" for s in TrialState if count[s]) or "no trials yet"
    text = f"Sweep of {', '.join(f'`{key}`' for key in spec.space)}: {states}. It is {sweep.state.value}."
    if sweep.message:
        text += f" {sweep.message[0].upper()}{sweep.message[1:]}."
    return f"{text}\n\n{_table(spec, trials, ranked[:_SHOWN])}" if ranked else text


def _table(spec: SweepSpec, trials: Sequence[TrialRecord], ranked: Sequence[Standing]) -> str:
    by_number = {trial.number: trial for trial in trials}
    names = [key.rsplit(".", 1)[-1] for key in spec.space]
    rows = [
        f"| {' | '.join(['trial', spec.objective.metric, 'step', *names])} |",
        "|" + "---|" * (3 + len(names)),
    ]
    for standing in ranked:
        first = by_number[standing.trials[0]]
        spread = f" ± {standing.spread:.4f}" if len(standing.trials) > 1 else ""
        values = [_short(first.params.get(key, "")) for key in spec.space]
        cells = [
            ", ".join(map(str, standing.trials)),
            f"{standing.value:.4f}{spread}",
            str(first.step),
            *values,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)
