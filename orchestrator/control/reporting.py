"""Reports: what the ledger, the spool, the run logs and the files know of a sweep or of runs, as one page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from orchestrator import __version__
from orchestrator.analysis.compare import Comparison, compare
from orchestrator.analysis.report import Curve, Entry, Kept, Report, render
from orchestrator.analysis.report.choosing import axes, best, columns, means, metrics, objective, titles
from orchestrator.analysis.report.curve_figures import to_draw
from orchestrator.analysis.report.curves import best_of, curve, trained
from orchestrator.analysis.report.data import Direction
from orchestrator.clock import Clock
from orchestrator.contract import SAMPLE_FILE
from orchestrator.control.logs import RunFiles
from orchestrator.control.views import Views
from orchestrator.domain.sweeps import TrialRecord
from orchestrator.errors import NotFoundError, SetupError, StoreError
from orchestrator.messages import AttemptView, CheckpointView, RunDetail
from orchestrator.messages_sweeps import SweepDetail, TrialView
from orchestrator.spec.sweep import SweepSpec
from orchestrator.store.ledger import Ledger
from orchestrator.store.spool import Spool

log = logging.getLogger(__name__)

REPORT_FILE: Final = "report.html"
"""The artifact of a sweep's MLflow run."""
_MOST_READ = 1_000_000
"""Points of one metric of one run that are read."""


@dataclass(frozen=True)
class Sources:
    """What other parts of the controller answer, by the names of runs and sweeps."""

    run: Callable[[str], RunDetail]
    sweep: Callable[[str], SweepDetail]
    checkpoints: Callable[[str], list[CheckpointView]]
    compare_links: Callable[[list[str]], dict[str, str]]
    importance: Callable[[Sequence[TrialRecord], SweepSpec], Mapping[str, float]]


