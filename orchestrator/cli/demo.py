"""`orch demo`: one run, begun on one node and finished on another, on this machine, checked at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Set, err, out

if TYPE_CHECKING:
    from orchestrator.cli.demo_check import Check
    from orchestrator.client import Client
    from orchestrator.cluster.stack import StackStatus
    from orchestrator.messages import RunDetail, SubmitRequest
    from orchestrator.settings import Home
    from orchestrator.spec import LoadedSpec

DEMO_SPEC = Path("configs/demo.yaml")
FIRST, SECOND = "laptop", "gpu"
LOOK_EVERY_S = 0.5
SHIPPED_S = 60.0
"""Longest wait until MLflow has every point."""
SAVE_S = 30.0
"""Time for the program to save where the demonstration is interrupted."""
SAMPLE_TOKENS = 300


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(rich_help_panel=CLUSTER)(demo)


def demo(
    spec: Annotated[Path, typer.Option("--spec", metavar="FILE", help="What to train.")] = DEMO_SPEC,
    changes: Set = None,
    keep: Annotated[
        bool, typer.Option("--keep", envvar="KEEP", help="Leave everything running afterwards (or KEEP=1).")
    ] = False,
) -> None:
    """Show it all on this machine, with a run that moves half way.

    Starts a cluster of its own below ./.demo (or in ORCH_HOME), and takes it down at the end, whatever
    happens. Ends with 0 only if the run succeeded on two nodes with one unbroken curve.

    - `orch demo --set trainer.max_steps=1000`
    """
    from orchestrator.cli.runs import request
    from orchestrator.clock import SYSTEM

    began, gpu = SYSTEM.monotonic(), _has_gpu()
    loaded = _load(spec, changes or [], gpu)
    signal.signal(signal.SIGTERM, _end)
    with _stack(_demo_home(), gpu, keep) as client:
        good = _perform(client, request(loaded.spec, loaded.source))
        out.print(f"the demo took {render.duration(SYSTEM.monotonic() - began)}", style="dim")
    raise typer.Exit(0 if good else 1)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _load(spec: Path, changes: list[str], gpu: bool) -> LoadedSpec:
    """The spec, with the machine's GPU asked for where the run moves to."""
    from orchestrator.errors import ConflictError
    from orchestrator.spec import load_spec

    loaded = load_spec(spec, changes)
    pools = [variant.pool for variant in loaded.spec.placement]
    if pools[0] != FIRST or SECOND not in pools:
        raise ConflictError(
            f"{spec} cannot be shown: it has to begin in pool {FIRST} and be able to run in pool {SECOND}",
            remedy=f"begin with a copy of {DEMO_SPEC}",
        )
    return load_spec(spec, [*changes, f"placement.{pools.index(SECOND)}.gpus=1"]) if gpu else loaded


def _demo_home() -> Home:
    from orchestrator.clock import SYSTEM
    from orchestrator.settings import Home, home

    if os.environ.get("ORCH_HOME"):
        return home()
    return Home((Path(".demo") / SYSTEM.now().astimezone().strftime("%Y%m%d-%H%M%S")).absolute())


def _has_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return listed.returncode == 0 and "GPU 0" in listed.stdout


@contextmanager
def _stack(home: Home, gpu: bool, keep: bool) -> Iterator[Client]:
    """A cluster of two nodes; it is taken down at the end, also where it did not come up."""
    from orchestrator.client import Client
    from orchestrator.cluster.stack import NodeRequest, down, status, up
    from orchestrator.endpoint import endpoint
    from orchestrator.errors import ConflictError

    if status(home).running:
        raise ConflictError(
            f"a cluster runs in {home.root} already",
            remedy="unset ORCH_HOME, or take it down with `orch down`",
        )
    nodes = [f"{FIRST}:cpus=1,gpus=0", f"{SECOND}:cpus=1,gpus={1 if gpu else 0}"]
    up_now = False
    try:
        _title(f"Starting a cluster of two nodes, {FIRST} and {SECOND}, in {home.root}")
        stack = up(home, nodes=[NodeRequest.parse(node) for node in nodes], progress=_say)
        up_now = True
        url, token = endpoint(home, {})
        with Client(url, token) as client:
            yield client
    finally:
        if keep and up_now:
            _say_kept(home, stack)
        else:
            _title("Taking the cluster down")
            # Interrupted here it would leave processes behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            down(home, progress=_say, grace_s=SAVE_S)


def _say(text: str) -> None:
    out.print(Text(f"  {text}", "dim"))


