"""What a command costs: a listing must feel instant, so nothing heavy may be imported for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.unit.cli import views
from tests.unit.cli.fake import TOKEN, FakeController, detail

HEAVY = {
    "alembic",
    "asyncpg",
    "boto3",
    "fastapi",
    "google.protobuf",
    "mlflow",
    "numpy",
    "pandas",
    "ray",
    "safetensors",
    "sqlalchemy",
    "yaml",
    "starlette",
    "torch",
    "uvicorn",
}
"""None of these is needed to ask the controller something and print the answer."""
FOR_HELP_ONLY = {"pygments", "rich.markdown", "rich.progress"}
OURS = {
    "orchestrator.cluster",
    "orchestrator.api",
    "orchestrator.control",
    "orchestrator.store",
    "trainer.train",
}

PROGRAM = """
import sys
from orchestrator.cli.main import main
sys.argv = ["orch", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code
print("\\n".join(["", "MODULES", *sys.modules]), file=sys.stderr)
sys.exit(code)
"""


def modules_of(fake: FakeController, *arguments: str) -> set[str]:
    env = {**os.environ, "ORCH_URL": fake.url, "ORCH_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.partition("\nMODULES\n")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["show", "demo"],
        ["logs", "demo"],
        ["nodes", "--json"],
        ["cancel", "demo"],
        ["--help"],
        ["ls", "--help"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(fake: FakeController, arguments: list[str]) -> None:
    fake.add(detail())
    loaded = modules_of(fake, *arguments)
    assert "typer" in loaded
    unwanted = HEAVY | OURS if "--help" in arguments else HEAVY | OURS | FOR_HELP_ONLY
    assert loaded & unwanted == set()


def test_following_imports_no_more_than_a_picture(fake: FakeController) -> None:
    fake.add(detail(state="succeeded"))
    assert modules_of(fake, "follow", "demo") & (HEAVY | OURS | FOR_HELP_ONLY) == set()


def test_the_live_picture_imports_no_more(fake: FakeController) -> None:
    fake.top = views.busy()
    assert modules_of(fake, "top", "--once") & (HEAVY | OURS | FOR_HELP_ONLY) == set()


def test_httpx_is_whole_for_everybody_else() -> None:
    program = "import orchestrator.client, httpx._main, httpx; assert httpx.main is httpx._main.main"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