class Reporting:
    """Collects what a page needs, and has it made."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        files: RunFiles,
        views: Views,
        sources: Sources,
        clock: Clock,
        *,
        tracked: bool,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._files = files
        self._views = views
        self._ask = sources
        self._clock = clock
        self._tracked = tracked

    def page(self, refs: Sequence[str]) -> str:
        """The page about a sweep, or about one or more runs; NotFoundError where there is none of a name.

        A sweep goes before a run of the same name.
        """
        sweep_id = self._sweep_id(refs[0]) if len(refs) == 1 else None
        return render(self.sweep(sweep_id) if sweep_id is not None else self.runs(refs))

    def store(self, sweep_id: str) -> None:
        """Have the sweep's page kept as an artifact of its MLflow run. Nothing without MLflow."""
        if self._tracked:
            self._spool.enqueue(sweep_id, files={REPORT_FILE: render(self.sweep(sweep_id)).encode()})

    def _sweep_id(self, ref: str) -> str | None:
        with self._ledger.read() as ledger:
            try:
                return ledger.sweeps.find(ref).id
            except NotFoundError:
                return None

    # ------------------------------------------------------------------ a sweep

    def sweep(self, sweep_id: str) -> Report:
        """Everything that the page of a sweep says."""
        detail = self._ask.sweep(sweep_id)
        view, spec = detail.sweep, detail.spec
        with self._ledger.read() as ledger:
            records = ledger.sweeps.trials(view.id)
        point_means = means(detail)
        places = {trial.number: place for place, trial in enumerate(detail.trials)}
        report = Report(
            title=view.name,
            at=self._clock.now(),
            metric=view.metric,
            direction=view.direction,
            entries=tuple(self._trial(trial, point_means.get(trial.point)) for trial in detail.trials),
            best=places.get(view.best_trial) if view.best_trial is not None else None,
            axes=axes(spec.space),
            metrics=(view.metric,),
            importance=self._importance(records, spec),
            sweep=detail,
            links=detail.links,
            currency=view.use.currency or "",
            version=__version__,
        )
        report = self._with_curves(report)
        return replace(report, kept=self._kept(report))

    def _importance(self, trials: Sequence[TrialRecord], spec: SweepSpec) -> Mapping[str, float]:
        try:
            return self._ask.importance(trials, spec)
        except SetupError as error:
            log.warning("the importance of parameters is left out of a report: %s", error)
            return {}

    def _trial(self, trial: TrialView, mean: float | None) -> Entry:
        return Entry(
            run_id=trial.run_id,
            name=trial.name,
            state=trial.state.value,
            message=trial.message,
            number=trial.number,
            params=trial.params,
            value=trial.value,
            mean=mean,
            step=trial.step,
            seconds=trial.seconds,
            attempts=self._attempts(trial.run_id),
            energy_kwh=trial.energy_kwh,
            cost=trial.cost,
        )

    def _attempts(self, run_id: str) -> tuple[AttemptView, ...]:
        with self._ledger.read() as ledger:
            return tuple(self._views.attempts(ledger.run(run_id), ledger.attempts(run_id)))

    def _with_curves(self, report: Report) -> Report:
        """With the objective's curves of the trials that are drawn."""
        entries = list(report.entries)
        for place in to_draw(report):
            entry = entries[place]
            found = self._curve(entry.run_id, report.metric, entry.attempts)
            if found.steps:
                entries[place] = replace(entry, curves={report.metric: found})
        return replace(report, entries=tuple(entries))

    def _curve(self, run_id: str, key: str, attempts: Sequence[AttemptView]) -> Curve:
        return curve(self._spool.points(run_id, keys=[key], limit=_MOST_READ), attempts)

    # ------------------------------------------------------------------ runs

    def runs(self, refs: Sequence[str]) -> Report:
        """Everything that the page of one or more runs says, in the order given."""
        found = [self._ask.run(ref) for ref in refs]
        details = list({detail.run.id: detail for detail in found}.values())
        metric, direction = objective(details)
        links = self._links(details)
        comparison = compare(details, links) if len(details) > 1 else None
        names, shown = titles(details), metrics(details, metric)
        entries = tuple(
            self._run(detail, names[n], n, shown, comparison, direction) for n, detail in enumerate(details)
        )
        report = Report(
            title=" · ".join(names),
            at=self._clock.now(),
            metric=metric,
            direction=direction,
            entries=entries,
            best=best(entries, direction),
            axes=columns(comparison),
            metrics=shown,
            comparison=comparison,
            links=links,
            currency=next((d.run.currency for d in details if d.run.currency), ""),
            version=__version__,
        )
        return replace(report, kept=self._kept(report))

    def _links(self, details: Sequence[RunDetail]) -> Mapping[str, str]:
        if len(details) == 1:
            return details[0].links
        return self._ask.compare_links([detail.run.id for detail in details])

    def _run(
        self,
        detail: RunDetail,
        title: str,
        place: int,
        metrics: Sequence[str],
        comparison: Comparison | None,
        direction: Direction,
    ) -> Entry:
        run, attempts = detail.run, tuple(detail.attempts)
        curves = {key: self._curve(run.id, key, attempts) for key in metrics if key in detail.metrics}
        top = best_of(curves[metrics[0]], direction == "minimize") if metrics[0] in curves else None
        rows = comparison.settings if comparison is not None else []
        return Entry(
            run_id=run.id,
            name=title,
            state=run.state.value,
            message=run.message,
            params={row.key: row.values[place] for row in rows},
            value=top[1] if top is not None else None,
            step=run.step,
            seconds=trained(attempts, self._clock.now()),
            attempts=attempts,
            curves=curves,
            energy_kwh=run.energy_kwh,
            cost=run.cost,
        )

    # ------------------------------------------------------------------ the best checkpoint

    def _kept(self, report: Report) -> Kept | None:
        if report.best is None:
            return None
        run_id = report.entries[report.best].run_id
        sample = self._files.artifact(run_id, SAMPLE_FILE)
        text = sample.decode("utf-8", "replace") if sample is not None else ""
        return Kept(self._best_checkpoint(run_id, report), text)

    def _best_checkpoint(self, run_id: str, report: Report) -> CheckpointView | None:
        """The best by the objective of those whose data is kept; the newest where none tells it."""
        try:
            kept = [one for one in self._ask.checkpoints(run_id) if one.kept]
        except StoreError as error:
            log.warning("run %s: checkpoints left out of its report: %s", run_id, error)
            return None
        telling = [one for one in kept if report.metric in one.metrics]
        if not telling:
            return kept[-1] if kept else None
        return (min if report.minimize else max)(telling, key=lambda one: one.metrics[report.metric])
