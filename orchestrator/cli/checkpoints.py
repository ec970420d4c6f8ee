"""`orch checkpoints`: list a run's checkpoints, read them again, take them elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.cli import render
from orchestrator.cli.common import (
    RUNS,
    Json,
    RunRef,
    command_group,
    complete_run,
    connect,
    err,
    moving,
    out,
    print_json,
    width,
)
from orchestrator.cli.lineage import checkpoints_table
from orchestrator.cli.render import Cell, Column

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.store.objects import ObjectStore
    from orchestrator.store.records import CheckpointRecord

VERIFY_COLUMNS = [
    Column("STEP", right=True),
    Column("ATTEMPT", right=True),
    Column("FILES", right=True),
    Column("SIZE", right=True),
    Column("", wrap=True),
]

Place = Annotated[
    str,
    typer.Argument(
        metavar="RUN[@STEP]",
        help="The run, and the step or the tag of its checkpoint.",
        autocompletion=complete_run,
        show_default=False,
    ),
]


class _ListByDefault(TyperGroup):
    """`orch checkpoints RUN` is `orch checkpoints list RUN`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click's Group."""
        known = args and args[0] in self.commands
        return super().resolve_command(ctx, args if known else ["list", *args])


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = command_group(cls=_ListByDefault)
    group.command("list")(checkpoints)
    group.command("verify")(verify)
    group.command("export")(export)
    group.command("import")(import_folder)
    group.command("tag")(tag)
    group.command("untag")(untag)
    app.add_typer(
        group,
        name="checkpoints",
        rich_help_panel=RUNS,
        help="List the checkpoints of a run, verify or tag them, take one elsewhere or bring one in.",
        epilog="`orch checkpoints RUN` lists, without the word.",
    )


def checkpoints(run: RunRef, as_json: Json = False) -> None:
    """List the checkpoints of a run, and what each attempt went on from.

    ● marks those that the newest one descends from. `orch resume RUN --at STEP` goes on from one,
    `orch sample RUN@STEP` has it write text.

    - `orch checkpoints demo`
    """
    with connect() as client:
        found = client.checkpoints(run)
    if as_json:
        print_json(found)
    elif not found:
        out.print("no checkpoints yet")
    else:
        out.print(checkpoints_table(found))


def verify(place: Place, as_json: Json = False) -> None:
    """Read checkpoints again and compare their sizes and SHA-256 with what was committed.

    All that are kept, or the one of a step. Ends with 8 where one is damaged. This machine must see the
    checkpoint store.

    - `orch checkpoints verify demo`
    - `orch checkpoints verify demo@1000 --json`
    """
    from orchestrator.store.checkpoints import verify as problems_of

    with connect() as client:
        records, store = _kept(client, place)
    results: list[dict[str, Any]] = []
    for record in records:
        with moving(f"reading step {record.step}", _size(record)) as moved:
            problems = problems_of(store, record, moved)
        results.append({"step": record.step, "attempt": record.attempt, "problems": problems})
    if as_json:
        print_json({"checkpoints": results})
    else:
        rows: list[list[Cell]] = [
            [
                str(record.step),
                str(record.attempt),
                str(len(record.files)),
                render.size(_size(record)),
                "; ".join(result["problems"]) or "intact",
            ]
            for record, result in zip(records, results, strict=True)
        ]
        out.print(render.table(VERIFY_COLUMNS, rows, width()))
    if any(result["problems"] for result in results):
        raise typer.Exit(8)


def export(
    place: Place,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to; must not exist.", show_default=False)
    ],
    nanogpt: Annotated[
        bool, typer.Option("--nanogpt", help="Write nanoGPT's ckpt.pt and meta.pkl instead.")
    ] = False,
) -> None:
    """Write a checkpoint to a folder: weights and optimizer as safetensors, the rest as JSON.

    The newest that is intact, or the one of a step. Everything is compared with its SHA-256 first. This
    machine must see the checkpoint store.

    - `orch checkpoints export demo ./demo-final`
    - `orch checkpoints export demo@1000 ./out-demo --nanogpt`
    """
    from orchestrator.errors import ConflictError
    from orchestrator.store.checkpoints import restore

    ref, word = split_place(place)
    with connect() as client:
        detail = client.run(ref)
        store = same_store(client)
    step = step_of(store, detail.run.id, word)
    if nanogpt and detail.spec.trainer is None:
        raise ConflictError(f"run {detail.run.id} is not of the built-in trainer: nanoGPT has no such model")
    with moving("fetching", None) as moved:
        restored = restore(store, detail.run.id, step, folder.absolute(), on_bytes=moved)
    for record, why in restored.skipped:
        err.print(f"step {record.step} is damaged and was left out: {why}", style="yellow")
    if nanogpt:
        raise typer.Exit(_as_nanogpt(folder))
    out.print(f"step {restored.record.step} is in {folder}")


