"""How schedules look in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator.cli import render
from orchestrator.cli.common import width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.messages_schedules import ComingView, FireView, ScheduleView

COLUMNS = [
    Column("ID"),
    Column("NAME", least=8),
    Column("STATE"),
    Column("CREATES"),
    Column("WHEN", least=9),
    Column("NEXT"),
    Column("LAST", wrap=True),
]
COMING_COLUMNS = [Column("SCHEDULE", least=8), Column("LOCAL TIME"), Column("UTC"), Column("MAY RUN UNTIL")]
FIRE_COLUMNS = [Column("DUE"), Column("BECAME"), Column("WORK"), Column("IS"), Column("WHY", wrap=True)]


def first(view: ScheduleView) -> str:
    """When a new schedule fires first, in words."""
    if view.next is None:
        return when(view)
    due = local(view.next.local)
    return f"at {due} ({view.tz})" if view.at else f"{when(view)}, first at {due}"


def table(found: Sequence[ScheduleView]) -> Cell:
    """One schedule a line."""
    return render.table(COLUMNS, [_row(one) for one in found], width())


def _row(view: ScheduleView) -> list[Cell]:
    return [
        view.id,
        view.name,
        render.state(view.state.value),
        view.creates,
        when(view),
        local(view.next.local) if view.next else render.NOTHING,
        _last(view),
    ]


def when(view: ScheduleView) -> str:
    """Its due times, in words."""
    if view.at is not None:
        return f"once ({view.tz})"
    return f"{view.cron} ({view.tz})"


def next_due(view: ScheduleView) -> str:
    """`, next at …`; empty where nothing is due any more."""
    return f", next at {local(view.next.local)}" if view.next else ""


def _last(view: ScheduleView) -> str:
    if view.last is None:
        return "never fired"
    text = f"{_due(view.last)} {view.last.state.value}"
    if view.last.run_id or view.last.sweep_id:
        text += f" {work(view.last)}: {view.last.work_state}"
    return text


def fields(view: ScheduleView) -> list[tuple[str, Cell]]:
    """What is known of a schedule, for one that is shown alone."""
    now = datetime.now(UTC)
    return [
        ("schedule", f"{view.id} ({view.name})"),
        ("state", render.state(view.state.value)),
        ("", view.message),
        ("creates", f"a {view.creates}"),
        ("when", when(view)),
        ("window", view.window),
        ("overlap", view.overlap.value),
        ("catch up", view.catch_up.value),
        ("waiting", str(view.waiting) if view.waiting else ""),
        ("user", view.user),
        ("made", render.clock(view.created_at, now)),
        ("ended", render.clock(view.ended_at, now) if view.ended_at else ""),
    ]


def coming_table(found: Sequence[ComingView]) -> Cell:
    """One due time a line."""
    return render.table(COMING_COLUMNS, [_coming_row(one) for one in found], width())


def _coming_row(one: ComingView) -> list[Cell]:
    zone = datetime.fromisoformat(one.local).tzinfo
    closes = one.closes.astimezone(zone).isoformat() if one.closes else None
    return [
        one.name,
        local(one.local),
        local(one.at.astimezone(UTC).isoformat()),
        local(closes) if closes else render.NOTHING,
    ]


def fire_table(found: Sequence[FireView]) -> Cell:
    """What became of one due time a line."""
    return render.table(FIRE_COLUMNS, [_fire_row(one) for one in found], width())


def _fire_row(one: FireView) -> list[Cell]:
    state = render.state(one.state.value)
    return [_due(one), state, work(one), render.state(one.work_state or ""), one.message]


def _due(one: FireView) -> str:
    if one.by_hand:
        return f"{local(one.local)} by hand"
    more = f" and {one.count - 1} more" if one.count > 1 else ""
    return local(one.local) + more


def work(one: FireView) -> str:
    """What a fire has created; empty where it created nothing."""
    if one.run_id:
        return f"run {one.run_id}"
    return f"sweep {one.sweep_id}" if one.sweep_id else ""


def local(text: str) -> str:
    """An instant as its own clock shows it, such as `Mon 2026-03-02 22:00`; seconds where there are some."""
    at = datetime.fromisoformat(text)
    return at.strftime("%a %Y-%m-%d %H:%M" + (":%S" if at.second else ""))