def _title(text: str) -> None:
    out.print()
    out.print(Text(text, "bold"))


def _say_kept(home: Home, stack: StackStatus) -> None:
    _title("The cluster goes on running")
    out.print(render.fields([("controller", stack.url), ("mlflow", stack.mlflow_url)]))
    out.print(f"look with `ORCH_HOME={home.root} orch ls`, end it with `ORCH_HOME={home.root} orch down`")


def _perform(client: Client, submit: SubmitRequest) -> bool:
    """The run from its submission to the verdict."""
    from orchestrator.cli.follow import make_screen, summary, watch
    from orchestrator.domain.states import RunState

    submitted = client.submit(submit)
    _title(f"Training {submitted.name} (run {submitted.run_id}); half way it moves from {FIRST} to {SECOND}")
    screen = make_screen(out)
    try:
        detail = watch(client, submitted.run_id, screen, every_s=LOOK_EVERY_S, act=_Mover(client))
    finally:
        screen.close()
    checkpoints = client.checkpoints(detail.run.id)
    out.print(summary(detail, max((c for c in checkpoints if c.kept), key=lambda c: c.step, default=None)))
    if detail.run.state == RunState.SUCCEEDED:
        _show(client, detail)
    return _verdict(_checks(client, detail, submit))


class _Mover:
    """Moves a run once it is half way."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._moved = False

    def __call__(self, detail: RunDetail) -> None:
        from orchestrator.errors import UnavailableError

        run = detail.run
        half_way = run.step is not None and run.target_steps is not None and 2 * run.step >= run.target_steps
        if self._moved or not half_way or run.state.value != "running":
            return
        try:
            self._client.move(run.id, SECOND)
        except UnavailableError as e:
            err.print(f"not moved yet: {e.message}", style="yellow")
        else:
            self._moved = True


def _show(client: Client, detail: RunDetail) -> None:
    from orchestrator.cli.insight import draw_curve, sample_run
    from orchestrator.cli.lineage import checkpoints_table
    from orchestrator.cli.views import attempts_table

    run = detail.run.id
    _title("Attempts")
    out.print(attempts_table(detail))
    _title("Checkpoints")
    out.print(checkpoints_table(client.checkpoints(run)))
    _title("The loss, with the handover")
    out.print(draw_curve(client, run, "train/loss"))
    _title("What it writes")
    sample_run(client, run, [f"--tokens={SAMPLE_TOKENS}"])


def _checks(client: Client, detail: RunDetail, submit: SubmitRequest) -> list[Check]:
    from orchestrator.cli.demo_check import check_demo

    points = client.points(detail.run.id)
    interval = submit.spec.trainer.log_interval if submit.spec.trainer else 1
    keys = sorted({point.key for point in points})
    return check_demo(detail, points, _mlflow_history(client, detail, keys), interval)


def _mlflow_history(
    client: Client, detail: RunDetail, keys: list[str]
) -> dict[str, list[tuple[int, float]]] | None:
    """Every point as MLflow has it, once it has what the controller sent; None where there is no MLflow."""
    import re

    import httpx

    from orchestrator.clock import SYSTEM
    from orchestrator.errors import UnavailableError

    deadline = SYSTEM.monotonic() + SHIPPED_S
    while (health := client.health()).mlflow_pending and SYSTEM.monotonic() < deadline:
        SYSTEM.sleep(0.5)
    if not health.mlflow_url:
        return None
    found = re.search(r"/runs/([0-9a-f]+)", client.run(detail.run.id).links.get("run", ""))
    if found is None:
        return {}
    history: dict[str, list[tuple[int, float]]] = {}
    address = f"{health.mlflow_url}/api/2.0/mlflow/metrics/get-history"
    for key in keys:
        query = {"run_id": found[1], "metric_key": key, "max_results": "25000"}
        try:
            answer = httpx.get(address, params=query, timeout=60, trust_env=False).raise_for_status()
        except httpx.HTTPError as e:
            raise UnavailableError(f"MLflow at {health.mlflow_url} does not answer: {e}") from e
        history[key] = [(int(m["step"]), float(m["value"])) for m in answer.json().get("metrics", [])]
    return history


def _verdict(checks: list[Check]) -> bool:
    _title("Is it true?")
    for check in checks:
        mark = ("yes  ", "green") if check.holds else ("NO   ", "bold red")
        out.print(Text.assemble(mark, check.claim, (f"  ({check.found})", "dim")))
    return all(check.holds for check in checks)
