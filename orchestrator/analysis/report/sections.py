"""The parts of a report, in their order. A part without anything to say is left out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.report import words
from orchestrator.analysis.report.curve_figures import CLEAR, FAINT_CURVES, run_curves, sweep_curves
from orchestrator.analysis.report.data import Kept, Report
from orchestrator.analysis.report.figure import Figure
from orchestrator.analysis.report.gantt import gantt
from orchestrator.analysis.report.html import Child, Html, el, join, link
from orchestrator.analysis.report.search_figures import MOST_SLICES, importance, parallel, slices
from orchestrator.analysis.report.tables import (
    MOST_FAILURES,
    command,
    differences,
    failure_table,
    failures,
    leaderboard,
    machines,
)
from orchestrator.analysis.report.verdict import verdict
from orchestrator.domain.energy import EnergySource, in_words
from orchestrator.messages import CheckpointView
from orchestrator.messages_sweeps import SweepDetail
from orchestrator.spec.sweep import Pruner, Sampler

MOST_SAMPLE = 1500
"""Characters of a sample that are shown."""


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    id: str
    title: str
    body: Html
    figures: Sequence[Figure] = ()
    note: str = ""


def sections(report: Report) -> list[Section]:
    """All parts that have something to say."""
    found = [
        _leaderboard(report),
        _differences(report),
        _curves(report),
        _parameters(report),
        _machines(report),
        _failures(report),
        _best(report),
    ]
    return [section for section in found if section is not None]


# ------------------------------------------------------------------ the head of the page


def header(report: Report, parts: Sequence[Section]) -> Html:
    """Title, verdict, how it was set up, links, and the figures that matter most."""
    kind = "Sweep" if report.sweep else "Run" if len(report.entries) == 1 else "Runs side by side"
    inner = el("nav", *(el("a", part.title, href=f"#{part.id}") for part in parts), class_="contents")
    return el(
        "header",
        el("p", f"{kind} · {_span(report)}", class_="kicker"),
        el("h1", report.title),
        el("p", verdict(report), class_="verdict"),
        el("p", _setup(report.sweep), class_="setup") if report.sweep else None,
        _tiles(report),
        inner,
        _links(report),
    )


def _span(report: Report) -> str:
    """From the first start to the last end."""
    attempts = [one for entry in report.entries for one in entry.attempts if one.started_at is not None]
    if not attempts:
        return words.instant(report.at, report.zone)
    first = min(one.started_at for one in attempts if one.started_at is not None)
    last = max(one.ended_at or report.at for one in attempts)
    return f"{words.instant(first, report.zone)} to {words.instant(last, report.zone)}"


def _setup(detail: SweepDetail) -> str:
    spec, budget = detail.spec, detail.spec.budget
    aim = f"{spec.objective.direction} the {spec.objective.value} {spec.objective.metric}"
    limits = {
        f"{budget.trials:,} trials" if budget.trials else "",
        words.duration(budget.duration) if budget.duration else "",
        f"{budget.gpu_hours:g} GPU-hours" if budget.gpu_hours else "",
        f"{budget.kwh:g} kWh" if budget.kwh else "",
        f"{spec.objective.metric} {budget.target:g}" if budget.target is not None else "",
    }
    told = [aim, _sampler(spec.sampler), _pruner(spec.pruner), f"{spec.parallel} at a time"]
    if spec.repeat > 1:
        told.append(f"{spec.repeat} seeds of each point")
    if any(limits):
        told.append(f"until {' or '.join(sorted(filter(None, limits)))}")
    return " · ".join([detail.sweep.state.value, *told, *filter(None, [detail.sweep.message])])


def _sampler(sampler: Sampler) -> str:
    names = {"tpe": "TPE", "cmaes": "CMA-ES", "gp": "Gaussian process"}
    return f"{names.get(sampler.kind, sampler.kind)} sampler"


def _pruner(pruner: Pruner) -> str:
    names = {"none": "no pruning", "median": "median pruning", "asha": "ASHA", "hyperband": "Hyperband"}
    rungs = f" from step {pruner.first_steps:,}, factor {pruner.factor}" if pruner.first_steps else ""
    return f"{names[pruner.kind]}{rungs}"


def _links(report: Report) -> Html | None:
    names = {"run": "sweep" if report.sweep else "run", "charts": "charts", "compare": "runs side by side"}
    known = {name: report.links[name] for name in names if name in report.links}  # not this page itself
    found = [link(address, f"MLflow: {names[name]}") for name, address in known.items()]
    return el("nav", *found, class_="links") if found else None


def _tiles(report: Report) -> Html:
    entries = report.entries
    best = report.entries[report.best] if report.best is not None else None
    tiles: list[tuple[str, str]] = []
    if len(entries) > 1:
        tiles.append(("trials" if report.sweep else "runs", f"{len(entries):,}"))
    tiles.append((f"best {report.metric}", words.measure(best.score if best else None)))
    tiles.append(("time of training", words.duration(sum(entry.seconds for entry in entries))))
    if report.sweep is not None and report.sweep.sweep.use.gpu_hours:
        tiles.append(("GPU-hours", f"{report.sweep.sweep.use.gpu_hours:,.1f}"))
    kwh = [entry.energy_kwh for entry in entries if entry.energy_kwh is not None]
    cost = [entry.cost for entry in entries if entry.cost is not None]
    if kwh:
        tiles.append(("energy", in_words(sum(kwh))))
    if cost:
        tiles.append(("cost of energy", f"{words.money(sum(cost))} {report.currency}".strip()))
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in tiles), class_="tiles")


# ------------------------------------------------------------------ parts


def _leaderboard(report: Report) -> Section:
    title = "Leaderboard" if len(report.entries) > 1 else "Result"
    note = "A click on a title sorts by it." if len(report.entries) > 1 else ""
    return Section("leaderboard", title, leaderboard(report), note=note)


def _differences(report: Report) -> Section | None:
    if report.comparison is None:
        return None
    found = report.comparison
    body: list[Html] = []
    for title, rows in (("Settings that differ", found.settings), ("Results", found.results)):
        if rows:
            body += [el("h3", title), differences(rows, found.names)]
    return Section("differences", "Differences", join(*body)) if body else None


def _curves(report: Report) -> Section | None:
    if report.sweep is not None:
        figures = sweep_curves(report)
        note = _curve_note(
            sum(report.metric in entry.curves for entry in report.entries), len(report.entries)
        )
    else:
        found = [run_curves(report, metric, n) for n, metric in enumerate(report.metrics)]
        figures, note = [figure for pair in found for figure in pair], _ZOOM
    if not figures:
        return None
    return Section("curves", "Curves", _pairs(figures), figures, note)


_ZOOM = "Drag to look closer, double-click to see everything."


def _curve_note(drawn: int, trials: int) -> str:
    if drawn <= CLEAR:
        return _ZOOM
    some = f" of the other {trials - CLEAR:,}" if trials > CLEAR + FAINT_CURVES else ""
    return f"The {CLEAR} best are drawn each for itself, {drawn - CLEAR:,}{some or ' others'} faint. {_ZOOM}"


def _pairs(figures: Sequence[Figure]) -> Html:
    return el("div", *(figure.place for figure in figures), class_="pair")


def _parameters(report: Report) -> Section | None:
    if report.sweep is None:
        return None
    shares, lines, dots = importance(report), parallel(report), slices(report)
    body: list[Child] = []
    if shares:
        body += [el("h3", "Importance"), *(figure.place for figure in shares)]
    if dots:
        more = f" of the {MOST_SLICES} most important" if len(report.axes) > MOST_SLICES else ""
        body += [
            el("h3", f"{report.metric} by each parameter{more}"),
            el("p", "The best trial is the large dot; rings are pruned trials.", class_="note"),
            el("div", *(figure.place for figure in dots), class_="slices"),
        ]
    if lines:
        hint = "Each line is a trial. Drag along an axis to choose some, drag its name to move it."
        body += [
            el("h3", "Together"),
            el("p", hint, class_="note"),
            *(figure.place for figure in lines),
        ]
    return Section("parameters", "Parameters", join(*body), [*shares, *dots, *lines]) if body else None


def _machines(report: Report) -> Section | None:
    figures = gantt(report)
    if not figures:
        return None
    best = " The best trial has a frame." if report.sweep and report.best is not None else ""
    note = f"Each bar is an attempt; gaps are pauses.{best}{_energy_note(report)}"
    body = join(*(figure.place for figure in figures), machines(report))
    return Section("machines", "What ran where and when", body, figures, note)


def _energy_note(report: Report) -> str:
    sources = {one.energy_source for entry in report.entries for one in entry.attempts} - {None}
    if not sources or sources == {EnergySource.MEASURED}:
        return ""
    return f" Energy is estimated{'' if sources == {EnergySource.ESTIMATED} else ' in part'}."


def _failures(report: Report) -> Section | None:
    found = failures(report)
    if not found:
        return None
    note = f"The newest {MOST_FAILURES} of {len(found):,}." if len(found) > MOST_FAILURES else ""
    return Section("failures", "Failures", failure_table(report, found), note=note)


# ------------------------------------------------------------------ the best checkpoint


def _best(report: Report) -> Section | None:
    kept = report.kept
    if report.best is None or kept is None or (kept.checkpoint is None and not kept.sample):
        return None
    entry = report.entries[report.best]
    body: list[Child] = []
    if kept.checkpoint is not None:
        body += _checkpoint(entry.label, kept.checkpoint, report)
    if kept.sample:
        body += _sample(kept)
    return Section("best", "Best checkpoint", join(*body))


def _checkpoint(label: str, found: CheckpointView, report: Report) -> list[Child]:
    place = shlex.quote(found.run)
    values = [f"{key} {words.measure(value)}" for key, value in sorted(found.metrics.items())]
    facts: list[tuple[str, Child]] = [
        ("of", f"{label}, run {found.run}"),
        ("step", words.count(found.step)),
        ("values", ", ".join(values) or words.NOTHING),
        ("saved", f"{words.instant(found.at, report.zone)} on {found.node} ({found.device})"),
        ("size", words.size(found.size)),
        ("where", el("code", found.uri)),
        ("go on from it", command(f"orch resume {place} --at {found.step} --set trainer.max_steps=N")),
        ("have it write", command(f"orch sample {place}@{found.step}")),
    ]
    return [el("dl", *(join(el("dt", name), el("dd", value)) for name, value in facts), class_="facts")]


def _sample(kept: Kept) -> list[Child]:
    cut = len(kept.sample) > MOST_SAMPLE
    text = f"{kept.sample[:MOST_SAMPLE].rstrip()} …" if cut else kept.sample.rstrip()
    return [el("h3", "What it wrote at its end"), el("pre", text, class_="sample")]
