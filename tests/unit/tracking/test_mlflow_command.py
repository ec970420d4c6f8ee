"""How the MLflow server is started, without starting it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.cluster import mlflow_command as command
from orchestrator.errors import SetupError


def test_the_known_version_is_one_uvicorn_process(tmp_path: Path) -> None:
    argv, env = command.mlflow_command(tmp_path, "127.0.0.1", 5000)
    assert argv[1:] == [
        *("-P", "-m", "orchestrator.cluster.calm_server"),
        *("127.0.0.1", "5000", "mlflow.server.fastapi_app:app"),
    ]
    assert env["_MLFLOW_SERVER_FILE_STORE"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert env["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] == str(tmp_path / "artifacts")
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_another_version_is_started_by_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_version", lambda: "3.99.0")
    argv, env = command.mlflow_command(tmp_path, "127.0.0.1", 5000)
    assert argv[1:4] == ["-m", "mlflow", "server"]
    assert f"sqlite:///{tmp_path}/mlflow.db" in argv
    assert not [name for name in env if name.startswith("_")]


def test_names_that_the_server_answers_to(tmp_path: Path) -> None:
    _, env = command.mlflow_command(tmp_path, "box.lan", 5000)
    hosts = env["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"localhost", "localhost:*", "box.lan", "box.lan:*", "[::1]", "[[]::1]:*", "192.168.*"} <= set(
        hosts
    )
    assert {"100.64.*", "100.127.*"} <= set(hosts)
    assert not {"*", "100.63.*", "100.128.*", "172.15.*", "172.32.*"} & set(hosts)


def _fake_migration(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS migrated (n INTEGER)")
        connection.execute("INSERT INTO migrated VALUES (1)")
        connection.commit()


def _migrations(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM migrated").fetchone()[0])


def test_a_database_is_made_once_with_a_write_ahead_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_migrate", _fake_migration)
    for _ in range(2):
        command.initialise(tmp_path)
    assert _migrations(tmp_path / "mlflow.db") == 1
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_broken_first_attempt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(database: Path) -> None:
        _fake_migration(database)
        raise SetupError("killed")

    monkeypatch.setattr(command, "_migrate", half)
    with pytest.raises(SetupError):
        command.initialise(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setattr(command, "_migrate", _fake_migration)
    command.initialise(tmp_path)
    assert _migrations(tmp_path / "mlflow.db") == 1, "it began afresh"


def test_another_mlflow_version_keeps_a_copy_and_migrates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_migrate", _fake_migration)
    command.initialise(tmp_path)
    monkeypatch.setattr(command, "_version", lambda: "3.99.0")
    command.initialise(tmp_path)
    command.initialise(tmp_path)
    assert _migrations(tmp_path / "mlflow.db") == 2
    assert _migrations(tmp_path / "mlflow.db.before-3.99.0") == 1


def test_a_failing_migration_says_what_mlflow_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(SetupError, match="cannot initialise"):
        command.initialise(tmp_path)
