"""Identities of runs, sweeps and schedules: short, and without characters that look alike."""

from __future__ import annotations

import secrets

from orchestrator.errors import ConflictError

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


def new_id() -> str:
    """Eight characters; the ledger refuses one that is there already."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def key_taken(key: str, by: str) -> ConflictError:
    """The error of a submit whose key belongs to something (`run ID`) with another spec."""
    return ConflictError(f"the key {key} belongs to {by}, which has another spec", remedy="use another --key")
