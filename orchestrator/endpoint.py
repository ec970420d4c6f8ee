"""Where the controller is, and the token for it: from the environment or the state folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import UnauthorizedError, UnavailableError
from orchestrator.settings import Home, home


def endpoint(where: Home | None = None, environ: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    """Address and token of the controller, from the environment or the state folder.

    Raises UnavailableError where no controller is known, UnauthorizedError where the token cannot be read.
    """
    env = os.environ if environ is None else environ
    folder = where or home(dict(env))
    return env.get("ORCH_URL") or _known_url(folder.client_file), token_from(env, folder.token_file)


def _known_url(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["url"])
    except FileNotFoundError:
        raise UnavailableError(
            "no controller is known on this machine",
            remedy="start one with `orch up`, or set ORCH_URL to the address of another machine's controller",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UnavailableError(f"{file} cannot be read: {e}", remedy="write it again with `orch up`") from e


def token_from(env: Mapping[str, str], default: Path | None = None) -> str | None:
    """The token of ORCH_TOKEN, else of the file ORCH_TOKEN_FILE, else of `default`; None where there is none.

    UnauthorizedError where a file cannot be read.
    """
    if env.get("ORCH_TOKEN"):
        return env["ORCH_TOKEN"].strip()
    named = env.get("ORCH_TOKEN_FILE")
    file = Path(named) if named else default
    if file is None or (not named and not file.exists()):
        return None
    try:
        return file.read_text().strip() or None
    except OSError as e:
        raise UnauthorizedError(
            f"the token cannot be read: {e}", remedy="check ORCH_TOKEN_FILE and the file's owner and mode"
        ) from e
