"""Commands about sweeps: `orch sweep ls`, `show`, `pause`, `resume`, `extend`, `cancel`."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import RUNS, Json, command_group, completions, connect, out, print_json, width
from orchestrator.cli.render import Cell, Column
from orchestrator.domain.sweep_states import SweepState, TrialState

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.messages_sweeps import SweepDetail, SweepView, TrialView
    from orchestrator.spec import LoadedSweep

SWEEP_COLUMNS = [
    Column("SWEEP"),
    Column("NAME", least=8),
    Column("STATE"),
    Column("TRIALS"),
    Column("BEST", right=True),
    Column("OF", least=6),
    Column("TIME", right=True),
    Column("CREATED"),
]
FOLLOW_S = 2.0
_BEST = "*"


def complete_sweep(incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of recent sweeps, for the shell; nothing where the controller does not answer."""
    from orchestrator.errors import OrchError

    try:
        with connect(timeout_s=2.0) as client:
            found = client.sweeps(limit=50)
    except OrchError:
        return []
    return completions(found, incomplete)


SweepRef = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help="Id of the sweep, the beginning of an id, or a name (its newest sweep).",
        autocompletion=complete_sweep,
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = command_group(
        "Searches over specs: look at them, pause, extend, cancel. `orch submit SWEEP.yaml` begins one."
    )
    for command in (ls, show, follow, pause, resume, extend, cancel):
        group.command()(command)
    app.add_typer(group, name="sweep", rich_help_panel=RUNS)


def submit(loaded: LoadedSweep, key: str | None, watch: bool, as_json: bool) -> None:
    """Submit a sweep that was read from a file."""
    import getpass

    from orchestrator.messages_sweeps import SweepRequest

    request = SweepRequest(
        spec=loaded.spec, key=key or uuid.uuid4().hex, source=loaded.source, user=getpass.getuser()
    )
    with connect() as client:
        submitted = client.submit_sweep(request)
        what = f"sweep {submitted.sweep_id} ({submitted.name})"
        if as_json and not watch:
            print_json(submitted)
            return
        if not as_json:
            out.print(
                f"accepted as {what}" if submitted.created else f"this key was used before: it is {what}"
            )
        if watch:
            raise typer.Exit(_follow(client, submitted.sweep_id, as_json))
        out.print(f"look at it with `orch sweep show {submitted.sweep_id}`", style="dim")


