"""Identities of runs, sweeps and schedules: short, and without characters that look alike."""

from __future__ import annotations

import secrets

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"


def new_id() -> str:
    """Eight characters; the ledger refuses one that is there already."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))
