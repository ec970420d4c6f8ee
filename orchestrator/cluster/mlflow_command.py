"""How the MLflow server is started."""

from __future__ import annotations

import sys
from pathlib import Path


def mlflow_command(root: Path, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """(argument list, environment variables to add) of a server with its database and artifacts in `root`."""
    argv = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"),
        *("--artifacts-destination", str(root / "artifacts")),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]
    env = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "100",
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "20",
    }
    return argv, env


def initialise(root: Path) -> None:
    """Make the folder; the one server process that is started creates the database's tables."""
    root.mkdir(parents=True, exist_ok=True)
