"""From a file and ``--set`` arguments to a configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trainer.config import TrainerConfig
from trainer.errors import UserError


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> TrainerConfig:
    """The configuration in a YAML or JSON file, with ``key=value`` overrides; the defaults without a file.

    A run spec is accepted as well: its `trainer` section counts.

    Raises:
        UserError: the file cannot be read, or a setting is unknown or wrong; all of them are named.
    """
    settings = _read(path) if path is not None else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: expected key=value")
        settings[key.strip()] = _parse(value, f"--set {override}")
    try:
        return TrainerConfig.model_validate(settings)
    except ValidationError as e:
        problems = "; ".join(_describe(error) for error in e.errors())
        raise UserError(f"{path or 'configuration'}: {problems}") from e


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read the configuration {path}: {getattr(e, 'strerror', None) or e}") from e
    content = _parse(text, str(path))
    if isinstance(content, dict) and isinstance(content.get("trainer"), dict):
        content = content["trainer"]
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected settings such as `n_layer: 4`")
    return {str(key): value for key, value in content.items()}


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as e:
        raise UserError(f"{where}: {' '.join(str(e).split())}") from e


def _describe(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else str(message)
