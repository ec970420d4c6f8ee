"""The layers of the design hold, and the command line stays light."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.application.use_cases import lint_imports
from importlinter.configuration import configure


def test_import_rules() -> None:
    configure()
    root = Path(__file__).parents[2]
    assert lint_imports(config_filename=str(root / "pyproject.toml"), cache_dir=None)


HEAVY = {"alembic", "boto3", "botocore", "fastapi", "httpx", "mlflow", "numpy", "pandas", "ray"}
HEAVY |= {"requests", "safetensors", "sqlalchemy", "starlette", "torch", "uvicorn"}
"""None of these is needed to claim a run in a folder and to start its program."""


@pytest.mark.parametrize("module", ["orchestrator.agent.__main__", "orchestrator.agent.launch"])
def test_an_agent_starts_light(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert module in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()
