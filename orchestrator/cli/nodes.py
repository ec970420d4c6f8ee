"""Commands for the nodes of the cluster: nodes, drain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrator.cli import render
from orchestrator.cli.common import CLUSTER, Json, complete_node, connect, out, print_json, width
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.messages import NodeView

COLUMNS = [
    Column("NODE", least=6),
    Column("POOL", least=6),
    Column("STATE"),
    Column("CPUS", right=True),
    Column("GPUS", right=True),
    Column("MEMORY", right=True),
    Column("GPU MEMORY (FOREIGN)", least=10),
    Column("RUNS", least=8),
    Column("", wrap=True),
]
GPU_MEMORY = 6
"""Index of the column that is left out where no node has told of a GPU."""
SILENT_S = 30.0
"""Nodes speak every 10 s; longer silences are told."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (nodes, drain):
        app.command(rich_help_panel=CLUSTER)(command)


def nodes(as_json: Json = False) -> None:
    """List the machines of the cluster, what runs there, and why nothing new starts on some.

    States: `ready`; `lost` where Ray counts it as dead; `draining`, then `drained` once it is empty; `in use`
    by its owner; `excluded` for a while, because runs have failed there.
    """
    with connect() as client:
        found = client.nodes()
    if as_json:
        print_json(found)
    elif not found:
        out.print("no nodes; `orch up` starts one here, `orch join` brings in another machine")
    else:
        out.print(node_table(found))


def drain(
    node: Annotated[
        str,
        typer.Argument(
            metavar="NODE", help="Name of the node.", autocompletion=complete_node, show_default=False
        ),
    ],
    undo: Annotated[bool, typer.Option("--undo", help="Use the node again.")] = False,
    as_json: Json = False,
) -> None:
    """Empty a machine: what runs there saves and goes on elsewhere, and nothing new starts.

    Holds until it is undone, whatever is restarted meanwhile. A run that fits nowhere else waits. Costs no
    retry.

    - `orch drain gpu`, then `orch nodes` until it is `drained`
    - `orch drain gpu --undo`
    """
    with connect() as client:
        view = client.drain(node, undo=undo)
    if as_json:
        print_json(view)
    else:
        out.print(_drain_line(view))


def _drain_line(view: NodeView) -> str:
    if not view.draining:
        return f"{view.name} is used again" + (f", but {view.closed}" if view.closed else "")
    if view.drained:
        return f"{view.name} is drained: nothing runs there"
    if not view.runs:
        return f"{view.name} is being drained"
    return f"{view.name} is being drained: {', '.join(view.runs)} will save and go on elsewhere"


def node_table(found: Sequence[NodeView]) -> Text:
    """Nodes, one a line."""
    rows = [_row(node) for node in found]
    if any(node.gpu_states for node in found):
        return render.table(COLUMNS, rows, width())
    without = [row[:GPU_MEMORY] + row[GPU_MEMORY + 1 :] for row in rows]
    return render.table(COLUMNS[:GPU_MEMORY] + COLUMNS[GPU_MEMORY + 1 :], without, width())


def _row(node: NodeView) -> list[Cell]:
    return [
        node.name,
        node.pool,
        render.state(state_word(node)),
        render.amount(node.cpus_used, node.cpus),
        render.amount(node.gpus_used, node.gpus),
        render.size(node.memory),
        _gpu_memory(node),
        ", ".join(node.runs),
        _note(node),
    ]


def state_word(node: NodeView) -> str:
    """What a node is, in a word or two."""
    if node.state != "ready":
        return node.state
    if node.draining:
        return "drained" if node.drained else "draining"
    if node.excluded:
        return "excluded"
    return "in use" if node.busy else node.state


def _note(node: NodeView) -> str:
    """What the word does not say."""
    notes = [node.excluded, f"its owner uses it: {node.busy}" if node.busy else ""]
    if node.silent_s is not None and node.silent_s > SILENT_S:
        notes.append(f"not heard of for {render.coarse(node.silent_s)}")
    if node.draining and node.state != "ready":
        notes.append("it is being drained")
    return "; ".join(filter(None, notes))


def _gpu_memory(node: NodeView) -> str:
    told = [f"{render.size(gpu.memory)} ({render.size(gpu.foreign_memory)})" for gpu in node.gpu_states]
    groups = [(text, len(list(same))) for text, same in groupby(told)]
    return ", ".join(f"{count} x {text}" if count > 1 else text for text, count in groups)
