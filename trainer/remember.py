"""Small JSON files in the cache folder, for what takes long to find out. Imports no torch.

They may be deleted at any time; a damaged one counts as empty, one that cannot be written is done without.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainer.corpus import cache_root


def recall(file: str) -> dict[str, Any]:
    """All that the file of that name holds; nothing where it is missing or damaged."""
    try:
        content: Any = json.loads((cache_root() / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(file: str, key: str, value: Any) -> None:
    """Put one value into the file of that name, all of it or nothing."""
    target: Path = cache_root() / file
    temporary = target.with_name(f".{file}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**recall(file), key: value}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(target)
    except OSError:
        return  # the next start finds it out again
