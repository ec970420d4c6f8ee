"""Specs: the models, reading them from YAML with a place for every mistake, identity, JSON Schema.

What reads files is imported when it is first asked for: a client that only looks at runs needs no YAML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.spec.models import CheckpointPolicy, CommandProgram, RunSpec, Variant

if TYPE_CHECKING:
    from orchestrator.spec.identity import canonical_json, spec_hash
    from orchestrator.spec.loading import LoadedSpec, load_spec, parse_spec
    from orchestrator.spec.sweep import SweepSpec
    from orchestrator.spec.sweep_loading import LoadedSweep, check_sweep, load_any, load_sweep, parse_sweep

__all__ = [
    "CheckpointPolicy",
    "CommandProgram",
    "LoadedSpec",
    "LoadedSweep",
    "RunSpec",
    "SweepSpec",
    "Variant",
    "canonical_json",
    "check_sweep",
    "load_any",
    "load_spec",
    "load_sweep",
    "parse_spec",
    "parse_sweep",
    "spec_hash",
]

_LATER = {
    "LoadedSpec": "loading",
    "load_spec": "loading",
    "parse_spec": "loading",
    "LoadedSweep": "sweep_loading",
    "SweepSpec": "sweep",
    "check_sweep": "sweep_loading",
    "load_any": "sweep_loading",
    "load_sweep": "sweep_loading",
    "parse_sweep": "sweep_loading",
    "canonical_json": "identity",
    "spec_hash": "identity",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
