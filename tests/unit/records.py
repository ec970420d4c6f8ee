"""Short ways to make runs, attempts and nodes for tests of decisions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from orchestrator.domain.fleet import NodeInfo
from orchestrator.domain.records import AttemptRecord, RunRecord
from orchestrator.domain.states import Phase, RunState
from orchestrator.spec.models import CommandProgram, RunSpec, Variant

NOW = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)


def spec(name: str = "job", pools: tuple[str, ...] = ("laptop",), **values: Any) -> RunSpec:
    """A spec that runs `true` in these pools, one CPU each."""
    placement = values.pop("placement", [Variant(pool=pool) for pool in pools])
    return RunSpec(name=name, command=CommandProgram(argv=["true"]), placement=placement, **values)


def run(run_id: str = "aaaa1111", seq: int = 1, **values: Any) -> RunRecord:
    """A queued run."""
    defaults: dict[str, Any] = {
        "key": f"key-{run_id}",
        "spec": spec(),
        "spec_hash": "0" * 64,
        "source": "",
        "user": "ada",
        "state": RunState.QUEUED,
        "created_at": NOW,
    }
    return RunRecord(id=run_id, seq=seq, **{**defaults, **values})


def attempt(run_id: str = "aaaa1111", number: int = 1, **values: Any) -> AttemptRecord:
    """An attempt that runs on the laptop since NOW."""
    defaults: dict[str, Any] = {
        "ray_id": "ray-laptop",
        "node": "laptop",
        "variant_index": 0,
        "variant": Variant(pool="laptop"),
        "phase": Phase.RUNNING,
        "created_at": NOW,
        "started_at": NOW,
    }
    return AttemptRecord(run_id=run_id, number=number, **{**defaults, **values})


def node(name: str = "laptop", **values: Any) -> NodeInfo:
    """A living node of the pool that it is named for, with two CPUs."""
    defaults: dict[str, Any] = {
        "ray_id": f"ray-{name}",
        "pool": name,
        "alive": True,
        "address": "127.0.0.1",
        "cpus": 2,
        "gpus": 0,
        "memory": 2**30,
    }
    return NodeInfo(name=name, **{**defaults, **values})
