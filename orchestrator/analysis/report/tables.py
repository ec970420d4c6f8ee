"""The tables of a report: leaderboard, differences of runs, machines, failures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.compare import Row
from orchestrator.analysis.report import words
from orchestrator.analysis.report.curves import trained
from orchestrator.analysis.report.data import Entry, Report, ranked
from orchestrator.analysis.report.html import Child, Html, el, join
from orchestrator.domain.states import CONSEQUENCES, Then
from orchestrator.messages import AttemptView

SHOWN_ROWS = 20
"""Rows of the leaderboard before the reader asks for all."""
MOST_FAILURES = 50


@dataclass(frozen=True)
class Column:
    """One column: its title, what stands in a cell, and what it is sorted by."""

    title: str
    cell: Callable[[int], Child]
    sort: Callable[[int], float | str | None] | None = None
    """None where the reader cannot sort by it."""
    right: bool = False
    wraps: bool = False
    """Text that may take several lines."""


def table(columns: Sequence[Column], rows: Sequence[int], marked: int | None = None) -> Html:
    """Rows in this order; `marked` stands out."""
    head = el("tr", *(_head(column) for column in columns))
    body = [_row(columns, row, row == marked, n >= SHOWN_ROWS) for n, row in enumerate(rows)]
    whole = el("table", el("thead", head), el("tbody", *body), class_="data")
    more = None
    if len(rows) > SHOWN_ROWS:
        more = el("button", f"Show all {len(rows):,}", type="button", class_="more", data_more=True)
    return el("div", el("div", whole, class_="scroll"), more, class_="table")


def _head(column: Column) -> Html:
    kind = "right" if column.right else None
    if column.sort is None:
        return el("th", column.title, scope="col", class_=kind)
    return el("th", el("button", column.title, type="button"), scope="col", class_=kind, aria_sort="none")


def _row(columns: Sequence[Column], row: int, marked: bool, late: bool) -> Html:
    classes = " ".join(["best"] * marked + ["late"] * late)
    return el("tr", *(_cell(column, row) for column in columns), class_=classes or None)


def _cell(column: Column, row: int) -> Html:
    by = column.sort(row) if column.sort is not None else None
    kind = "right" if column.right else "text" if column.wraps else None
    return el("td", column.cell(row), class_=kind, data_sort=None if by is None else str(by))


# ------------------------------------------------------------------ leaderboard


def leaderboard(report: Report) -> Html:
    """Trials or runs, best first. Columns without any value are left out."""
    entries, order = report.entries, ranked(report)
    rank = {place: n + 1 for n, place in enumerate(order)}
    trials = report.sweep is not None
    columns = [
        Column("#", lambda p: str(rank[p]), lambda p: rank[p], right=True),
        Column(
            "trial" if trials else "run",
            lambda p: _marked(entries[p], p == report.best and len(entries) > 1),
            lambda p: _name_key(entries[p]),
        ),
        *_params(report),
    ]
    if any(entry.mean is not None for entry in entries):
        columns.append(_measure("mean", lambda p: entries[p].mean))
    columns.append(_measure(report.metric, lambda p: entries[p].value))
    columns += [
        Column("state", lambda p: _state(entries[p]), lambda p: entries[p].state),
        Column("steps", lambda p: words.count(entries[p].step), lambda p: entries[p].step, right=True),
        Column("machines", lambda p: _machines(entries[p]), lambda p: _machines(entries[p])),
        Column(
            "time", lambda p: words.duration(entries[p].seconds), lambda p: entries[p].seconds, right=True
        ),
        *_energy(report, lambda p: entries[p].energy_kwh, lambda p: entries[p].cost, range(len(entries))),
    ]
    return table(columns, order, report.best if len(entries) > 1 else None)


def _marked(entry: Entry, best: bool) -> Html:
    return join(_name(entry), el("span", "best", class_="badge") if best else None)


def _name(entry: Entry) -> Child:
    return str(entry.number) if entry.number is not None else entry.name


def _name_key(entry: Entry) -> float | str:
    return entry.number if entry.number is not None else entry.name


def _params(report: Report) -> list[Column]:
    def column(path: str, title: str, numeric: bool) -> Column:
        def value(place: int) -> Any:
            return report.entries[place].params.get(path)

        def sort(place: int) -> float | str | None:
            found = value(place)
            return None if found is None else float(found) if numeric else words.setting(found)

        return Column(title, lambda p: words.column_setting(value(p)), sort, right=numeric)

    return [column(one.path, one.name, all(map(_is_number, one.choices or ()))) for one in report.axes]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _measure(title: str, value: Callable[[int], float | None]) -> Column:
    return Column(title, lambda p: words.measure(value(p)), value, right=True)


def _energy(
    report: Report,
    kwh: Callable[[int], float | None],
    cost: Callable[[int], float | None],
    rows: Iterable[int],
) -> list[Column]:
    """Columns of energy and cost, where anything is known."""
    places, found = list(rows), []
    known = [used for place in places if (used := kwh(place)) is not None]
    if known:
        unit, per = ("Wh", 0.001) if max(known) < 0.1 else ("kWh", 1.0)
        found.append(Column(unit, lambda p: words.energy(kwh(p), per), kwh, right=True))
    if any(cost(place) is not None for place in places):
        title = f"cost ({report.currency})" if report.currency else "cost"
        found.append(Column(title, lambda p: words.money(cost(p)), cost, right=True))
    return found


def _machines(entry: Entry) -> str:
    nodes = list(dict.fromkeys(one.node for one in entry.attempts if one.started_at is not None))
    more = f" +{len(nodes) - 2}" if len(nodes) > 2 else ""
    return ", ".join(nodes[:2]) + more or words.NOTHING


def _state(entry: Entry) -> Html:
    known = {"complete": "good", "succeeded": "good", "failed": "bad", "pruned": "early"}
    return join(el("span", class_=f"dot {known.get(entry.state, 'other')}"), entry.state)


# ------------------------------------------------------------------ runs side by side


def differences(rows: Sequence[Row], names: Sequence[str]) -> Html:
    """Settings or results of runs, one column for each run."""

    def column(side: int, name: str) -> Column:
        return Column(name, lambda row: words.setting(rows[row].values[side]), wraps=True)

    first = Column("", lambda row: rows[row].key)
    return table([first, *(column(side, name) for side, name in enumerate(names))], range(len(rows)))


# ------------------------------------------------------------------ machines


def machines(report: Report) -> Html:
    """What each machine has done, those that did most first."""
    work: dict[str, list[AttemptView]] = {}
    for entry in report.entries:
        for one in entry.attempts:
            if one.started_at is not None:
                work.setdefault(one.node, []).append(one)
    seconds = {node: trained(found, report.at) for node, found in work.items()}
    nodes = sorted(work, key=lambda node: -seconds[node])
    columns = [
        Column("machine", lambda row: nodes[row], lambda row: nodes[row]),
        Column("pool", lambda row: _each(one.pool for one in work[nodes[row]])),
        Column("device", lambda row: _each(one.device or "" for one in work[nodes[row]])),
        Column(
            "attempts",
            lambda row: words.count(len(work[nodes[row]])),
            lambda row: len(work[nodes[row]]),
            right=True,
        ),
        Column(
            "time of training",
            lambda row: words.duration(seconds[nodes[row]]),
            lambda row: seconds[nodes[row]],
            right=True,
        ),
        *_energy(
            report,
            lambda row: _total(one.energy_kwh for one in work[nodes[row]]),
            lambda row: _total(one.cost for one in work[nodes[row]]),
            range(len(nodes)),
        ),
    ]
    return table(columns, range(len(nodes)))


def _total(amounts: Iterable[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


def _each(found: Iterable[str]) -> str:
    return ", ".join(word for word in dict.fromkeys(found) if word) or words.NOTHING


# ------------------------------------------------------------------ failures


def failures(report: Report) -> list[tuple[Entry, AttemptView]]:
    """Attempts that ended as they should not have, newest first."""
    found = [(entry, one) for entry in report.entries for one in entry.attempts if _went_wrong(one)]
    return sorted(found, key=lambda pair: pair[1].ended_at or pair[1].created_at, reverse=True)


def _went_wrong(attempt: AttemptView) -> bool:
    return attempt.reason is not None and CONSEQUENCES[attempt.reason].then in (Then.RETRY, Then.FAIL)


def failure_table(report: Report, found: Sequence[tuple[Entry, AttemptView]]) -> Html:
    """What went wrong, where, and how to read what the program wrote."""
    some = found[:MOST_FAILURES]

    def told(row: int) -> Html:
        one = some[row][1]
        text = CONSEQUENCES[one.reason].text if one.reason is not None else ""
        return join(text, el("div", one.message, class_="message") if one.message else None)

    def when(row: int) -> str:
        return words.instant(some[row][1].ended_at or some[row][1].created_at, report.zone)

    columns = [
        Column("when", when, when),
        Column("trial" if report.sweep else "run", lambda row: _name(some[row][0])),
        Column("attempt", lambda row: str(some[row][1].number), right=True),
        Column("machine", lambda row: some[row][1].node, lambda row: some[row][1].node),
        Column("what", told, wraps=True),
        Column("its output", lambda row: command(f"orch logs {_ref(some[row])}")),
    ]
    return table(columns, range(len(some)))


def _ref(found: tuple[Entry, AttemptView]) -> str:
    return f"{shlex.quote(found[0].run_id)} --attempt {found[1].number}"


def command(line: str) -> Html:
    """A command to copy: one click selects it."""
    return el("code", line, class_="command")
