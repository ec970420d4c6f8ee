"""When two specs are the same."""

from __future__ import annotations

import hashlib
import json

from orchestrator.spec.models import RunSpec
from orchestrator.spec.sweep import SweepSpec


def canonical_json(spec: RunSpec | SweepSpec) -> str:
    """The spec with all its defaults as JSON: sorted keys, no spaces, ASCII. Equal specs give equal texts."""
    return json.dumps(
        spec.model_dump(mode="json"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )


def spec_hash(spec: RunSpec | SweepSpec) -> str:
    """SHA-256 of :func:`canonical_json`, in hex."""
    return hashlib.sha256(canonical_json(spec).encode("ascii")).hexdigest()


def sweep_hash(spec: SweepSpec) -> str:
    """The same of a sweep's spec."""
    return hashlib.sha256(canonical_json(spec).encode("ascii")).hexdigest()
