"""The result in a sentence or two."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from orchestrator.analysis.report.curves import best_of
from orchestrator.analysis.report.data import COMPLETE, Axis, Entry, Report
from orchestrator.analysis.report.words import count, counted, duration, listed, measure, setting

_TOLD = 4
"""Parameters of the best trial that the sentence names, the most important first."""


def verdict(report: Report) -> str:
    """What came out."""
    if report.sweep is not None:
        return _of_sweep(report)
    return _of_run(report) if len(report.entries) == 1 else _of_runs(report)


# ------------------------------------------------------------------ a sweep


def _of_sweep(report: Report) -> str:
    if report.best is None:
        return f"No trial has a value of {report.metric} yet. {_census(report)}"
    best = report.entries[report.best]
    measured = _best(report, best)
    at = f" at step {count(measured[0])}" if measured else ""
    found = f"{best.label.capitalize()} is best: {report.metric} {measure(best.score)}{at}"
    return f"{found}{_with(report, best)}.{_against_others(report, best)} {_census(report)}"


def _with(report: Report, best: Entry) -> str:
    told = sorted(report.axes, key=lambda one: -report.importance.get(one.path, 0.0))
    named = [one for one in told if one.path in best.params][:_TOLD]
    return f", with {listed(_assigned(one, best) for one in named)}" if named else ""


def _assigned(one: Axis, best: Entry) -> str:
    return f"{one.name} {setting(best.params[one.path])}"


def _against_others(report: Report, best: Entry) -> str:
    scores = [e.score for e in report.entries if e.score is not None and e.state in COMPLETE]
    if len(scores) < 3 or best.score is None:
        return ""
    middle = median(scores)
    gain = abs(middle - best.score)
    share = f" ({gain / abs(middle):.1%})" if middle else ""
    return f" That is {measure(gain)}{share} better than the median of the {len(scores)} that finished."


def _census(report: Report) -> str:
    assert report.sweep is not None
    words = {
        "complete": "finished",
        "pruned": "pruned",
        "failed": "failed",
        "cancelled": "cancelled",
        "open": "still open",
        "rung": "waiting at a rung",
    }
    counts = {word: sum(e.state == state for e in report.entries) for state, word in words.items()}
    told = [f"{number:,} {word}" for word, number in counts.items() if number]
    return f"Of {counted(len(report.entries), 'trial')}, {listed(told)}." if told else "No trial has begun."


# ------------------------------------------------------------------ runs


def _of_run(report: Report) -> str:
    entry = report.entries[0]
    machines = list(dict.fromkeys(one.node for one in entry.attempts if one.started_at is not None))
    where = f" on {listed(machines)}" if machines else ""
    steps = f"{count(entry.step)} steps" if entry.step is not None else "no step"
    found = f"{entry.name}, {entry.state}: {steps} in {duration(entry.seconds)}{where}."
    best = _best(report, entry)
    return (
        f"{found} Its best {report.metric} is {measure(best[1])}, at step {count(best[0])}."
        if best
        else found
    )


def _of_runs(report: Report) -> str:
    if report.best is None:
        return f"None of these {len(report.entries)} runs has a value of {report.metric}."
    best, found = report.entries[report.best], _best(report, report.entries[report.best])
    at = f" at step {count(found[0])}" if found else ""
    word = "lowest" if report.minimize else "highest"
    first = f"{best.label} has the {word} {report.metric}: {measure(best.value)}{at}."
    return " ".join([first, *_others(report, best)])


def _others(report: Report, best: Entry) -> Sequence[str]:
    others = [e for e in report.entries if e is not best and e.value is not None]
    told = [f"{e.label} {measure(e.value)} ({(e.value or 0) - (best.value or 0):+.4f})" for e in others[:4]]
    return [f"Against it {listed(told)}."] if told else []


def _best(report: Report, entry: Entry) -> tuple[int, float] | None:
    curve = entry.curves.get(report.metric)
    how = report.sweep.spec.objective.value if report.sweep is not None else "best"
    return best_of(curve, report.minimize, how) if curve is not None else None
