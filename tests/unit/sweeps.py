"""Short ways to make sweeps and trials for tests of decisions."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.sweeps import TrialRecord, TrialState
from orchestrator.spec import SweepSpec
from tests.unit.records import NOW

LR = {"float": [1e-4, 1e-1], "log": True}


def sweep(**values: Any) -> SweepSpec:
    """A sweep of the trainer's learning rate and width that ends after 100 points."""
    defaults: dict[str, Any] = {
        "name": "night",
        "base": {"trainer": {"max_steps": 2700, "min_lr": 0}, "placement": [{"pool": "laptop"}]},
        "space": {"trainer.learning_rate": LR, "trainer.n_embd": [64, 128, 256]},
        "budget": {"trials": 100},
    }
    return SweepSpec.model_validate({**defaults, **values})


def trial(number: int, state: TrialState = TrialState.OPEN, **values: Any) -> TrialRecord:
    """A trial of the sweep, which is a point by itself."""
    defaults: dict[str, Any] = {
        "sweep_id": "s" * 8,
        "run_id": f"run{number}",
        "point": number,
        "repeat": 0,
        "params": {},
        "created_at": NOW,
    }
    return TrialRecord(number=number, state=state, **{**defaults, **values})
