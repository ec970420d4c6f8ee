"""The files that a machine needs before anything is started: folders, the token, the client's address."""

from __future__ import annotations

import json
import secrets

from orchestrator.errors import SetupError
from orchestrator.settings import Home, write_private


def make_private_home(home: Home) -> None:
    """Create the state folder, for its owner only."""
    try:
        home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SetupError(
            f"{home.root} cannot be created: {error}", remedy="Set ORCH_HOME to a folder you may write to."
        ) from error


def ensure_token(home: Home) -> str:
    """The token of this stack, made on the first call."""
    if home.token_file.exists():
        return home.token_file.read_text().strip()
    token = secrets.token_urlsafe(32)
    write_private(home.token_file, token + "\n")
    return token


def write_node_home(home: Home, name: str, token: str, store_uri: str | None) -> None:
    """The folder of one node: the token, and where it finds the store if not where the controller does."""
    folder = home.node(name)
    write_private(folder / "token", token + "\n")
    write_private(folder / "node.json", json.dumps({"name": name, "store_uri": store_uri}) + "\n")


def write_client_file(home: Home, url: str) -> None:
    """Where the command line of this user finds the controller."""
    write_private(home.client_file, json.dumps({"url": url}) + "\n")
