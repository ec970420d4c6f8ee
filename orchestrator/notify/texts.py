"""What people are told, in words. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from orchestrator.domain import gang
from orchestrator.domain.notice import Notice, NoticeKind
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.schedules import FireRecord, ScheduleRecord
from orchestrator.domain.states import RunState
from orchestrator.messages_sweeps import SweepView

Words = tuple[str, str]
"""Title and body."""
_LONGEST: Final = 300
_LINES: Final = 20
_LINKS: Final = {"run": "MLflow", "report": "Report"}
_TYPES: Final = {
    NoticeKind.FINISHED: "success",
    NoticeKind.SWEEP: "success",
    NoticeKind.FAILED: "failure",
    NoticeKind.STUCK: "warning",
    NoticeKind.SCHEDULE: "warning",
}


@dataclass(frozen=True)
class Facts:
    """What there is to say of a run."""

    run: RunRecord
    attempts: Sequence[AttemptRecord] = ()
    last: tuple[int, float] | None = None
    """(step, value) of the newest value of the spec's `checkpoint.metric`."""
    best: tuple[int, float] | None = None
    """The same of the best one."""
    record: bool = False
    """Whether no other ended run of the experiment is as good."""
    links: Mapping[str, str] = field(default_factory=dict)


def type_of(kind: NoticeKind) -> str:
    """How it is shown."""
    return _TYPES.get(kind, "info")


def called(name: str, experiment: str) -> str:
    """A run as it is called: `shakespeare/lr-3`."""
    return name if experiment in ("", "default") else f"{experiment}/{name}"


def ended(facts: Facts) -> Words:
    """A run has finished, failed or been cancelled."""
    run = facts.run
    word = {RunState.SUCCEEDED: "finished", RunState.FAILED: "failed"}.get(run.state, "cancelled")
    step = next((a.last_step for a in reversed(facts.attempts) if a.last_step is not None), None)
    title = f"{called(run.spec.name, run.spec.experiment)}: {word}"
    if facts.last is not None and run.state == RunState.SUCCEEDED:
        title += f", {run.spec.checkpoint.metric} {value(facts.last[1])} at step {facts.last[0]}"
    elif step is not None:
        title += f" at step {step}"
    failed = run.state == RunState.FAILED
    lines = [
        _last_line(run.message) if failed else "",
        _took(facts),
        _best(facts),
        f"log: orch logs {run.id}" if failed else "",
    ]
    return title, "\n".join([*filter(None, lines), *link_lines(facts.links)])


def stuck(run: RunRecord, what: str, lines: Sequence[str], links: Mapping[str, str]) -> Words:
    """A run does not get on."""
    title = f"{called(run.spec.name, run.spec.experiment)}: stuck, {what}"
    return title, "\n".join([*filter(None, lines), *link_lines(links)])


def best(run: RunRecord, at: tuple[int, float], before: tuple[str, float], links: Mapping[str, str]) -> Words:
    """A run is better than every one of its experiment so far; `before`: whose was the best, and how good."""
    who = called(run.spec.name, run.spec.experiment)
    title = f"{who}: {run.spec.checkpoint.metric} {value(at[1])}, the best of {run.spec.experiment} so far"
    lines = [f"at step {at[0]}; before that {value(before[1])} by {before[0]}"]
    return title, "\n".join([*lines, *link_lines(links)])


def sweep(view: SweepView, links: Mapping[str, str]) -> Words:
    """A sweep has come to its end."""
    title = f"{called(view.name, view.experiment)}: sweep {view.state.value}"
    lines = [view.message]
    if view.best_value is not None:
        title += f", best {view.metric} {value(view.best_value)}"
        chosen = ", ".join(f"{key.rsplit('.', 1)[-1]} {_said(one)}" for key, one in view.best_params.items())
        lines.append(f"trial {view.best_trial}: {chosen}")
    counts = ", ".join(f"{count} {state.value}" for state, count in view.counts.items() if count)
    lines += [f"trials: {counts}" if counts else "", f"report: orch report {view.id}"]
    return title, "\n".join([*filter(None, lines), *link_lines(links)])


def barren(schedule: ScheduleRecord, fire: FireRecord) -> Words:
    """A due time of a schedule has created nothing."""
    due = datetime.fromisoformat(schedule.local(fire.due))
    more = f" and {fire.count - 1} more" if fire.count > 1 else ""
    title = f"schedule {schedule.name}: {fire.state.value}, due {due:%a %Y-%m-%d %H:%M}{more}"
    return title, "\n".join(
        [*filter(None, [fire.message]), f"all of them: orch schedule fires {schedule.name}"]
    )


def _said(one: object) -> str:
    return value(one) if isinstance(one, float) else str(one)


def digest(notices: Sequence[Notice]) -> Words:
    """Many notices as one."""
    counts = Counter(notice.kind for notice in notices)
    told = ", ".join(f"{count} {kind.value}" for kind, count in counts.items())
    lines = [notice.title for notice in notices[:_LINES]]
    more = len(notices) - len(lines)
    return f"{len(notices)} notifications: {told}", "\n".join(
        lines + ([f"and {more} more: orch ls --all"] if more else [])
    )


def link_lines(links: Mapping[str, str]) -> list[str]:
    """The pages that belong into a message."""
    return [f"{label}: {links[name]}" for name, label in _LINKS.items() if name in links]


def value(number: float) -> str:
    """`1.4712`; very large and very small ones with an exponent."""
    return f"{number:.4f}" if 1e-3 <= abs(number) < 1e6 or number == 0 else f"{number:.4g}"


def time(seconds: float) -> str:
    """`45 s`, `12 min 3 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


def _took(facts: Facts) -> str:
    run = facts.run
    where = ", ".join(dict.fromkeys(_where(attempt) for attempt in facts.attempts))
    if run.started_at is None or run.ended_at is None:
        return f"on {where}" if where else "never started"
    took = time((run.ended_at - run.started_at).total_seconds())
    return f"{took} on {where}"


def _where(attempt: AttemptRecord) -> str:
    device = attempt.device_name or attempt.device
    return gang.where(attempt) + (f" ({device})" if device else "")


def _best(facts: Facts) -> str:
    if facts.best is None:
        return ""
    metric = facts.run.spec.checkpoint.metric
    text = f"best {metric} {value(facts.best[1])} at step {facts.best[0]}"
    return text + (f", the best of {facts.run.spec.experiment} so far" if facts.record else "")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LONGEST] if lines else ""
