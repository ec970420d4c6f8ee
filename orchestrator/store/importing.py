"""Weights from elsewhere, brought into a store for runs to begin from."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from orchestrator.contract import MARK_FILE
from orchestrator.errors import ConflictError, NotFoundError, StoreError
from orchestrator.store.cache import OnBytes, silent
from orchestrator.store.checkpoints import CheckpointRecord, CheckpointWriter
from orchestrator.store.protocol import ObjectStore
from orchestrator.store.records import check_run_id, import_id
from orchestrator.store.runlog import RunLog
from orchestrator.store.snapshot import Limits, scan

_WEIGHTS: Final = ".safetensors"
_UNSAFE: Final = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"})
"""Endings of files that can run code while they are read."""
_MARK_LIMIT: Final = 1 << 20


def import_directory(
    store: ObjectStore, folder: Path, name: str, step: int | None, on_bytes: OnBytes = silent
) -> CheckpointRecord:
    """Store a folder of safetensors files (and what stands beside them) under a name.

    `step` is needed only where the folder has no mark that says it; else it is 0.

    Errors: NotFoundError where there is no such folder, StoreError where it has pickles, no safetensors file
    or a damaged one, ConflictError where the name is taken.
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a folder", remedy="Name the folder with the safetensors files.")
    _check(folder)
    log = RunLog(store, check_run_id(import_id(name)))
    history = log.history()
    if history.live:
        raise ConflictError(
            f"something was imported as {name} already", remedy="Choose another name with --name."
        )
    writer = CheckpointWriter(store, log.claim(history.owner + 1, node=platform.node()))
    at = step if step is not None else _step(folder)
    return writer.commit(folder, at, metrics={}, device="", node=platform.node(), on_bytes=on_bytes)


def _check(folder: Path) -> None:
    """StoreError where reading the folder could run code or cannot work."""
    found = 0
    for path in scan(folder, Limits()):
        if Path(path).suffix.lower() in _UNSAFE:
            raise StoreError(
                f"{folder / path} may run code when it is read and is not brought in",
                remedy="Convert it to safetensors where it comes from, and leave it out of the folder.",
            )
        if path.endswith(_WEIGHTS):
            found += 1
            try:
                with safe_open(folder / path, framework="numpy") as file:
                    list(file.keys())
            except (SafetensorError, OSError) as error:
                raise StoreError(f"{folder / path} is no whole safetensors file: {error}") from error
    if not found:
        raise StoreError(
            f"{folder} has no safetensors file", remedy="Only weights in safetensors files can be brought in."
        )


def _step(folder: Path) -> int:
    try:
        step = json.loads((folder / MARK_FILE).read_bytes()[:_MARK_LIMIT])["step"]
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{folder / MARK_FILE} does not say a step: {error}", remedy="Say it with --step."
        ) from error
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise StoreError(f"{folder / MARK_FILE} does not say a step", remedy="Say it with --step.")
    return step
