"""What `orch top` looks like: a view and a size in, lines of exactly that size out.

From 150 columns on there are two columns of sections, else one. Where there are too few lines, the last rows
of the sections are cut, in this order: due times, sweeps, what waits, machines, what executes. What is cut is
counted. All texts that come from elsewhere are made printable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.nodes import state_word
from orchestrator.cli.plot import render_curve
from orchestrator.cli.render import Cell, Column
from orchestrator.cli.sections import Section, bar, sparkline, stacked
from orchestrator.domain.states import RunState
from orchestrator.messages import GpuView, Health, PointView
from orchestrator.messages_schedules import ComingView
from orchestrator.messages_top import (
    TopBudget,
    TopCurve,
    TopEnergy,
    TopNode,
    TopRun,
    TopSweep,
    TopView,
    TopWaiting,
)

TWO_COLUMNS = 150
"""Cells from which on sections stand side by side."""
_BETWEEN = 3
_LEFT_SHARE = 0.54
_MARK = "●"
_LOSS = "train/loss"
_CHART = 6
"""Lines of a large curve, at least, without the"""
_AROUND = 4
"""lines around it: a blank one, the heading, the axis and its numbers."""
_HIGHEST = 12
_CHARTED = 8
"""Values from which on a curve is drawn large."""


# ---- the sections


def _running(view: TopView, width: int) -> Section:
    vals = any("val/loss" in one.curves or one.run.val_loss is not None for one in view.running)
    shown = _Shown(
        pace=width >= 76 and any(one.step_s for one in view.running),
        watts=width >= 100 and any(one.watts is not None for one in view.running),
        val=width >= 90 and vals,
        val_curve=width >= 105 and vals,
    )
    columns = [
        Column(f"RUNNING {view.running_total}", least=10),
        Column("NODE", least=6),
        Column("STEPS"),
        Column("LEFT", right=True),
        *([Column("PACE", right=True)] if shown.pace else []),
        *([Column("WATTS", right=True)] if shown.watts else []),
        Column("LOSS"),
        *([Column("VAL LOSS")] if shown.val else []),
    ]

    def rows(cells: int) -> list[list[Cell]]:
        if not view.running:
            hint = "" if view.waiting_total else "; `orch submit SPEC` begins a run"
            return [[Text(f"nothing executes{hint}", "dim")]]
        return [_running_row(one, shown, cells) for one in view.running]

    total = max(1, view.running_total)
    return Section(columns, rows, total, 3, rank=4, bars=(2 + shown.val_curve, 6, 24))


@dataclass(frozen=True)
class _Shown:
    """Which columns there is room, and something, for."""

    pace: bool
    watts: bool
    val: bool
    val_curve: bool


def _running_row(one: TopRun, shown: _Shown, cells: int) -> list[Cell]:
    run = one.run
    row: list[Cell] = [_marked(run.name, run.state.value), run.node or run.pool or render.NOTHING]
    if run.state is not RunState.RUNNING:
        style = render.STATE_STYLES.get(run.state.value, "")
        told = f"{run.state.value}: {run.message}" if run.message else run.state.value
        step = f"{render.progress(run.step, run.target_steps)}  " if run.step else ""
        return [*row, Text.assemble(step, (render.one_line(told), style))]
    row += [_steps(one, cells), render.duration(run.eta_s)]
    row += [_pace(one.step_s)] if shown.pace else []
    row += [_watts(one.watts)] if shown.watts else []
    row += [_curve(one, _LOSS, run.loss, cells)]
    row += [_curve(one, "val/loss", run.val_loss, cells if shown.val_curve else 0)] if shown.val else []
    return row


def _marked(name: str, state: str) -> Text:
    return Text.assemble((f"{_MARK} ", render.STATE_STYLES.get(state, "")), render.one_line(name))


def _steps(one: TopRun, cells: int) -> Text:
    run = one.run
    done = render.progress(run.step, run.target_steps)
    if not run.target_steps:
        return Text(done)
    moving = f" {render.transfer(run.transfer)}" if run.transfer else ""
    return Text.assemble(bar(run.step or 0, run.target_steps, cells), f" {done}", (moving, "dim"))


def _pace(step_s: float | None) -> str:
    if not step_s:
        return render.NOTHING
    return f"{1 / step_s:.3g}/s" if step_s < 1 else f"{step_s:.3g} s"


def _watts(watts: float | None) -> str:
    return render.NOTHING if watts is None else f"{watts:.0f} W" if watts >= 10 else f"{watts:.1f} W"


def _curve(one: TopRun, key: str, last: float | None, cells: int) -> Text:
    curve = one.curves.get(key)
    drawn = sparkline(curve.values, cells) if curve is not None else ""
    return Text.assemble(render.loss(last), (f" {drawn}" if drawn else "", "green"))


def _waiting(view: TopView, width: int, now: datetime) -> Section:
    users = width >= 100 and len({one.user for one in view.waiting}) > 1
    columns = [
        Column(f"QUEUED {view.waiting_total}", least=10),
        *([Column("USER", least=4)] if users else []),
        Column("WAITS", right=True),
        Column("FROM"),
        Column("WHY", least=10),
    ]

    def rows(cells: int) -> list[list[Cell]]:
        return [_waiting_row(one, users, now) for one in view.waiting]

    return Section(columns, rows, view.waiting_total, 3, rank=2)


def _waiting_row(one: TopWaiting, users: bool, now: datetime) -> list[Cell]:
    held = "dim" if one.held else render.STATE_STYLES["queued"]
    name = Text.assemble((f"{_MARK} ", held), render.one_line(one.name))
    why = Text(render.one_line(one.why), "dim") if one.why else Text("it starts in a moment", "green")
    waited = render.coarse(max(0.0, (now - one.since).total_seconds()))
    return [name, *([one.user] if users else []), waited, _from(one, now), why]


def _from(one: TopWaiting, now: datetime) -> str:
    """From when it may execute by its hours, or about when there is room."""
    if one.opens is not None:
        return _soon(one.opens, now)
    if one.free is None:
        return render.NOTHING
    return f"{'~' if one.estimated else '<'}{_soon(max(one.free, now), now)}"


def _soon(at: datetime, now: datetime) -> str:
    """A local time of today, or with the day."""
    local, today = at.astimezone(), now.astimezone()
    if local.date() == today.date():
        return local.strftime("%H:%M")
    near = abs((at - now).total_seconds()) < 6 * 86400
    return local.strftime("%a %H:%M" if near else "%Y-%m-%d")


def _machines(view: TopView, width: int) -> Section:
    gpus = any(one.node.gpus for one in view.nodes)
    memory = width >= 90 and any(one.node.gpu_states for one in view.nodes)
    watts = any(one.watts is not None for one in view.nodes)
    pools = width >= 100 and any(one.node.pool != one.node.name for one in view.nodes)
    columns = [
        Column(f"MACHINES {len(view.nodes)}", least=10),
        *([Column("POOL", least=4)] if pools else []),
        Column("STATE"),
        Column("CPUS"),
        *([Column("GPUS")] if gpus else []),
        *([Column("GPU MEMORY", least=8)] if memory else []),
        *([Column("WATTS", right=True)] if watts else []),
        Column("RUNS", least=4),
    ]

    def rows(cells: int) -> list[list[Cell]]:
        if not view.nodes:
            return [[Text("no machines; `orch up` starts one here, `orch join` brings in another", "dim")]]
        return [_machine_row(one, cells, pools, gpus, memory, watts) for one in view.nodes]

    return Section(columns, rows, max(1, len(view.nodes)), 3, rank=3, bars=(1 + gpus, 4, 12))


def _machine_row(one: TopNode, cells: int, pools: bool, gpus: bool, memory: bool, watts: bool) -> list[Cell]:
    node, word = one.node, render.one_line(state_word(one.node))
    row: list[Cell] = [_marked(node.name, word), *([node.pool] if pools else []), render.state(word)]
    row += [_amount(node.cpus_used, node.cpus, cells)]
    row += [_amount(node.gpus_used, node.gpus, cells)] if gpus else []
    row += [_gpu_memory(node.gpu_states)] if memory else []
    row += [_watts(one.watts)] if watts else []
    note = node.busy or node.excluded or node.closed
    told = [", ".join(node.runs), note if word != "ready" else ""]
    return [*row, Text("; ".join(render.one_line(part) for part in told if part), "dim")]


def _amount(used: float, total: float, cells: int) -> Cell:
    if not total:
        return render.NOTHING
    style = "green" if used < total else "yellow"
    return Text.assemble(bar(used, total, cells, style), f" {render.amount(used, total)}")


def _gpu_memory(gpus: Sequence[GpuView]) -> str:
    """Of all GPUs together, and what others than us have of it."""
    if not gpus:
        return render.NOTHING
    whole, foreign = sum(gpu.memory for gpu in gpus), sum(gpu.foreign_memory for gpu in gpus)
    busy = max(gpu.foreign_use for gpu in gpus)
    others = f", others {render.size(foreign)}" if foreign else ""
    return render.size(whole) + others + (f" {busy:.0%}" if busy >= 0.01 else "")


def _sweeps(view: TopView, width: int) -> Section:
    columns = [
        Column(f"SWEEPS {len(view.sweeps)}", least=10),
        Column("TRIALS"),
        Column("BEST", least=12),
        Column("USED", least=8),
    ]

    def rows(cells: int) -> list[list[Cell]]:
        return [_sweep_row(one, cells, width >= 100) for one in view.sweeps]

    return Section(columns, rows, len(view.sweeps), 2, rank=1, bars=(1, 4, 24))


def _sweep_row(one: TopSweep, cells: int, wide: bool) -> list[Cell]:
    total = one.total if one.total is not None else one.done + one.open
    trials = Text.assemble(bar(one.done, total, cells), f" {one.done}/{total}")
    if one.open:
        trials.append(f" +{one.open}", "cyan")
    best = Text(render.NOTHING)
    if one.best_value is not None:
        metric = render.one_line(one.metric)
        best = Text.assemble((f"{one.best_value:.4f}", "bold green"), f" {metric} (trial {one.best_trial})")
    budgets = sorted(one.budgets, key=lambda budget: -budget.used / budget.most)
    used = ", ".join(map(_budget, budgets if wide else budgets[:1])) or render.NOTHING
    return [
        _marked(one.name, one.state.value),
        trials,
        best,
        f"{one.message}; {used}" if one.message else used,
    ]


def _budget(budget: TopBudget) -> str:
    if budget.kind == "duration":
        return f"{render.duration(budget.used)} of {render.duration(budget.most)}"
    unit = "kWh" if budget.kind == "kwh" else "GPU-hours"
    return f"{budget.used:.3g} of {budget.most:.3g} {unit}"


def _fires(view: TopView, now: datetime) -> Section:
    columns = [
        Column(f"NEXT {len(view.fires)}", least=10),
        Column("AT"),
        Column("IN", right=True),
        Column(""),
    ]

    def rows(cells: int) -> list[list[Cell]]:
        return [_fire_row(one, now) for one in view.fires]

    return Section(columns, rows, len(view.fires), 1, rank=0)


def _fire_row(one: ComingView, now: datetime) -> list[Cell]:
    until = f"until {_soon(one.closes, now)}" if one.closes else ""
    name = Text.assemble((f"{_MARK} ", "cyan"), render.one_line(one.name))
    return [name, _soon(one.at, now), render.coarse((one.at - now).total_seconds()), Text(until, "dim")]


def _charts(view: TopView, width: int, room: int) -> list[Text]:
    """Losses drawn large in room that is left over, of the runs that began first."""
    drawn = [one for one in view.running if len(one.curves.get(_LOSS, TopCurve()).values) >= _CHARTED]
    number = min(len(drawn), room // (_CHART + _AROUND))
    lines: list[Text] = []
    for one in drawn[:number]:
        curve = one.curves[_LOSS]
        points = [
            PointView(key=_LOSS, step=step, time_ms=0, value=value)
            for step, value in zip(curve.steps, curve.values, strict=True)
        ]
        height = min(_HIGHEST, room // number - _AROUND)
        heading = Text.assemble(("LOSS", "bold cyan"), (f" {render.one_line(one.run.name)}", "dim"))
        lines += [Text(), heading, *map(Text, render_curve(points, width - 1, height).splitlines())]
    return [render.fit(line, width) for line in lines]


# ---- the whole


def frame(view: TopView, width: int, height: int, now: datetime, trouble: str = "") -> list[Text]:
    """The picture: `height` lines of `width` cells. With `trouble`, in words, it is an old one, and pale."""
    body = _body(view, width, height - 2, now)[: max(0, height - 2)]
    body += [Text(" " * width)] * (height - 2 - len(body))
    if trouble:
        for line in body:
            line.stylize("dim")
    return [_head(view, width, now, trouble), *body, _foot(view.energy, width)][:height]


def _body(view: TopView, width: int, room: int, now: datetime) -> list[Text]:
    two = width >= TWO_COLUMNS
    left = int((width - _BETWEEN) * _LEFT_SHARE) if two else width
    right = width - left - _BETWEEN if two else width
    running, sweeps = _running(view, left), _sweeps(view, left)
    others = [_waiting(view, right, now), _machines(view, right)]
    if not two:
        return stacked([running, *others, sweeps, _fires(view, now)], width, room)
    columns = stacked([running, sweeps], left, room), stacked([*others, _fires(view, now)], right, room)
    columns[0].extend(_charts(view, left, room - len(columns[0])))
    pairs = zip_longest(*columns)
    blank = Text(" " * left), Text(" " * right)
    between = Text(" " * _BETWEEN)
    return [Text.assemble(one or blank[0], between, other or blank[1]) for one, other in pairs]


def _head(view: TopView, width: int, now: datetime, trouble: str) -> Text:
    at = Text(now.astimezone().strftime("%H:%M:%S"), "bold")
    told = Text(f"{_MARK} {render.one_line(trouble)}", "yellow") if trouble else _health(view.health)
    if view.draining and not trouble:
        told.append("   everything is being taken down", "yellow")
    return render.fit(Text.assemble(("orch top", "bold"), "   ", told), max(0, width - 9)) + Text(" ") + at


def _health(health: Health) -> Text:
    parts = [Text.assemble((_MARK, "green"), " controller")]
    ray = (_MARK, "green"), " Ray"
    parts.append(Text.assemble(*ray) if health.ray_connected else Text(f"{_MARK} Ray does not answer", "red"))
    if health.mlflow_connected:
        behind = f", {health.mlflow_pending:,} points behind" if health.mlflow_pending else ""
        parts.append(Text.assemble((_MARK, "green"), f" MLflow{behind}"))
    elif health.mlflow_connected is not None:
        parts.append(Text(f"{_MARK} MLflow does not answer", "red"))
    return Text("   ").join(parts)


def _foot(energy: TopEnergy, width: int) -> Text:
    told = Text("today  ", "dim")
    kwh = energy.kwh if energy.source is not None else None
    used = render.energy(kwh, energy.source, energy.cost, energy.currency)
    told.append(render.one_line(used) or "no energy was counted")
    if energy.watts is not None:
        told.append_text(Text.assemble(("   now  ", "dim"), _watts(energy.watts)))
    keys = "q ends it"
    return render.fit(told, max(0, width - len(keys) - 1)) + Text(f" {keys}", "dim")


@dataclass(frozen=True)
class Picture:
    """A view as something that Rich draws, as large as the terminal is at that moment."""

    view: TopView
    now: datetime
    trouble: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines that fill the terminal."""
        lines = frame(self.view, options.max_width, options.height or console.height, self.now, self.trouble)
        yield Text("\n", no_wrap=True, overflow="crop", end="").join(lines)
