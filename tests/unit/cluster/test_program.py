"""An update is noticed by any source file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.cluster import program
from orchestrator.cluster.program import program_digest
from orchestrator.cluster.services import services
from orchestrator.settings import Home
from tests.unit.cluster.test_config import config


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "updated_package"
    (folder / "deeper").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "deeper/part.py").write_text("a = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(program, "PACKAGES", ("updated_package", "no_such_package"))
    return folder


def test_what_changes_it(package: Path) -> None:
    seen = [program_digest()]
    (package / "deeper/part.py").write_text("a = 2")
    seen.append(program_digest())
    (package / "deeper/part.py").rename(package / "deeper/other.py")
    seen.append(program_digest())
    (package / "new.py").touch()
    seen.append(program_digest())
    assert len(set(seen)) == 4


def test_what_does_not(package: Path) -> None:
    before = program_digest()
    (package / "__pycache__").mkdir()
    (package / "__pycache__/part.pyc").write_bytes(b"x")
    (package / "notes.txt").write_text("x")
    assert program_digest() == before
    assert "updated_package" not in sys.modules  # it is looked at, not loaded


def test_what_runs_it(tmp_path: Path) -> None:
    """Ray and MLflow are none of it."""
    ours = {service.name: service.ours for service in services(config(mlflow_port=7421), Home(tmp_path))}
    assert ours == {"head": False, "node-a": True, "mlflow": False, "controller": True}
