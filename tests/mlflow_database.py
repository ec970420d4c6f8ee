"""An MLflow database as MLflow makes it, made once for many stacks: its migrations take five seconds."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from orchestrator.cluster.mlflow_command import initialise

_FILES = ("mlflow.db", "mlflow.version")


def give_database(root: Path) -> None:
    """Have a new MLflow server find an empty database in `root`, which is made where it is missing."""
    root.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copy2(_made() / name, root / name)


@cache
def _made() -> Path:
    root = Path(tempfile.mkdtemp(prefix="orch-tests-mlflow-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    initialise(root)
    return root
