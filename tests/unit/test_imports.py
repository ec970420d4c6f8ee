"""The layers of the design hold, and the command line stays light."""

from pathlib import Path

from importlinter.application.use_cases import lint_imports
from importlinter.configuration import configure


def test_import_rules() -> None:
    configure()
    root = Path(__file__).parents[2]
    assert lint_imports(config_filename=str(root / "pyproject.toml"), cache_dir=None)
