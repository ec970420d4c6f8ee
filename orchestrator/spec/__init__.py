"""Specs: the models, reading them from YAML with a place for every mistake, identity, JSON Schema."""

from orchestrator.spec.identity import canonical_json, spec_hash
from orchestrator.spec.loading import LoadedSpec, load_spec, parse_spec
from orchestrator.spec.models import CheckpointPolicy, CommandProgram, RunSpec, Variant

__all__ = [
    "CheckpointPolicy",
    "CommandProgram",
    "LoadedSpec",
    "RunSpec",
    "Variant",
    "canonical_json",
    "load_spec",
    "parse_spec",
    "spec_hash",
]