def _as_nanogpt(folder: Path) -> int:
    """Replace a restored checkpoint by nanoGPT's files; the exit code."""
    import shutil
    import subprocess

    aside = folder.with_name(f".{folder.name}-restored")
    folder.rename(aside)
    try:
        folder.mkdir()
        command = [sys.executable, "-m", "trainer.export", str(aside), str(folder / "ckpt.pt")]
        return subprocess.run(command, check=False).returncode
    finally:
        shutil.rmtree(aside)


def import_folder(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Safetensors files and what belongs to them.", exists=True),
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it; the name of the folder by default.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Its step, where the folder does not say.")] = None,
    as_json: Json = False,
) -> None:
    """Bring weights from elsewhere into the checkpoint store, for runs to begin from.

    Every safetensors file is checked before anything is stored. A spec begins from it by
    `resume_from: import:NAME`. With the weights alone (GPT-2's names, as nanoGPT and Hugging Face write them)
    the trainer begins at step 0 with a fresh optimizer. This machine must see the checkpoint store.

    - `orch checkpoints import ./gpt2 --name gpt2`
    """
    from orchestrator.store.importing import import_directory

    with connect() as client:
        store = same_store(client)
    name = name or folder.resolve().name
    with moving("sending", None) as moved:
        record = import_directory(store, folder, name, step, moved)
    if as_json:
        print_json({"name": name, "step": record.step, "size": record.size, "sha256": record.sha256})
    else:
        out.print(f"{render.size(record.size)} stored; begin from it by resume_from: import:{name}")


def tag(
    place: Place,
    name: Annotated[str, typer.Argument(metavar="TAG", help="The name.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Give a checkpoint a name. It is kept from then on, and `RUN@TAG` means it wherever `RUN@STEP` does.

    Without a step it is the newest one. The name leaves the checkpoint of the run that had it before.

    - `orch checkpoints tag demo@1000 paper`
    """
    from orchestrator.errors import NotFoundError

    ref, word = split_place(place)
    with connect() as client:
        found = [view for view in client.checkpoints(ref) if view.kept]
        chosen = [view for view in found if word is None or str(view.step) == word or word in view.tags]
        if not chosen:
            have = ", ".join(str(view.step) for view in found) or "none"
            raise NotFoundError(f"run {ref} has no such checkpoint", remedy=f"steps it has: {have}")
        view = client.tag(chosen[-1].run, chosen[-1].step, name)
    if as_json:
        print_json(view)
    else:
        out.print(f"step {view.step} is kept as {name}")


def untag(
    run: RunRef,
    name: Annotated[str, typer.Argument(metavar="TAG", help="The name.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Take a name away; the checkpoint is kept as long as the run's spec says.

    - `orch checkpoints untag demo paper`
    """
    with connect() as client:
        view = client.untag(run, name)
    if as_json:
        print_json(view)
    else:
        out.print(f"step {view.step} has the tag {name} no more")


def _kept(client: Client, place: str) -> tuple[list[CheckpointRecord], ObjectStore]:
    from orchestrator.errors import NotFoundError
    from orchestrator.store.runlog import RunLog

    ref, word = split_place(place)
    run_id = client.run(ref).run.id
    store = same_store(client)
    history = RunLog(store, run_id).history()
    if word is not None:
        return [history.named(word)], store
    if not history.live:
        raise NotFoundError(f"run {run_id} has no checkpoints")
    return history.live, store


def _size(record: CheckpointRecord) -> int:
    return sum(file.size for file in record.files)


def split_place(text: str) -> tuple[str, str | None]:
    """`run@step` or `run@tag` as its parts; the second is None where it is not said."""
    ref, at, word = text.rpartition("@")
    if not at:
        return text, None
    if not ref or not word:
        raise typer.BadParameter(f"expected RUN, RUN@STEP or RUN@TAG, got {text!r}")
    return ref, word


def step_of(store: ObjectStore, run_id: str, word: str | None) -> int | None:
    """The step that is meant by what stands after `@`; NotFoundError where the run has no such checkpoint."""
    from orchestrator.store.runlog import RunLog

    return None if word is None else RunLog(store, run_id).history().named(word).step


def same_store(client: Client) -> ObjectStore:
    """The controller's checkpoint store, seen from here; SetupError where this machine sees another one."""
    from orchestrator.errors import NotFoundError, SetupError
    from orchestrator.store.objects import open_store, store_id

    health = client.health()
    store = open_store(health.store_uri)
    try:
        seen = store_id(store)
    except NotFoundError:
        seen = ""
    if seen != health.store_id:
        raise SetupError(
            f"this machine does not see the controller's checkpoint store {health.store_uri}",
            remedy="run this on the controller's machine, or mount the store at the same path here",
        )
    return store
