"""Commands that look into runs: compare, curve, sample, open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.checkpoints import same_store, split_place, step_of
from orchestrator.cli.common import RUNS, Json, RunRef, complete_run, connect, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.analysis.compare import Comparison, Row, Value
    from orchestrator.client import Client

CURVE_HEIGHT = 12
MOST_CURVE_CELLS = 120


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(rich_help_panel=RUNS)(compare)
    app.command(rich_help_panel=RUNS)(curve)
    app.command(rich_help_panel=RUNS)(sample)
    app.command("open", rich_help_panel=RUNS)(open_links)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Two or more runs.", autocompletion=complete_run),
    ],
    as_json: Json = False,
) -> None:
    """Put runs side by side: settings, results, metrics.

    Only settings that differ are shown, as they were in effect on the machines that ran them.

    - `orch compare laptop gaming-pc`
    """
    if len(runs) < 2:
        raise typer.BadParameter("expected at least two runs", param_hint="RUN")
    from orchestrator.analysis.compare import compare as side_by_side

    with connect() as client:
        details = [client.run(run) for run in runs]
        comparison = side_by_side(details, client.links([detail.run.id for detail in details]))
    if as_json:
        print_json(comparison)
    else:
        _print_comparison(comparison)


def _print_comparison(comparison: Comparison) -> None:
    last = "DIFFERENCE" if len(comparison.runs) == 2 else "RANGE"
    names = comparison.names
    titles = names if len(set(names)) == len(names) else comparison.runs
    for title, rows in (
        ("DIFFERENT SETTINGS", comparison.settings),
        ("RESULTS", comparison.results),
        ("METRICS", comparison.metrics),
    ):
        columns = [Column(title, least=18), *(Column(name, right=True, least=8) for name in titles)]
        if rows:
            out.print(render.table([*columns, Column(last, right=True)], map(_comparison_row, rows), width()))
            out.print()
    if not comparison.settings:
        out.print("no setting differs")
    out.print(render.fields(comparison.links.items()))


def _comparison_row(row: Row) -> list[Cell]:
    return [row.key, *(_value(value) for value in row.values), _difference(row)]


def _value(value: Value) -> str:
    if isinstance(value, list):
        return " → ".join(_value(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: render.NOTHING}[value]
    return value if isinstance(value, str) else render.number(value)


def _difference(row: Row) -> str:
    if not row.difference:
        return ""
    if row.ratio is not None and not 0.5 < row.ratio < 2:
        return f"×{row.ratio:.3g}"
    return f"{'+' if row.difference > 0 else ''}{render.number(row.difference)}"


def curve(
    run: RunRef,
    key: Annotated[str, typer.Option("--key", "-k", help="Metric to draw.")] = "train/loss",
    as_json: Json = False,
) -> None:
    """Draw a metric of a run in the terminal.

    A dotted line stands where another machine went on.

    - `orch curve demo --key val/loss`
    """
    with connect() as client:
        if as_json:
            print_json(client.points(run, [key]))
        else:
            out.print(draw_curve(client, run, key))


def draw_curve(client: Client, run: str, key: str) -> Text:
    """The curve of a metric with its handovers, as wide as the terminal."""
    from orchestrator.cli.plot import render_curve
    from orchestrator.errors import NotFoundError

    detail = client.run(run)
    points = client.points(detail.run.id, [key])
    if not points:
        known = ", ".join(sorted(detail.metrics)) or "none yet"
        raise NotFoundError(
            f"run {detail.run.id} has no points of {key}", remedy=f"use --key; it has: {known}"
        )
    nodes = {attempt.number: attempt.node for attempt in detail.attempts}
    drawing = render_curve(points, min(width(), MOST_CURVE_CELLS), CURVE_HEIGHT, nodes)
    return Text.assemble((f"{key} of {detail.run.name}\n", "bold"), drawing)


def sample(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@STEP]",
            help="The run, and the step or tag of its checkpoint; the newest by default.",
            autocompletion=complete_run,
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="Text to go on from.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Characters to write.")] = 500,
    temperature: Annotated[float, typer.Option(min=0.01, help="Below 1 is less random.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 1337,
) -> None:
    """Have a trained model write text.

    It is loaded from a checkpoint of the run; this machine must see the checkpoint store.

    - `orch sample demo@1000 --prompt "ROMEO:"`
    """
    options = [f"--tokens={tokens}", f"--temperature={temperature}", f"--seed={seed}"]
    if prompt is not None:
        options.append(f"--prompt={prompt}")
    with connect() as client:
        raise typer.Exit(sample_run(client, run, options))


def sample_run(client: Client, place: str, options: list[str]) -> int:
    """Restore a checkpoint to a temporary directory and run the trainer's sampler on it; its exit code."""
    import subprocess
    import tempfile

    from orchestrator.errors import ConflictError
    from orchestrator.store.checkpoints import restore

    ref, word = split_place(place)
    detail = client.run(ref)
    if detail.spec.trainer is None:
        raise ConflictError(
            f"run {detail.run.id} is not of the built-in trainer, so nobody here knows how to sample from it"
        )
    store = same_store(client)
    with tempfile.TemporaryDirectory(prefix="orch-sample-") as folder:
        step = step_of(store, detail.run.id, word)
        restored = restore(store, detail.run.id, step, Path(folder) / "checkpoint")
        command = [sys.executable, "-m", "trainer.sample", str(restored.directory), *options]
        return subprocess.run(command, check=False).returncode


def open_links(
    run: RunRef,
    browser: Annotated[
        bool, typer.Option("--browser", "-b", help="Open the first page in a browser too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the addresses of a run's pages in MLflow.

    - `orch open demo --browser`
    """
    with connect() as client:
        detail = client.run(run)
    if as_json:
        print_json(detail.links)
    elif detail.links:
        out.print(render.fields(detail.links.items()))
    else:
        out.print("no pages yet: MLflow does not know the run, or the cluster has no MLflow")
    if browser and detail.links:
        import webbrowser

        webbrowser.open(next(iter(detail.links.values())))