def ls(
    state: Annotated[
        list[SweepState] | None,
        typer.Option(metavar="STATE", help=f"Only in this state; may be repeated: {', '.join(SweepState)}."),
    ] = None,
    all_sweeps: Annotated[bool, typer.Option("--all", "-a", help="Every sweep there ever was.")] = False,
    count: Annotated[int, typer.Option("-n", min=1, help="At most so many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List sweeps, newest first.

    - `orch sweep ls --state running`
    """
    from orchestrator.calls import MOST_RUNS

    with connect() as client:
        found = client.sweeps(state or [], MOST_RUNS if all_sweeps else count)
    if as_json:
        print_json(found)
    elif not found:
        out.print("no sweeps; `orch submit SWEEP.yaml` begins one")
    else:
        now = _now()
        out.print(render.table(SWEEP_COLUMNS, [_sweep_row(one, now) for one in found], width()))


def show(
    sweep: SweepRef,
    count: Annotated[int, typer.Option("-n", min=1, help="At most so many trials, the best first.")] = 30,
    as_json: Json = False,
) -> None:
    """Show a sweep and its trials, the best first.

    - `orch sweep show lr-width`
    """
    with connect() as client:
        detail = client.sweep(sweep)
    if as_json:
        print_json(detail)
        return
    view = detail.sweep
    out.print(Text.assemble((view.name, "bold"), f"  sweep {view.id}  ", render.state(view.state.value)))
    for line in _summary(detail):
        out.print(line)
    if detail.trials:
        out.print()
        out.print(render.table(_trial_columns(detail), _trial_rows(detail, count), width()))
        left = len(detail.trials) - count
        if left > 0:
            out.print(f"and {left} more; -n {len(detail.trials)} shows them all", style="dim")
    for name, link in detail.links.items():
        out.print(f"{name}: {link}", style="dim")


def follow(sweep: SweepRef, as_json: Json = False) -> None:
    """Watch a sweep until it is over. Ctrl-C ends only the watching; the sweep goes on.

    - `orch sweep follow lr-width`
    """
    with connect() as client:
        raise typer.Exit(_follow(client, sweep, as_json))


def pause(sweep: SweepRef, as_json: Json = False) -> None:
    """Begin no new trials, until the sweep is resumed. What executes goes on to its end or its next rung."""
    with connect() as client:
        _said(client.pause_sweep(sweep), as_json)


def resume(sweep: SweepRef, as_json: Json = False) -> None:
    """Go on with a paused sweep."""
    with connect() as client:
        _said(client.resume_sweep(sweep), as_json)


def cancel(sweep: SweepRef, as_json: Json = False) -> None:
    """End a sweep and the runs of its trials for good. What they have saved stays."""
    with connect() as client:
        _said(client.cancel_sweep(sweep), as_json)


def extend(
    sweep: SweepRef,
    trials: Annotated[int | None, typer.Option(min=1, help="Points in all, those tried included.")] = None,
    duration: Annotated[str | None, typer.Option(help="Time of training in all, such as 12h.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(min=0, help="GPU-hours in all.")] = None,
    kwh: Annotated[float | None, typer.Option(min=0, help="Energy in all.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    as_json: Json = False,
) -> None:
    """Give a sweep a larger budget; one that has finished goes on, and remembers its trials.

    - `orch sweep extend lr-width --trials 60`
    """
    from orchestrator.messages_sweeps import ExtendRequest
    from orchestrator.spec.values import parse_duration

    try:
        seconds = parse_duration(duration) if duration else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--duration") from error
    values = {"trials": trials, "duration": seconds, "gpu_hours": gpu_hours, "kwh": kwh, "parallel": parallel}
    if all(value is None for value in values.values()):
        raise typer.BadParameter("give --trials, --duration, --gpu-hours, --kwh or --parallel")
    with connect() as client:
        _said(client.extend_sweep(sweep, ExtendRequest.model_validate(values)), as_json)


# ---- how it looks


def _now() -> datetime:
    from orchestrator.clock import SYSTEM

    return SYSTEM.now()


def _said(view: SweepView, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        message = f": {view.message}" if view.message else ""
        out.print(f"sweep {view.id} ({view.name}) is {view.state.value}{message}")


def _follow(client: Client, ref: str, as_json: bool) -> int:
    """Print what changes until the sweep has ended; 0 where it finished."""
    from orchestrator.clock import SYSTEM

    told: dict[int, tuple[str, int]] = {}
    try:
        while True:
            detail = client.sweep(ref)
            if not as_json:
                _news(detail, told)
            if detail.sweep.state.final and all(trial.state.final for trial in detail.trials):
                break
            SYSTEM.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        out.print("\nnot watched any more; the sweep goes on", style="dim")
        return 130
    if as_json:
        print_json(detail)
    else:
        for line in _summary(detail):
            out.print(line)
    return 0 if detail.sweep.state == SweepState.FINISHED else 1


def _news(detail: SweepDetail, told: dict[int, tuple[str, int]]) -> None:
    for trial in detail.trials:
        now = (trial.state.value, trial.rung)
        if told.get(trial.number) == now:
            continue
        told[trial.number] = now
        value = "" if trial.value is None else f"  {detail.sweep.metric} {trial.value:.4f}"
        rung = f" on its way to rung {trial.rung}" if trial.rung and trial.state == TrialState.OPEN else ""
        params = ", ".join(f"{_leaf(key)} {_short(one)}" for key, one in trial.params.items())
        message = f"  {trial.message}" if trial.state == TrialState.FAILED else ""
        out.print(f"trial {trial.number} is {trial.state.value}{rung}{value}  ({params}){message}")


def _summary(detail: SweepDetail) -> list[str]:
    from orchestrator.domain.energy import in_words

    view = detail.sweep
    counts = ", ".join(f"{n} {state.value}" for state, n in view.counts.items() if n) or "none yet"
    total = f" of {view.total} points" if view.total is not None else ""
    lines = [f"{view.direction} {view.metric}; trials: {counts}; {view.use.trials}{total} tried"]
    if view.message:
        lines.append(view.message)
    use = [f"{render.duration(view.use.seconds)} of training"]
    if view.use.gpu_hours:
        use.append(f"{view.use.gpu_hours:.2f} GPU-hours")
    if view.use.kwh is not None:
        use.append(in_words(view.use.kwh, view.use.energy_source))
    if view.use.cost is not None:
        use.append(f"{view.use.cost:.2f} {view.use.currency or ''}".strip())
    lines.append(f"used: {', '.join(use)}")
    if view.best_value is not None:
        params = ", ".join(f"{_leaf(key)} {_short(one)}" for key, one in view.best_params.items())
        lines.append(f"best: trial {view.best_trial} with {view.best_value:.4f} ({params})")
    return lines


def _sweep_row(view: SweepView, now: datetime) -> list[Cell]:
    done = sum(n for state, n in view.counts.items() if state.final)
    total = view.total if view.total is not None else sum(view.counts.values())
    best = render.NOTHING if view.best_value is None else f"{view.best_value:.4f}"
    return [
        view.id,
        view.name,
        render.state(view.state.value),
        f"{done}/{total}",
        best,
        view.metric,
        render.duration(view.use.seconds),
        render.ago(view.created_at, now),
    ]


def _trial_columns(detail: SweepDetail) -> list[Column]:
    names = [_leaf(key) for key in detail.spec.space]
    return [
        Column("TRIAL", right=True),
        Column("RUN"),
        Column("STATE"),
        Column(detail.sweep.metric.upper(), right=True),
        Column("STEP", right=True),
        Column("NODE", least=6),
        *(Column(name.upper(), right=True) for name in names),
        Column("TIME", right=True),
    ]


def _trial_rows(detail: SweepDetail, count: int) -> list[list[Cell]]:
    sign = 1 if detail.sweep.direction == "minimize" else -1

    def place(trial: TrialView) -> tuple[bool, float]:
        return trial.value is None, sign * (trial.value or 0.0)

    ordered = sorted(detail.trials, key=place)[:count]
    return [_trial_row(detail, trial) for trial in ordered]


def _trial_row(detail: SweepDetail, trial: TrialView) -> list[Cell]:
    best = trial.number == detail.sweep.best_trial
    value = render.NOTHING if trial.value is None else f"{trial.value:.4f}"
    params: list[Cell] = [_short(trial.params.get(key, render.NOTHING)) for key in detail.spec.space]
    return [
        f"{_BEST if best else ''}{trial.number}",
        trial.run_id,
        render.state(trial.state.value),
        Text(value, "bold green") if best else value,
        render.NOTHING if trial.step is None else str(trial.step),
        trial.node or render.NOTHING,
        *params,
        render.duration(trial.seconds) if trial.seconds else render.NOTHING,
    ]


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
