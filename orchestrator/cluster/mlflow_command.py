"""How the MLflow server is started: one process, its database created once beforehand.

``mlflow server`` imports MLflow (seconds, 245 MB) to check its options and then starts uvicorn, which imports
it again. For the version whose start-up was measured and tested we start uvicorn ourselves, with the settings
that ``mlflow server`` hands on through the environment; for any other version the official command is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from orchestrator.errors import SetupError

_DIRECT_VERSION = "3.17.2"
_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ENABLE_WORKSPACES": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With the default pool of 5 + 10, 16 clients at once got "QueuePool limit" errors.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "100",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "20",
}
_INITIALISE_TIMEOUT_S = 300


def mlflow_command(root: Path, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """(argument list, environment variables to add) of a server with its database and artifacts in `root`.

    Call :func:`initialise` first. The server is one process (with another MLflow version: a process group)
    and ends within a second of SIGTERM.
    """
    database, artifacts = f"sqlite:///{_database(root)}", str(root / "artifacts")
    settings = {**_SETTINGS, "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(_allowed_hosts(host))}
    if _version() != _DIRECT_VERSION:
        options = ["--backend-store-uri", database, "--artifacts-destination", artifacts, "--workers", "1"]
        address = ["--host", host, "--port", str(port)]
        return [sys.executable, "-m", "mlflow", "server", *options, *address], settings
    internal = {
        "_MLFLOW_SERVER_FILE_STORE": database,
        "_MLFLOW_SERVER_REGISTRY_STORE": database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex,
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    argv = [sys.executable, "-P", "-m", "orchestrator.cluster.calm_server", host, str(port)]
    return [*argv, "mlflow.server.fastapi_app:app"], {**settings, **internal}


def initialise(root: Path) -> None:
    """Create the database in `root`, or bring it to the installed MLflow version; nothing where that is done.

    Safe to call from several processes at once (MLflow's own initialisation is not). A new database appears
    whole or not at all; before an upgrade the old one is kept as `mlflow.db.before-VERSION`. SetupError with
    MLflow's output where it fails.
    """
    (root / "artifacts").mkdir(parents=True, exist_ok=True)
    version, mark = _version(), root / "mlflow.version"
    with _lock(root / "mlflow.lock"):
        database = _database(root)
        known = mark.read_text().strip() if mark.exists() and database.exists() else None
        if known == version:
            return
        if not database.exists():
            _create(database)
        else:
            _copy(database, root / f"mlflow.db.before-{version}")
            _migrate(database)
        mark.write_text(f"{version}\n")


def _create(database: Path) -> None:
    draft = database.with_suffix(".draft")
    for leftover in database.parent.glob(f"{draft.name}*"):
        leftover.unlink()
    _migrate(draft)
    # Write-ahead log: readers (the web pages) and the writer do not wait for each other. Kept in the file.
    with contextlib.closing(sqlite3.connect(draft)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    draft.rename(database)


def _migrate(database: Path) -> None:
    argv = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    env = {**os.environ, **_SETTINGS}
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=_INITIALISE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SetupError(
            f"initialising MLflow's database {database} took more than {_INITIALISE_TIMEOUT_S} s",
            remedy="Check the disk, then start again.",
        ) from error
    if done.returncode != 0:
        raise SetupError(
            f"cannot initialise MLflow's database {database}: {(done.stdout + done.stderr)[-2000:]}",
            remedy="Check that the server packages are installed: pip install 'orch[server]'",
        )


def _copy(database: Path, to: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(database)) as source,
        contextlib.closing(sqlite3.connect(to)) as target,
    ):
        source.backup(target)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _database(root: Path) -> Path:
    return root.absolute() / "mlflow.db"


def _allowed_hosts(host: str) -> list[str]:
    """Host headers to answer: MLflow's defaults, this machine's names, and the addresses of overlay networks.

    The check keeps web pages of other origins from reaching the server by rebinding a name to this machine.
    """
    name = socket.gethostname()
    named = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", host, name, f"{name}.local", socket.getfqdn()]
    # RFC 1918 and RFC 4193, as MLflow has them; 100.64/10 (RFC 6598) is what WireGuard overlays hand out.
    private = ["192.168.*", "10.*", *(f"172.{n}.*" for n in range(16, 32)), "fc00:*", "fd00:*"]
    overlay = [f"100.{n}.*" for n in range(64, 128)]
    exact = list(dict.fromkeys(named))
    # MLflow compares entries with a `*` by fnmatch, where `[` begins a set, and others as they are.
    with_port = [f"{entry.replace('[', '[[]')}:*" for entry in exact]
    return [*exact, *with_port, *private, *overlay]


def _version() -> str:
    try:
        return metadata.version("mlflow")
    except metadata.PackageNotFoundError as error:
        raise SetupError(
            "mlflow is not installed on this machine", remedy="Install it with: pip install 'orch[server]'"
        ) from error
